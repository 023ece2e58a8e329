"""A worker of a mutation run: a copy of the tree, in which it runs test files with one mutant after the other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.mutants.mutant import Mutant
from mjx_so101.errors import HealthError

FOLDERS = ("mjx_so101", "policies", "train", "bench", "tests", "assets")
FILES = ("pyproject.toml", "README.md", "LICENSE", "Makefile")
ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=1 --xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", "--no-header")


class Worker:
    """A copy of the tree with a folder of compiled programs, on a core of its own."""

    def __init__(self, source: Path, work: Path, index: int, warm: Path | None = None, pinned: bool = True):
        """Copies the tree `source` to a folder under `work`.

        warm: programs that the unchanged tree compiled; they are shared by hard links (nothing writes to them) and
        what mutants compile stays with this worker. Without it what is compiled goes to `warm_folder(work)`.
        """
        self.source, self.root = source, work / f"tree{index}"
        self.cache = work / f"cache{index}" if warm else warm_folder(work)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._core = {cores[index % len(cores)]} if pinned and cores else None
        shutil.rmtree(self.root, ignore_errors=True)
        for name in FOLDERS:
            if (source / name).exists():
                shutil.copytree(source / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
        for name in FILES:
            if (source / name).exists():
                shutil.copy(source / name, self.root / name)
        if warm:
            shutil.rmtree(self.cache, ignore_errors=True)
            warm.mkdir(parents=True, exist_ok=True)
            shutil.copytree(warm, self.cache, copy_function=os.link)

    def run(self, files: Iterable[str], seconds: float, mutant: Mutant | None = None) -> tuple[str, str]:
        """Run test files, with the mutant in place, until one fails: 'survived', 'killed' or 'timeout', and by what."""
        if mutant:
            self._write(mutant.path, mutant.apply(self.source))
        try:
            return self._tests(files, seconds)
        finally:
            if mutant:
                self._write(mutant.path, (self.source / mutant.path).read_text())

    def stop(self) -> None:
        """End what runs, from another thread; the run raises KeyboardInterrupt."""
        self._stopped = True
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, 9)

    def _write(self, path: str, text: str) -> None:
        file = self.root / path
        file.write_text(text)
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()  # Python tells versions apart by size and second only

    def _tests(self, files: Iterable[str], seconds: float) -> tuple[str, str]:
        self._process = process = subprocess.Popen(
            [sys.executable, *PYTEST, *files], cwd=self.root, env=self._environment(), text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        if self._core:
            os.sched_setaffinity(process.pid, self._core)
        try:
            output, _ = process.communicate(timeout=min(max(seconds, 0.1), 1e6))
        except subprocess.TimeoutExpired:
            return "timeout", ""
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        if self._stopped:
            raise KeyboardInterrupt
        return ("survived", "") if process.returncode == 0 else ("killed", first_failure(output, process.returncode))

    def _environment(self) -> dict[str, str]:
        """One thread, compiled programs in this worker's folder, and modules from its copy in place of the source."""
        given = [Path(path).absolute() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        paths = [self.root, *(path for path in given if path != self.source.absolute())]
        return {
            **os.environ,
            **ONE_THREAD,
            "JAX_COMPILATION_CACHE_DIR": str(self.cache / "jax"),
            "WARP_CACHE_PATH": str(self.cache / "warp"),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }


def warm_folder(work: Path) -> Path:
    """Folder of what the unchanged tree compiles."""
    return work / "warm"


def first_failure(output: str, code: int) -> str:
    """Which test failed, from pytest's output. Raises HealthError if pytest ran no test: that says nothing."""
    if found := re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE):
        return found[1]
    if code == 5 or "No module named pytest" in output:
        raise HealthError(f"no test ran, so nothing is known of the mutants: {output[-300:]}")
    return f"exit status {code}: {output.strip().splitlines()[-1][:200] if output.strip() else 'no output'}"
