"""MuJoCo's own renderer: one state at a time, the reference for pictures and videos. Needs no display."""

from __future__ import annotations

import copy

import numpy as np

from mjx_so101.errors import ConfigError


class MujocoRenderer:
    """Draws states of one model with OpenGL."""

    def __init__(self, model, width: int = 320, height: int = 240, draft: bool = False):
        """model: from load_model(); width, height in pixels; draft: no shadows and no smoothing, much faster.

        Raises ConfigError for a size < 1, or if no OpenGL library for drawing without a display is found.
        """
        import mujoco

        if width < 1 or height < 1:
            raise ConfigError(f"picture size is {width} x {height}; width and height must be at least 1 pixel.")
        self._model = model = copy.copy(model)
        self._data = mujoco.MjData(model)
        if draft:
            model.light_castshadow[:] = 0
            model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:
            raise ConfigError(
                f"MuJoCo cannot draw here ({error}). Install a library for drawing without a display (Debian/Ubuntu: "
                "apt-get install libegl1, or libosmesa6) and set MUJOCO_GL=egl or MUJOCO_GL=osmesa."
            ) from error

    def render(self, qpos: np.ndarray, camera: str = "top") -> np.ndarray:
        """uint8 [height, width, 3] sRGB of qpos [9] from a camera of the model, or 'scene' for a free view of all."""
        import mujoco

        self._data.qpos[:] = qpos
        mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, free_camera() if camera == "scene" else camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


def free_camera():
    """A view from in front of the robot that shows arm, sheet and tape."""
    import mujoco

    camera = mujoco.MjvCamera()
    camera.lookat[:] = (0.20, 0.10, 0.06)
    camera.distance, camera.azimuth, camera.elevation = 0.62, 205.0, -30.0
    return camera
