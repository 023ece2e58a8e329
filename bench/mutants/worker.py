"""A worker of a mutation run: a copy of the tree, in which it runs test files with one mutant after the other."""

from __future__ import annotations

import contextlib
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
FILES = ("pyproject.toml", "README.md", "LICENSE", "Makefile", ".commit.json")
ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=1 --xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "--no-header")


class Worker:
    """A copy of the tree on a core of its own, with a folder of its own for what its tests compile."""

    def __init__(self, source: Path, work: Path, index: int, pinned: bool = True):
        """Copies the tree `source` to a folder under `work`, with what other workers have kept there."""
        self.source, self.root, self.warm = source, work / f"tree{index}", work / "warm"
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._core = {cores[index % len(cores)]} if pinned and cores else None
        shutil.rmtree(self.root, ignore_errors=True)
        for name in FOLDERS:
            if (source / name).exists():
                shutil.copytree(source / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
        for name in FILES:
            if (source / name).exists():
                shutil.copy(source / name, self.root / name)
        _link_files(self.warm, self.root / ".cache")

    def keep_compiled(self) -> None:
        """Let later workers begin with what this one has compiled."""
        _link_files(self.root / ".cache", self.warm)

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
        """One thread, modules from the copy, and inside it (where tests keep theirs too) what is compiled."""
        given = [Path(path).absolute() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        paths = [self.root, *(path for path in given if path != self.source.absolute())]
        return {
            **os.environ,
            **ONE_THREAD,
            "XDG_CACHE_HOME": str(self.root / ".cache"),
            "JAX_COMPILATION_CACHE_DIR": str(self.root / ".cache" / "jax"),
            "WARP_CACHE_PATH": str(self.root / ".cache" / "warp"),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }


def _link_files(source: Path, target: Path) -> None:
    """Hard links in `target` to the files of `source` that it lacks. Caches are never written in place."""
    for file in source.rglob("*"):
        link = target / file.relative_to(source)
        if file.is_file() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another worker was faster
                os.link(file, link)


def first_failure(output: str, code: int) -> str:
    """Which test failed, from pytest's output. Raises HealthError if pytest ran no test: that says nothing."""
    if found := re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE):
        return found[1]
    if code == 5 or "No module named pytest" in output:
        raise HealthError(f"no test ran, so nothing is known of the mutants: {output[-300:]}")
    return f"exit status {code}: {output.strip().splitlines()[-1][:200] if output.strip() else 'no output'}"
