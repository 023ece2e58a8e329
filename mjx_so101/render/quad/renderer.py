"""The renderer `quad`: NVIDIA Warp kernels made for this scene, called from JAX inside jit, on a GPU or on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_so101.render import base
from mjx_so101.render.base import Frames, check_fits
from mjx_so101.render.in_jit import InJit
from mjx_so101.render.looks import MAIN_LIGHT
from mjx_so101.render.quad.draw import Picture
from mjx_so101.render.quad.program import device_of_jax, make_program
from mjx_so101.render.quad.surfaces import RECTANGLE, surfaces_of
from mjx_so101.render.quad.textures import load_textures
from mjx_so101.scene import SceneConfig


class QuadRenderer(InJit):
    """Pictures of flat and round surfaces and of meshes, with shadows, textures and looks of each environment.

    Every surface is tried by formula, in the tiles of the picture that it can touch, see `maths`, `tiles` and `draw`.
    Meshes are shaded flat, each triangle by its own normal; the coarse robot's boxes cast their shadows. Pictures of
    the official meshes, 48 random states at 64 x 64, differ from `warp`'s of the same triangles by 0.2 (top) and 0.6
    (wrist) of 255 without shadows, where `warp` rounds the edges, and by 0.6 and 1.7 with shadows.
    See `render.Renderer`.
    """

    name = "quad"

    def __init__(
        self,
        scene: SceneConfig,
        cameras: Sequence[str],
        width: int,
        height: int,
        num_envs: int,
        *,
        depth: bool = False,
        segmentation: bool = False,
        shadows: bool = True,
        textures: bool = True,
        specular: bool = True,
        fixed_looks: bool = False,
        strict: bool = False,
    ):
        """specular: materials with highlights are refused; False leaves the highlights out.
        fixed_looks: draw all environments with the nominal looks, whatever their parameters say.
        strict: a picture of one colour raises HealthError when `render` is called from the host.

        Raises ConfigError for an unknown camera, a size < 1, pictures that do not fit into memory, or a scene that
        holds something without a formula here.
        """
        super().__init__(scene, cameras, width, height, num_envs, fixed_looks, strict)
        model = self.model
        self._surfaces = surfaces = surfaces_of(model, specular)
        self._camera_ids = np.array([model.camera(name).id for name in self.cameras])
        self._lamp = model.light(MAIN_LIGHT).id
        sky = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
        self._picture = Picture(
            width=width, height=height, cameras=len(self.cameras), flats=len(surfaces.flat.geom),
            ground=surfaces.ground_flat, rounds=len(surfaces.round.geom), triangles=len(surfaces.triangles.geom),
            casters=len(surfaces.casters.geom), shaded=len(surfaces.shaded.geom),
            shaped=bool((surfaces.flat.outline != RECTANGLE).any()), shadows=shadows, textures=textures,
            sky=int(sky[0]) if len(sky) else -1, depth=depth, segmentation=segmentation,
        )  # fmt: skip
        bytes_per_pixel = math.ceil(self._picture.bytes_per_frame / (width * height))
        check_fits(len(self.cameras), width, height, num_envs, bytes_per_pixel, base.available_memory())
        self._textures = load_textures(model, device_of_jax())  # must live as long as compiled code that uses them
        self._call = make_program(self._picture, surfaces, model, num_envs, self._textures)

    def close(self) -> None:
        """Nothing to do: the buffers are JAX's."""

    def _draw(self, qpos: jax.Array, params) -> Frames:
        fields, poses = self._posed(qpos, params)
        if self._fixed is not None:
            fields = jax.tree.map(lambda field: field[None], fields)
        geoms, cams, lamp = self._surfaces.geoms, self._camera_ids, self._lamp
        sun = -poses.light_xdir[:, lamp]
        ambient = jnp.asarray(_head_ambient(self.model)) + fields["light_ambient"][:, lamp]
        drawn = self._call(
            poses.geom_xpos[:, geoms],
            poses.geom_xmat[:, geoms],
            poses.cam_xpos[:, cams],
            poses.cam_xmat[:, cams],
            fields["cam_fovy"][:, cams],
            sun / jnp.linalg.norm(sun, axis=-1, keepdims=True),
            fields["light_castshadow"][:, lamp],
            ambient,
            fields["light_diffuse"][:, lamp],
            fields["mat_rgba"][..., :3],
            fields["mat_texid"][..., int(mujoco.mjtTextureRole.mjTEXROLE_RGB)],
        )
        rgb, depth, segmentation = drawn[:3]
        shape = (self.num_envs, len(self.cameras), self.height, self.width)
        return Frames(
            rgb.reshape(*shape, 3),
            depth.reshape(shape) if self._picture.depth else None,
            segmentation.reshape(shape) if self._picture.segmentation else None,
        )


def _head_ambient(model: mujoco.MjModel) -> np.ndarray:
    head = model.vis.headlight
    return np.asarray(head.ambient if head.active else np.zeros(3), np.float32)
