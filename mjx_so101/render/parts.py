"""Any number of environments through a renderer that was built for another number, as Madrona's only one is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.render.base import Array, Frames, Renderer, check_names, check_rows
from mjx_so101.task import State


class InParts:
    """Draws `num_envs` environments with a renderer outside jit, in parts of its size. See `render.Renderer`.

    The last part is filled up with its last environment again, so a part costs what the whole renderer costs.
    """

    jittable = False

    def __init__(self, renderer: Renderer, num_envs: int, cameras: Sequence[str] | None = None):
        """cameras: which of the renderer's, in which order; None takes all.

        Raises ConfigError for num_envs < 1 or a camera that the renderer does not draw.
        """
        if num_envs < 1:
            raise ConfigError(f"num_envs is {num_envs}; it must be at least 1.")
        self.cameras = renderer.cameras if cameras is None else check_names(cameras, renderer.cameras)
        self.name, self.width, self.height = renderer.name, renderer.width, renderer.height
        self.num_envs, self.renderer = num_envs, renderer
        self._columns = [renderer.cameras.index(name) for name in self.cameras]

    def render(self, state: State, envs: jax.Array | None = None) -> Array:
        """See `Renderer.render`."""
        return self._joined([self.renderer.render(state, rows) for rows in self._parts(state, envs)])

    def frames(self, state: State, envs: jax.Array | None = None) -> Frames:
        """See `Renderer.frames`."""
        parts = [self.renderer.frames(state, rows) for rows in self._parts(state, envs)]
        return jax.tree.map(lambda *pictures: self._joined(list(pictures)), *parts)

    def close(self) -> None:
        """Nothing to do: the renderer belongs to whoever built it, and others may draw with it."""

    def _parts(self, state: State, envs: jax.Array | None) -> Iterator[jax.Array | None]:
        """Rows of each part; None where the renderer takes the state as it is."""
        check_rows(state, envs, self.num_envs, self.name)
        size = self.renderer.num_envs
        if size == self.num_envs:
            yield envs
            return
        rows = jnp.arange(self.num_envs) if envs is None else jnp.asarray(envs)
        count = math.ceil(self.num_envs / size)
        rows = jnp.pad(rows, (0, count * size - self.num_envs), mode="edge")
        yield from rows.reshape(count, size)

    def _joined(self, parts: list[Array]) -> Array:
        """One array [num_envs, camera, ...] of pictures that are on the host or on a device, as they came."""
        pictures = parts[0]
        if len(parts) > 1:
            pictures = (np if isinstance(pictures, np.ndarray) else jnp).concatenate(parts)
        if len(self.cameras) < pictures.shape[1] or self._columns != sorted(self._columns):
            pictures = pictures[:, np.array(self._columns)]
        return pictures[: self.num_envs]
