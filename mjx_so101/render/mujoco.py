"""MuJoCo's own OpenGL renderer: one state at a time, the reference for tests and videos. Needs no display."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import jax
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.render.base import Array, Frames, check_pictures, check_request, select, traced
from mjx_so101.render.looks import Looks
from mjx_so101.scene import SceneConfig, load_visual_model
from mjx_so101.task import State


class MujocoRenderer:
    """OpenGL pictures, drawn one by one on the host. See `render.Renderer`.

    `picture` draws a single qpos and also knows the free view 'scene'.
    """

    name = "mujoco"
    jittable = False

    def __init__(
        self,
        scene: SceneConfig | None = None,
        cameras: Sequence[str] = ("top",),
        width: int = 320,
        height: int = 240,
        num_envs: int = 1,
        *,
        depth: bool = False,
        segmentation: bool = False,
        shadows: bool = True,
        textures: bool = True,
        specular: bool = True,
        smooth: bool = False,
        strict: bool = False,
    ):
        """smooth: smoothed edges, as for videos; off, because no other renderer smooths.

        Raises ConfigError for an unknown camera, a size < 1, or if no OpenGL library that works without a display is
        found.
        """
        import mujoco

        scene = scene or SceneConfig()
        self.cameras = check_request(scene, cameras, width, height, num_envs)
        self.width, self.height, self.num_envs, self.strict = width, height, num_envs, strict
        self.model = model = load_visual_model(scene)
        self._depth, self._segmentation, self._textures = depth, segmentation, textures
        looks = Looks(model)
        self._looks, self._nominal = jax.jit(jax.vmap(looks)), looks.nominal
        self._data = mujoco.MjData(model)
        self._shadows = shadows
        if not shadows:
            model.light_castshadow[:] = 0
        if not specular:
            model.mat_specular[:] = 0
        if not smooth:
            model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:
            if "framebuffer" in str(error):
                raise ConfigError(f"OpenGL here cannot draw {width} x {height} pixels ({error}).") from error
            raise ConfigError(
                f"MuJoCo cannot draw here ({error}). Install a library for drawing without a display (Debian/Ubuntu: "
                "apt-get install libegl1, or libosmesa6) and set MUJOCO_GL=egl or MUJOCO_GL=osmesa."
            ) from error
        self._close = weakref.finalize(self, self._renderer.close)  # also before the interpreter takes OpenGL down

    def picture(self, qpos: np.ndarray, camera: str = "top") -> np.ndarray:
        """uint8 [height, width, 3] sRGB of qpos [nq] from a camera of the model, or 'scene' for a free view of all."""
        self._check_open()
        self._set_looks(self._nominal)
        self._place(qpos)
        self._renderer.update_scene(self._data, free_camera() if camera == "scene" else camera)
        return self._renderer.render()

    def render(self, state: State, envs: jax.Array | None = None) -> Array:
        """See `Renderer.render`."""
        return self.frames(state, envs).rgb

    def frames(self, state: State, envs: jax.Array | None = None) -> Frames:
        """See `Renderer.frames`."""
        if traced(state, envs):
            raise ConfigError("renderer 'mujoco' runs on the host and cannot be traced inside jit; use 'quad' there.")
        self._check_open()
        qpos, params = jax.tree.map(np.asarray, select(state, envs, self.num_envs, self.name))
        fields = jax.tree.map(np.asarray, self._looks(params))
        shape = (self.num_envs, len(self.cameras), self.height, self.width)
        rgb = np.zeros((*shape, 3), np.uint8)
        depth = np.zeros(shape, np.float32) if self._depth else None
        segmentation = np.full(shape, -1, np.int32) if self._segmentation else None
        for env in range(self.num_envs):
            self._set_looks({name: value[env] for name, value in fields.items()})
            self._place(qpos[env])
            for i, camera in enumerate(self.cameras):
                self._renderer.update_scene(self._data, camera)
                rgb[env, i] = self._renderer.render()
                if depth is not None:
                    depth[env, i] = self._drawn_depth()
                if segmentation is not None:
                    segmentation[env, i] = self._drawn_segmentation()
        if self.strict:
            check_pictures(rgb, self.cameras)
        return Frames(rgb, depth, segmentation)

    def close(self) -> None:
        """Free the OpenGL context."""
        self._close()

    def _check_open(self) -> None:
        if not self._close.alive:
            raise ConfigError("this MujocoRenderer is closed; build another.")

    def _place(self, qpos: np.ndarray) -> None:
        import mujoco

        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self._data)
        mujoco.mj_comPos(self.model, self._data)
        mujoco.mj_camlight(self.model, self._data)

    def _set_looks(self, fields: dict[str, np.ndarray]) -> None:
        import mujoco

        for name, value in fields.items():
            if name == "light_castshadow" and not self._shadows:
                continue
            getattr(self.model, name)[:] = value
        role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
        textures = fields["mat_texid"] if self._textures else np.full_like(fields["mat_texid"], -1)
        self._renderer._mjr_context.mat_texid[: textures.size] = textures.ravel()  # the context keeps a copy of these
        self.model.mat_texid[:, role] = textures[:, role]

    def _drawn_depth(self) -> np.ndarray:
        self._renderer.enable_depth_rendering()
        depth = self._renderer.render()
        self._renderer.disable_depth_rendering()
        far = self.model.vis.map.zfar * self.model.stat.extent
        return np.where(depth < 0.99 * far, depth, 0.0)

    def _drawn_segmentation(self) -> np.ndarray:
        import mujoco

        self._renderer.enable_segmentation_rendering()
        found = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        return np.where(found[..., 1] == mujoco.mjtObj.mjOBJ_GEOM, found[..., 0], -1)


def free_camera():
    """A view from in front of the robot that shows arm, sheet and tape."""
    import mujoco

    camera = mujoco.MjvCamera()
    camera.lookat[:] = (0.20, 0.10, 0.06)
    camera.distance, camera.azimuth, camera.elevation = 0.62, 205.0, -30.0
    return camera
