"""Madrona's ray tracer (package gs-madrona): all environments in one call on an NVIDIA GPU, outside jit.

It works beside JAX only if it was built, and has drawn once, before JAX or Warp touch the GPU; later it dies with
CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES. So `MadronaRenderer` comes first in the process, before any environment or array,
and is the only one there: whoever needs pictures of other numbers of environments shares it (`shared`).
Facts about Madrona that are relied on were read in the sources of gs-madrona 0.0.11.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.params import FIELDS, EnvParams, Randomization
from mjx_so101.render.base import Array, Frames, Renderer, check_names_and_sizes, check_pictures, select, traced
from mjx_so101.render.looks import Looks
from mjx_so101.render.madrona_engine import Engine, gpu_user, missing_requirement
from mjx_so101.render.parts import InParts
from mjx_so101.render.poses import SceneKinematics
from mjx_so101.render.shading import background, repair_table
from mjx_so101.render.tessellate import drawn_geoms
from mjx_so101.scene import SceneConfig, load_visual_model
from mjx_so101.task import State

TILE = 8
"""Madrona draws squares of this many pixels and leaves out what is over at the right and at the bottom."""
PAINTED = tuple(name for name in FIELDS if name.startswith("light_") or name.endswith(("_color", "_texture")))
"""Looks that Madrona must be told anew where they change; camera poses it is told for every picture."""
_FIXED = "_fovy"  # ending of the looks that it takes only when it is built, the same for all environments

_NOT_DRAWN = ("visual", "acceleration_sensors")  # fields of a scene that no picture shows

__all__ = ["MadronaRenderer", "check_supported", "missing_requirement", "shared"]

_living: weakref.ref[MadronaRenderer] | None = None


class MadronaRenderer:
    """Ray-traced pictures with hard shadows. See `render.Renderer`.

    Not the same as the other backends: textures enter by their mean colour, there are no highlights, the sky is one
    colour, ambient light is 0.82 to 1.15 of MuJoCo's depending on where a face looks, and nothing is clipped near the
    camera. Looks follow the parameters of each state, except the field of view (see `check_supported`); colours that
    are not nominal are rounded to 8 bits of linear light.
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
        fixed_looks: bool = False,
        strict: bool = False,
    ):
        """Draws once, before anything of JAX.

        textures: True tints a surface with the mean colour of its texture, False draws the bare material; no pattern
        is drawn. specular: accepted for the sake of the other renderers; Madrona has no highlights.
        fixed_looks: draw all with the nominal colours and lights, whatever their parameters say; faster.
        strict: a picture of one colour raises HealthError.

        Raises ConfigError for an unknown camera, a size that is no multiple of 8 pixels, pictures that do not fit into
        memory, what this machine lacks (see `missing_requirement`), JAX or Warp having used the GPU already, or
        another MadronaRenderer that is not closed.
        """
        global _living
        self.cameras = _check_request(scene, cameras, width, height, num_envs)
        self.width, self.height, self.num_envs, self.strict = width, height, num_envs, strict
        missing = missing_requirement()
        if missing:
            raise ConfigError(f"renderer 'madrona' cannot be used: {missing}")
        _check_order()
        self.draws = {
            **_drawn(scene, width, height), "depth": depth, "segmentation": segmentation, "shadows": shadows,
            "textures": textures, "specular": specular, "fixed_looks": fixed_looks, "strict": strict,
        }  # fmt: skip
        """What it was asked to draw, by name."""
        self.model = model = load_visual_model(scene)
        self._depth, self._segmentation = depth, segmentation
        self._geoms = drawn_geoms(model)
        self._camera_ids = [model.camera(name).id for name in self.cameras]
        self._pending: jax.Array | None = None
        self._fixed_looks = fixed_looks
        self._painted: dict[str, Any] = {name: FIELDS[name].default for name in PAINTED}
        self._engine: Engine | None = Engine(
            model, self._geoms, self._camera_ids, (width, height, num_envs),
            shadows=shadows, textures=textures,
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
        qpos, params = select(state, envs, self.num_envs, self.name)
        poses = self._poses(qpos, params)
        # Madrona works in streams of its own: poses must be there, and the last pictures read, before it draws
        jax.block_until_ready((poses, self._pending))
        frames, self._pending = self._finish(*self._engine.draw(poses, self._new_looks(params)))
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

    def _new_looks(self, params: EnvParams) -> EnvParams | None:
        """`params` with what is to be painted as NumPy arrays, None if that is what was painted last."""
        if self._fixed_looks:
            return None
        looks = jax.device_get({name: getattr(params, name) for name in PAINTED})
        if all((looks[name] == self._painted[name]).all() for name in PAINTED):
            return None
        self._painted = looks
        return dataclasses.replace(params, **looks)

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


def shared(
    scene: SceneConfig,
    cameras: Sequence[str],
    width: int,
    height: int,
    num_envs: int,
    *,
    fixed_looks: bool = False,
    **options: Any,
) -> Renderer:
    """A renderer of `num_envs` environments: a new MadronaRenderer, or the one that is alive, drawing in parts.

    The first that asks builds it, with as many worlds as it has environments, and owns it: it lives as long as someone
    holds it, and only its owner's `close` ends it. Raises ConfigError as MadronaRenderer does, and naming what differs
    if the one that is alive draws something else.
    """
    living = _alive()
    if living is None:
        return MadronaRenderer(scene, cameras, width, height, num_envs, fixed_looks=fixed_looks, **options)
    wanted = {**_drawn(scene, width, height), **options}
    if not fixed_looks:  # one that follows looks also draws those that stay nominal
        wanted["fixed_looks"] = False
    other = {name: value for name, value in wanted.items() if living.draws[name] != value}
    other |= {} if set(cameras) <= set(living.cameras) else {"cameras": tuple(cameras)}
    if other:
        has = {**living.draws, "cameras": living.cameras}
        raise ConfigError(
            f"a MadronaRenderer is alive that draws {_listed({name: has[name] for name in other})}, and pictures of "
            f"{_listed(other)} are asked for; {_ONLY_ONE}"
        )
    return InParts(living, num_envs, cameras)


def check_supported(randomization: Randomization) -> None:
    """Raise ConfigError naming the looks that Madrona cannot draw anew each episode but `randomization` changes."""
    bad = randomization.varied(name for name in FIELDS if name.endswith(_FIXED))
    if bad:
        ranges = ", ".join(f'"{name}": [0, 0]' for name in bad)
        raise ConfigError(
            f"randomization {randomization.name!r} changes {', '.join(bad)}, which renderer 'madrona' takes only once, "
            "when it is built, the same for all environments; use renderer 'quad', or a JSON file of ranges that "
            f'leaves them alone, such as {{"base": "plain+looks", {ranges}}}.'
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
    scene: SceneConfig, cameras: Sequence[str], width: int, height: int, num_envs: int
) -> tuple[str, ...]:
    cameras = check_names_and_sizes(scene, cameras, width, height, num_envs)
    if width % TILE or height % TILE:
        raise ConfigError(f"picture size is {width} x {height}; renderer 'madrona' needs multiples of {TILE} pixels.")
    return cameras


_ONLY_ONE = (
    "a process can hold one. Draw the same pictures everywhere and share it (make_renderer does), draw some with "
    "renderer 'quad' (--renderer is the residual's, --base-renderer the base policy's), or close() it."
)


def _check_order() -> None:
    if _alive() is not None:
        raise ConfigError(f"a MadronaRenderer is alive already, and {_ONLY_ONE}")
    user = gpu_user()
    if user:
        raise ConfigError(
            f"{user} has been used already, and Madrona cannot start after it. Build the MadronaRenderer first thing "
            "in the process, before any environment, jax.devices() or array, and keep it: make_renderer shares it."
        )


def _alive() -> MadronaRenderer | None:
    """The MadronaRenderer of this process that is not closed."""
    living = None if _living is None else _living()
    return None if living is None or living._engine is None else living


def _drawn(scene: SceneConfig, width: int, height: int) -> dict[str, Any]:
    """What a picture depends on, by name."""
    fields = [field.name for field in dataclasses.fields(scene) if field.name not in _NOT_DRAWN]
    return {**{name: getattr(scene, name) for name in fields}, "width": width, "height": height}


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in values.items())
