"""Where a number comes from: command, commit, sources, device, driver, versions and time. Every record carries it."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax

ROOT = Path(__file__).resolve().parent.parent
STAMP = ".commit.json"
"""File that `python -m bench.pack` leaves in the root of a copy without git; SO101_COMMIT_FILE names another."""
FOLDERS = ("assets", "bench", "mjx_so101", "policies", "train")
SUFFIXES = (".py", ".toml", ".xml")
_PACKAGES = (
    "mjx-so101", "jax", "jaxlib", "mujoco", "mujoco-mjx", "warp-lang", "brax", "flax", "optax", "numpy", "torch",
    "gs-madrona",
)  # fmt: skip


class Source(NamedTuple):
    """The code that ran."""

    commit: str
    """40 hex digits, or 'unknown' where neither git nor a stamp names it."""
    dirty: bool | None
    """Whether the sources differ from those of the commit; None if it is unknown."""
    source_sha256: str
    """Hash over the sources as found on disk."""


@functools.cache
def source() -> Source:
    """The code of this process, as it was on disk at the first call."""
    return source_of(ROOT)


def source_of(root: Path) -> Source:
    """The code in `root`: its commit from a stamp that fits what is on disk, else from git.

    A copy may lie in a repository of another's making, so a stamp that fits counts first; one that does not fit is of
    an earlier copy, and counts (as dirty) only where there is no git.
    """
    digest = hash_of(read_sources(root))
    stamped = _stamp(root)
    if stamped and stamped.source_sha256 == digest:
        return stamped
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() == root.resolve():
            return Source(_git(root, "rev-parse", "HEAD"), is_dirty(root), digest)
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no checkout
    return Source(stamped.commit, True, digest) if stamped else Source("unknown", None, digest)


def _stamp(root: Path) -> Source | None:
    """What `python -m bench.pack` wrote beside the copy, if it did."""
    path = Path(os.environ.get("SO101_COMMIT_FILE") or root / STAMP)
    if not path.is_file():
        return None
    try:
        stamp = json.loads(path.read_text())
        found = Source(stamp["commit"], bool(stamp["dirty"]), stamp["source_sha256"])
        if not re.fullmatch("[0-9a-f]{40}", found.commit):
            raise ValueError(f"commit is {found.commit!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} names no commit ({error}); write it with python -m bench.pack --stamp.", stacklevel=3)
        return None
    return found


def is_dirty(root: Path) -> bool:
    """Whether git finds sources in `root` that are changed, or that no commit has."""
    patterns = [f":(glob){folder}/**/*{suffix}" for folder in FOLDERS for suffix in SUFFIXES]
    return bool(_git(root, "status", "--porcelain", "--untracked-files=all", "--", *patterns, "pyproject.toml"))


def is_source(name: str) -> bool:
    """Whether a file, named from the root, is part of what is measured: code and models, not tests or results."""
    return name == "pyproject.toml" or (name.split("/")[0] in FOLDERS and name.endswith(SUFFIXES))


def read_sources(root: Path) -> dict[str, bytes]:
    """The sources on disk by name."""
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    names = {path.relative_to(root).as_posix(): path for path in [*found, root / "pyproject.toml"] if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if is_source(name)}


def hash_of(files: dict[str, bytes]) -> str:
    """sha256 over names and contents."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return total.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that make the numbers."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device() -> str:
    """What JAX computes on, in words."""
    first = jax.devices()[0]
    return first.device_kind if first.platform != "cpu" else f"CPU, {_cores()} cores, {_cpu_name()}"


def prefix_of(device: str) -> str:
    """First part of the names of headline figures: 'cpu', 'h100', 'h200', or the device's name as a word."""
    for known in ("cpu", "h100", "h200"):
        if re.search(rf"\b{known}\b", device.lower()):
            return known
    return "_".join(re.findall("[a-z0-9]+", device.lower()))


def driver() -> str | None:
    """Version of the NVIDIA driver, or None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def commit_in_words(record: dict[str, Any]) -> str:
    """The commit of a record for readers, and whether the code differed from it."""
    return f"commit {record['commit']}" + (" with uncommitted changes" if record["dirty"] else "")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def command() -> str:
    """The command line that runs, as a user would type it."""
    words = sys.orig_argv
    if "-m" in words[1:3]:
        module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        return shlex.join([*(["so101"] if module == "train.cli" else ["python", "-m", module]), *rest])
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def provenance(computed_on: str | None = None) -> dict[str, Any]:
    """What every recorded number carries. computed_on: the device, if another process computed (JAX then need not
    start in this one, where it would take memory of the GPU)."""
    return {
        "command": command(),
        **source()._asdict(),
        "device": computed_on or device(),
        "driver": driver(),
        "versions": versions(),
        "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
