"""Which OpenGL MuJoCo draws with where there is no display. Must run before mujoco is imported."""

from __future__ import annotations

import ctypes.util
import os


def choose_gl() -> str | None:
    """Set MUJOCO_GL to 'egl', else 'osmesa', if there is no display and it is unset; gives its value.

    None: neither library is there (or a display is); MuJoCo then tries its default.
    """
    if "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY"):
        for library, name in (("EGL", "egl"), ("OSMesa", "osmesa")):
            if ctypes.util.find_library(library):
                os.environ["MUJOCO_GL"] = name
                break
    return os.environ.get("MUJOCO_GL")
