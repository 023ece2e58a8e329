"""`so101 doctor`: what this machine has, and the one fix for each thing that is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

_OPTIONAL = ("torch", "gs-madrona")
"""Packages of extras; checks of their own say what they are for."""


class Finding(NamedTuple):
    """One line of the diagnosis; `fix` is empty where all is well."""

    what: str
    found: str
    fix: str = ""


def diagnose() -> int:
    """Print the findings; 0 if nothing is wrong, else 1."""
    wrong = 0
    for check in (_versions, _devices, _memory, _caches, _renderers, _models, _assets, _disk):
        for finding in _guarded(check):
            mark = "ok " if not finding.fix else "!! "
            print(f"{mark}{finding.what}: {finding.found}")
            if finding.fix:
                wrong += 1
                print(f"     fix: {finding.fix}")
    print("All is well." if not wrong else f"{wrong} thing(s) to fix.")
    return 1 if wrong else 0


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that itself fails is a finding, too."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(
            check.__name__.strip("_"), f"{type(error).__name__}: {error}", "reinstall: make clean && make test"
        )


def _versions() -> Iterator[Finding]:
    from train.provenance import versions

    found = versions()
    missing = [name for name, version in found.items() if version == "not installed" and name not in _OPTIONAL]
    fix = f"pip install {' '.join(missing)}" if missing else ""
    yield Finding("versions", ", ".join(f"{name} {version}" for name, version in found.items()), fix)


def _devices() -> Iterator[Finding]:
    import jax

    from train.hardware import choose_gpu_extra

    devices = ", ".join(f"{d.platform} {d.device_kind}" for d in jax.devices())
    extra = choose_gpu_extra()
    fix = extra.warning
    if not fix and extra.name and jax.default_backend() != "gpu":
        fix = f"the GPU is unused: pip install -e '.[{extra.name}]'"
    yield Finding("devices", devices, fix)


def _memory() -> Iterator[Finding]:
    import jax

    preallocate = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", os.environ.get("XLA_CLIENT_MEM_FRACTION", "0.75"))
    if jax.default_backend() == "gpu":
        yield Finding("GPU memory", f"JAX takes {fraction} of it at the start (preallocate={preallocate})")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield Finding(
        "memory", f"{free:.1f} GiB free", "close other programs: training needs about 3 GiB" if free < 3 else ""
    )


def _caches() -> Iterator[Finding]:
    from pathlib import Path

    for name in ("JAX_COMPILATION_CACHE_DIR", "WARP_CACHE_PATH"):
        folder = os.environ.get(name)
        if not folder:
            yield Finding(name, "not set", "run through the so101 command, or set it to a folder that stays")
            continue
        Path(folder).mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
        yield Finding(name, folder, "" if writable else f"make it writable, or set {name} to a folder that is")


def _renderers() -> Iterator[Finding]:
    if _missing_assets():
        return  # nothing to draw; _assets says so
    from mjx_so101.errors import ConfigError
    from mjx_so101.render.mujoco import MujocoRenderer

    try:
        renderer = MujocoRenderer(width=64, height=48)
        picture = renderer.picture(renderer.model.qpos0)
        fix = "" if picture.std() > 0 else "the picture is blank: update the OpenGL driver, or set MUJOCO_GL=osmesa"
        yield Finding("renderer mujoco", f"MUJOCO_GL={os.environ.get('MUJOCO_GL', 'glfw')}", fix)
    except ConfigError as error:
        yield Finding("renderer mujoco", "cannot draw", str(error))
    from mjx_so101.render.madrona import missing_requirement

    yield Finding("renderer madrona (optional)", missing_requirement() or "ready")


def _models() -> Iterator[Finding]:
    for base, extra, packages in (
        ("groot", "groot", ("torch", "safetensors")),
        ("remote", "remote", ("pyzmq", "msgpack")),
    ):
        try:
            found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        except importlib.metadata.PackageNotFoundError as error:
            found = f"{error.name} is missing: pip install -e '.[{extra}]'"
        yield Finding(f"base {base} (optional)", found)


def _missing_assets() -> str:
    from mjx_so101.errors import ConfigError
    from mjx_so101.scene import assets_dir

    try:
        assets_dir()
    except ConfigError as error:
        return str(error)
    return ""


def _assets() -> Iterator[Finding]:
    from mjx_so101.scene import assets_dir

    error = _missing_assets()
    fix = "reinstall the package, or set SO101_ASSETS to the folder that holds so101.xml and desk.xml"
    yield Finding("assets", error or str(assets_dir()), fix if error else "")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 2**30
    yield Finding("disk", f"{free:.1f} GiB free here", "free some space: a run needs about 0.1 GiB" if free < 1 else "")
