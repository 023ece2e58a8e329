"""Madrona's ray tracer (package gs-madrona): all environments in one call on an NVIDIA GPU, outside jit.

It works beside JAX only if it was built, and has drawn once, before JAX or Warp touch the GPU; later it dies with
CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES. So `MadronaRenderer` comes first in the process, before any environment or array.
Facts about Madrona that are relied on were read in the sources of gs-madrona 0.0.11.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.params import FIELDS, EnvParams, Randomization
from mjx_so101.render.base import Array, Frames, check_names_and_sizes, check_pictures, select, traced
from mjx_so101.render.looks import Looks
from mjx_so101.render.madrona_engine import Engine, gpu_user, missing_requirement
from mjx_so101.render.poses import SceneKinematics
from mjx_so101.render.shading import background, repair_table
from mjx_so101.render.tessellate import drawn_geoms
from mjx_so101.scene import SceneConfig, load_visual_model
from mjx_so101.task import State

TILE = 8
"""Madrona draws squares of this many pixels and leaves out what is over at the right and at the bottom."""
_FIXED = ("_color", "_texture", "_fovy")  # endings of the looks that are set at the start; `light_...` too

__all__ = ["MadronaRenderer", "check_supported", "missing_requirement"]

_living: weakref.ref[MadronaRenderer] | None = None


class MadronaRenderer:
    """Ray-traced pictures with hard shadows. See `render.Renderer`.

    Not the same as the other backends: textures enter by their mean colour, there are no highlights, the sky is one
    colour, ambient light is 0.82 to 1.15 of MuJoCo's depending on where a face looks, and nothing is clipped near the
    camera. Camera poses follow the parameters of each state; colours, lights and field of view are fixed at the start
    (see `check_supported`).
    """

    name = "madrona"
    jittable = False

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
        strict: bool = False,
        looks: EnvParams | None = None,
    ):
        """Draws once, before anything of JAX.

        textures: True tints a surface with the mean colour of its texture, False draws the bare material; no pattern
        is drawn. specular: accepted for the sake of the other renderers; Madrona has no highlights.
        strict: a picture of one colour raises HealthError.
        looks: EnvParams of NumPy arrays [num_envs, ...]: colours, textures and lights of each environment for the life
        of the renderer; None draws all with the nominal ones.

        Raises ConfigError for an unknown camera, a size that is no multiple of 8 pixels, pictures that do not fit into
        memory, what this machine lacks (see `missing_requirement`), JAX or Warp having used the GPU already, or
        another MadronaRenderer that is not closed.
        """
        global _living
        self.cameras = _check_request(scene, cameras, width, height, num_envs, looks)
        self.width, self.height, self.num_envs, self.strict = width, height, num_envs, strict
        missing = missing_requirement()
        if missing:
            raise ConfigError(f"renderer 'madrona' cannot be used: {missing}")
        _check_order()
        self.model = model = load_visual_model(scene)
        self._depth, self._segmentation = depth, segmentation
        self._geoms = drawn_geoms(model)
        self._camera_ids = [model.camera(name).id for name in self.cameras]
        self._pending: jax.Array | None = None
        self._engine: Engine | None = Engine(
            model, self._geoms, self._camera_ids, (width, height, num_envs),
            shadows=shadows, textures=textures, looks=looks,
        )  # fmt: skip
        _living = weakref.ref(self)
        # from here on JAX may be used
        if jax.default_backend() != "gpu":
            self.close()
            raise ConfigError(
                "renderer 'madrona' hands pictures to JAX on the GPU, but JAX runs on the "
                f"{jax.default_backend()}; pip install -e '.[cuda13]' (or cuda12) and leave JAX_PLATFORMS unset."
            )
        self._looks, self._kinematics = Looks(model), SceneKinematics(model)
        self._poses, self._finish = jax.jit(self._placed), jax.jit(self._finished)

    def render(self, state: State, envs: jax.Array | None = None) -> Array:
        """See `Renderer.render`."""
        return self.frames(state, envs).rgb

    def frames(self, state: State, envs: jax.Array | None = None) -> Frames:
        """See `Renderer.frames`."""
        if self._engine is None:
            raise ConfigError("this MadronaRenderer is closed; build another first thing in a new process.")
        if traced(state, envs):
            raise ConfigError("renderer 'madrona' cannot be traced inside jit; call it between steps, or use 'quad'.")
        poses = self._poses(*select(state, envs, self.num_envs, self.name))
        # Madrona works in streams of its own: poses must be there, and the last pictures read, before it draws
        jax.block_until_ready((poses, self._pending))
        frames, self._pending = self._finish(*self._engine.draw(poses))
        if self.strict:
            check_pictures(frames.rgb, self.cameras)
        return frames

    def close(self) -> None:
        """Free Madrona's memory. Pictures already drawn stay valid."""
        global _living
        if self._engine is not None:
            jax.block_until_ready(self._pending)
            self._engine.close()
            self._engine = None
        if _living is not None and _living() is self:
            _living = None

    def _placed(self, qpos: jax.Array, params: EnvParams) -> tuple[jax.Array, ...]:
        """Geom positions and quaternions, camera positions and quaternions, [env, ...] float32."""
        poses = jax.vmap(self._kinematics)(qpos, jax.vmap(self._looks)(params))
        geoms, cams = np.array(self._geoms), np.array(self._camera_ids)
        return (
            poses.geom_xpos[:, geoms],
            quaternion(poses.geom_xmat[:, geoms]),
            poses.cam_xpos[:, cams],
            y_forward(quaternion(poses.cam_xmat[:, cams])),
        )

    def _finished(self, rgb: jax.Array, depth: jax.Array, segment: jax.Array) -> tuple[Frames, jax.Array]:
        """Frames in arrays of their own, and a number that is ready once Madrona's buffers have been read."""
        segment = segment[..., 0]
        empty = segment < 0
        colors = jnp.asarray(repair_table())[rgb[..., :3].astype(jnp.int32)]
        colors = jnp.where(empty[..., None], jnp.asarray(background(self.model)), colors)
        along_axis = jnp.where(empty, 0.0, depth[..., 0]) * jnp.asarray(self._axis_shares())
        geoms = jnp.where(empty, -1, jnp.asarray(self._geoms, jnp.int32)[jnp.maximum(segment, 0)])
        frames = Frames(colors, along_axis if self._depth else None, geoms if self._segmentation else None)
        return frames, segment[0, 0, 0, 0]

    def _axis_shares(self) -> np.ndarray:
        """[camera, height, width] depth along the optical axis over the ray's length, which is what Madrona gives."""
        up = np.tan(np.radians(self.model.cam_fovy[self._camera_ids]) / 2)[:, None, None]  # [camera, 1, 1]
        y = up * ((np.arange(self.height) + 0.5) / self.height * 2 - 1)[:, None]
        x = up * self.width / self.height * ((np.arange(self.width) + 0.5) / self.width * 2 - 1)
        return (1 / np.sqrt(1 + x**2 + y**2)).astype(np.float32)


