"""What this machine offers: the JAX that fits its NVIDIA driver, and folders that keep compiled kernels.

Only the standard library is imported, so that the Makefile can run this file before anything is installed:
`python3 train/hardware.py extra` prints `cuda13`, `cuda12` or nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import re
import subprocess
import sys
import warnings
from pathlib import Path

CACHE_FOLDERS = {"JAX_COMPILATION_CACHE_DIR": "jax", "WARP_CACHE_PATH": "warp"}
JAX_MEMORY = 0.2
"""Share of a GPU that JAX takes beside a model in torch."""
DRIVER_HINT = "Install an NVIDIA driver of version 525 or newer (CUDA 12); 580 or newer is best (CUDA 13)."


@dataclasses.dataclass(frozen=True)
class GpuExtra:
    """Which extra of this package brings JAX onto the GPU here."""

    name: str
    """'cuda13', 'cuda12', or '' where JAX can only use the CPU."""
    warning: str = ""
    """Why a GPU that seems to be there cannot be used, and the fix; empty if there is nothing to say."""


def choose_gpu_extra() -> GpuExtra:
    """The extra that fits what `nvidia-smi` says of driver and GPUs. No `nvidia-smi` means no GPU and no warning.

    A driver for CUDA 13 or newer gives 'cuda13', unless a GPU is older than Turing (compute capability 7.5), which
    CUDA 13 no longer supports; one for CUDA 12 gives 'cuda12'; an older one gives '' and a warning.
    """
    try:
        header = _nvidia_smi()
    except FileNotFoundError:
        return GpuExtra("")
    except (OSError, subprocess.SubprocessError) as error:
        return GpuExtra("", f"nvidia-smi is there but failed, so JAX will use the CPU: {_reason(error)} {DRIVER_HINT}")
    # Drivers from 600 on write 'CUDA UMD Version'.
    found = re.search(r"CUDA(?: \w+)? Version\s*:\s*(\d+)\.(\d+)", header)
    if not found:
        return GpuExtra("", f"nvidia-smi names no CUDA version, so JAX will use the CPU. {DRIVER_HINT}")
    major, minor = int(found[1]), int(found[2])
    if major < 12:
        return GpuExtra("", f"the NVIDIA driver is for CUDA {major}.{minor}, so JAX will use the CPU. {DRIVER_HINT}")
    if major == 12 or any(capability < (7, 5) for capability in _compute_capabilities()):
        return GpuExtra("cuda12")
    return GpuExtra("cuda13")


def share_gpu(fraction: float | None = None) -> None:
    """Let JAX take only `fraction` of the GPU (default `JAX_MEMORY`), unless the environment says otherwise.

    Call it before JAX starts: it reserves three quarters of the GPU at once, and torch would find none.
    """
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(fraction or JAX_MEMORY)


def set_caches() -> dict[str, str]:
    """Let JAX and Warp keep what they compiled from one run to the next. Call it before either is imported.

    Sets JAX_COMPILATION_CACHE_DIR and WARP_CACHE_PATH where they are unset, to folders under `~/.cache/mjx_so101`
    (or `$XDG_CACHE_HOME/mjx_so101`), one per kind of processor: Warp compiles for the processor it runs on, and
    homes are shared between machines. Returns both variables as they now stand.
    Warns if the folder cannot be written or the call comes too late.
    """
    missing = [name for name in CACHE_FOLDERS if name not in os.environ]
    late = sorted({"jax", "warp"} & sys.modules.keys())
    if missing and late:
        warnings.warn(f"compile caches stay off: {' and '.join(late)} was imported before set_caches().", stacklevel=2)
        missing = []
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mjx_so101" / _processor()
    for name in missing:
        folder = root / CACHE_FOLDERS[name]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            warnings.warn(f"no compile cache: {error}. Set {name} to a folder that can be written.", stacklevel=2)
        else:
            os.environ[name] = str(folder)
    return {name: os.environ.get(name, "") for name in CACHE_FOLDERS}


def _nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi prints. Raises FileNotFoundError, another OSError or SubprocessError."""
    command = ["nvidia-smi", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=True).stdout


def _compute_capabilities() -> list[tuple[int, int]]:
    """Compute capability of each GPU; empty where nvidia-smi is too old to tell."""
    try:
        listed = _nvidia_smi("--query-gpu=compute_cap", "--format=csv,noheader")
    except (OSError, subprocess.SubprocessError):
        return []
    return [(int(major), int(minor)) for major, minor in re.findall(r"^\s*(\d+)\.(\d+)\s*$", listed, re.MULTILINE)]


def _reason(error: Exception) -> str:
    """One line about a failed nvidia-smi: what it printed, else the error itself."""
    printed = f"{getattr(error, 'stdout', None) or ''}\n{getattr(error, 'stderr', None) or ''}".split("\n")
    return next((line.strip() for line in printed if line.strip()), f"{error}.")


def _processor() -> str:
    """Architecture and a hash of the instruction sets, such as 'x86_64-1a2b3c4d'."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def main() -> int:
    """`python3 train/hardware.py extra`: print the extra to install, warnings on stderr."""
    if sys.argv[1:] != ["extra"]:
        print("usage: python3 train/hardware.py extra", file=sys.stderr)
        return 2
    choice = choose_gpu_extra()
    if choice.warning:
        print(f"warning: {choice.warning}", file=sys.stderr)
    print(choice.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
