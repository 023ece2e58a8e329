"""What all renderers share: the protocol, the checks of what is asked of them, and of what they drew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.errors import ConfigError, HealthError
from mjx_so101.params import EnvParams
from mjx_so101.scene import SceneConfig
from mjx_so101.task import State

Array = jax.Array | np.ndarray
"""On the device where the renderer works there, else on the host."""


class Frames(NamedTuple):
    """Pictures of a batch; row 0 is the top of the image, column 0 its left."""

    rgb: Array  # uint8 [env, camera, height, width, 3] sRGB
    depth: Array | None = None  # float32 [env, camera, height, width] m along the optical axis, 0 where empty
    segmentation: Array | None = None  # int32 [env, camera, height, width] geom id of the model, -1 where empty


class Renderer(Protocol):
    """Draws `num_envs` environments at once with every one of `cameras`, width x height pixels each."""

    name: str
    jittable: bool
    """True if `render` may be traced inside jit."""
    num_envs: int
    cameras: tuple[str, ...]
    width: int
    height: int

    def render(self, state: State, envs: jax.Array | None = None) -> Array:
        """uint8 [num_envs, camera, height, width, 3] sRGB, before any sensor effect.

        envs: int [num_envs] rows of a larger state to draw; None draws a state of exactly num_envs environments.
        Raises ConfigError for another number of environments.
        """
        ...

    def frames(self, state: State, envs: jax.Array | None = None) -> Frames:
        """The same with depth and segmentation, where the renderer was built with them."""
        ...

    def close(self) -> None:
        """Free what the renderer holds."""
        ...


def check_request(
    scene: SceneConfig, cameras: Sequence[str], width: int, height: int, num_envs: int, bytes_per_pixel: int = 8
) -> tuple[str, ...]:
    """The cameras as a tuple. Raises ConfigError for an unknown or repeated one, a size < 1, or too many pixels."""
    cameras = check_names_and_sizes(scene, cameras, width, height, num_envs)
    check_fits(len(cameras), width, height, num_envs, bytes_per_pixel, available_memory())
    return cameras


def check_names_and_sizes(
    scene: SceneConfig, cameras: Sequence[str], width: int, height: int, num_envs: int
) -> tuple[str, ...]:
    """`check_request` without the memory, for which it would ask JAX: Madrona comes before JAX."""
    cameras = check_names(cameras, scene.camera_names)
    if width < 1 or height < 1:
        raise ConfigError(f"picture size is {width} x {height}; width and height must be at least 1 pixel.")
    if num_envs < 1:
        raise ConfigError(f"num_envs is {num_envs}; it must be at least 1.")
    return cameras


def check_names(cameras: Sequence[str], valid: Sequence[str]) -> tuple[str, ...]:
    """The cameras as a tuple. Raises ConfigError for none, a repeated one, or one that is not among `valid`."""
    cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
    if not cameras:
        raise ConfigError(f"no camera given; valid cameras are {', '.join(valid)}; name at least one.")
    for name in cameras:
        if name not in valid:
            raise ConfigError(
                f"camera {name!r} is unknown; valid cameras are {', '.join(valid)}. "
                "Choose as in cameras=('top', 'wrist') or --camera top wrist, or add others with "
                "SceneConfig(extra_cameras=...)."
            )
    if len(set(cameras)) != len(cameras):
        raise ConfigError(f"cameras {', '.join(cameras)} name one twice; name each once.")
    return cameras


def check_fits(cameras: int, width: int, height: int, num_envs: int, bytes_per_pixel: int, free: int) -> None:
    """Raise ConfigError with the largest num_envs that fits if the pictures need more than `free` bytes."""
    one = cameras * width * height * bytes_per_pixel
    if one * num_envs > free:
        most = free // one
        fix = f"the largest num_envs that fits is {most}" if most else "draw smaller pictures"
        raise ConfigError(
            f"{num_envs} envs x {cameras} cameras x {width} x {height} pixels need "
            f"{one * num_envs / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are available; {fix}."
        )


def available_memory() -> int:
    """Bytes that arrays may take: what JAX may use of its GPU, or the free memory of the machine."""
    if jax.default_backend() == "gpu":
        statistics = jax.local_devices()[0].memory_stats() or {}
        if "bytes_limit" in statistics:
            return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_rows(state: State, envs: jax.Array | None, num_envs: int, name: str) -> None:
    """Raise ConfigError unless `envs`, or the whole state if it is None, names `num_envs` environments of `state`."""
    there = state.physics.qpos.shape[0]
    if envs is not None and (np.ndim(envs) != 1 or not np.issubdtype(jnp.asarray(envs).dtype, np.integer)):
        raise ConfigError(f"envs has shape {np.shape(envs)}; give a vector of {num_envs} row numbers.")
    given = there if envs is None else np.shape(envs)[0]
    if given != num_envs:
        raise ConfigError(
            f"{given} environments to draw, but this {name} renderer was built for num_envs = {num_envs}; build "
            "another renderer, or pass `envs` with that many row numbers."
        )
    if envs is not None and not traced(envs):
        rows = np.asarray(envs)
        if rows.min() < 0 or rows.max() >= there:
            raise ConfigError(f"envs names row {rows.min() if rows.min() < 0 else rows.max()} of {there} environments.")


def select(state: State, envs: jax.Array | None, num_envs: int, name: str) -> tuple[jax.Array, EnvParams]:
    """qpos [num_envs, nq] and params of the environments to draw. Raises ConfigError for another number of them."""
    check_rows(state, envs, num_envs, name)
    if envs is None:
        return state.physics.qpos, state.params
    envs = jnp.asarray(envs)
    return jax.tree.map(lambda leaf: leaf[envs], (state.physics.qpos, state.params))


def check_pictures(rgb: Array, cameras: Sequence[str], most: float = 0.0) -> float:
    """Raise HealthError if more than the share `most` of the pictures in uint8 [env, camera, height, width, 3] show one
    colour only; gives the share that does."""
    constant = np.asarray((rgb == rgb[:, :, :1, :1]).all((2, 3, 4)))  # on the device, where the pictures are
    if constant.mean() > most:
        env, camera = np.argwhere(constant)[0]
        raise HealthError(
            f"env {env}: the picture of camera {cameras[camera]!r} is constant "
            f"(RGB {np.asarray(rgb[env, camera, 0, 0]).tolist()}), {int(constant.sum())} of {constant.size} pictures "
            "are. Check the camera's pose and the lights."
        )
    return float(constant.mean())


def traced(*trees) -> bool:
    """Whether any leaf is being traced by JAX."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))