def check_supported(randomization: Randomization) -> None:
    """Raise ConfigError naming the looks that Madrona cannot draw anew each episode but `randomization` changes."""
    looks = [name for name, field in FIELDS.items() if field.group == "look"]
    bad = randomization.varied(name for name in looks if name.startswith("light_") or name.endswith(_FIXED))
    if bad:
        raise ConfigError(
            f"randomization {randomization.name!r} changes {', '.join(bad)}, which renderer 'madrona' takes only once, "
            "when it is built; use renderer 'quad', or leave these fields at their defaults."
        )


def y_forward(quat: jax.Array) -> jax.Array:
    """MuJoCo's camera quaternion [..., 4] (looks along -z, y up) as one that looks along y, z up."""
    w, x, y, z = jnp.moveaxis(quat, -1, 0)
    return jnp.stack([x + w, x - w, y - z, y + z], -1) * np.float32(np.sqrt(0.5))


def quaternion(matrix: jax.Array) -> jax.Array:
    """Unit quaternion [..., 4], w first, of rotation matrices [..., 3, 3]."""
    (a, b, c), (d, e, f), (g, h, i) = (jnp.moveaxis(row, -1, 0) for row in jnp.moveaxis(matrix, -2, 0))
    rows = (  # 4 q q^T
        (1 + a + e + i, h - f, c - g, d - b),
        (h - f, 1 + a - e - i, b + d, c + g),
        (c - g, b + d, 1 - a + e - i, f + h),
        (d - b, c + g, f + h, 1 - a - e + i),
    )
    outer = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    largest = jnp.argmax(jnp.diagonal(outer, axis1=-2, axis2=-1), -1)  # the row with the least rounding
    row = jnp.take_along_axis(outer, largest[..., None, None], -2)[..., 0, :]
    return row / jnp.linalg.norm(row, axis=-1, keepdims=True)


def _check_request(
    scene: SceneConfig, cameras: Sequence[str], width: int, height: int, num_envs: int, looks: EnvParams | None
) -> tuple[str, ...]:
    cameras = check_names_and_sizes(scene, cameras, width, height, num_envs)
    if width % TILE or height % TILE:
        raise ConfigError(f"picture size is {width} x {height}; renderer 'madrona' needs multiples of {TILE} pixels.")
    if looks is not None and len(looks.table_color) != num_envs:
        raise ConfigError(f"looks are of {len(looks.table_color)} environments; num_envs is {num_envs}.")
    return cameras


def _check_order() -> None:
    if _living is not None and (other := _living()) is not None and other._engine is not None:
        raise ConfigError("a MadronaRenderer is alive already, and a process can hold one; share it, or close() it.")
    user = gpu_user()
    if user:
        raise ConfigError(
            f"{user} has been used already, and Madrona cannot start after it. Build the MadronaRenderer first thing "
            "in the process, before any environment, jax.devices() or array; `looks` must be NumPy arrays."
        )
