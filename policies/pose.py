"""Eyes for policies that need the sheet's pose: a small convolutional network from pictures and joints to that pose.

The picture's place values matter more than its meaning, so nothing is pooled away: what the last convolution finds is
read cell by cell.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mjx_so101.geometry import LEVER, wrap_half_turn
from mjx_so101.render import RenderConfig
from mjx_so101.task import State
from policies.vision import cells

UNIT = 0.1
"""m; the network answers in decimetres from the goal."""
ROUNDED = 0.001
"""m; errors below this count squared in the loss, larger ones as they are."""


class _Network(nn.Module):
    """Per camera four convolutions over squares of 4 x 4 pixels; then the joints join, and two layers."""

    channels: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, pictures: list[jax.Array], joints: jax.Array) -> jax.Array:
        parts = []
        for picture in pictures:
            x = cells(picture).astype(self.dtype) / 255 - 0.5
            for i, (channels, stride) in enumerate(_layers(self.channels, max(x.shape[-3:-1]))):
                x = nn.Conv(channels, (3, 3), (stride, stride), dtype=self.dtype)(x)
                x = nn.relu(nn.LayerNorm(dtype=self.dtype)(x) if i else x)
            parts.append(x.reshape(*x.shape[:-3], -1).astype(jnp.float32))
        x = nn.relu(nn.LayerNorm()(nn.Dense(self.hidden)(jnp.concatenate(parts, -1))))
        x = nn.relu(nn.Dense(self.hidden)(jnp.concatenate([x, joints], -1)))
        return nn.Dense(4)(x)


def _layers(channels: int, cells_across: int) -> list[tuple[int, int]]:
    """Channels and stride of each convolution: down to about 8 x 8 places."""
    first = 2 if cells_across > 16 else 1
    return [(channels, first), (channels, 1), (2 * channels, 2), (2 * channels, 1)]


class PoseNetwork:
    """Where the sheet lies, from what the cameras of `render` see and from the measured joints."""

    def __init__(self, render: RenderConfig, goal: tuple[float, float], channels: int = 64, hidden: int = 256):
        """goal: (x, y) of the tape's centre, m. On a GPU the convolutions compute in bfloat16."""
        self.render, self._goal = render, goal
        dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
        self._network = _Network(channels, hidden, dtype)

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters."""
        size = (1, self.render.height, self.render.width, 3)
        blank = {f"pixels/{name}": jnp.zeros(size, jnp.uint8) for name in self.render.cameras}
        return self._network.init(key, self._in_order(blank), jnp.zeros((1, 6)))

    def estimate(self, parameters: Any, pictures: dict[str, jax.Array], joints: jax.Array) -> jax.Array:
        """Poses [env, 3] (x, y in m, yaw in rad between 0 and pi: half a turn changes nothing).

        pictures: {'pixels/CAMERA': uint8 [env, height, width, 3] sRGB}; joints: measured, rad [env, 6].
        """
        x, y, sine, cosine = jnp.moveaxis(self._answer(parameters, pictures, joints), -1, 0)
        yaw = jnp.pi / 2 + jnp.arctan2(sine, cosine) / 2
        return jnp.stack([self._goal[0] + UNIT * x, self._goal[1] + UNIT * y, yaw], -1)

    def look(self, parameters: Any, state: State, pictures: dict[str, jax.Array], joints: jax.Array) -> State:
        """The state with the estimate in place of the sheet's seen pose [env, 3]; turns go on without a jump.

        Noise and latency of the simulated pose are gone with it: the network's own error stands in their place.
        """
        seen = self.estimate(parameters, pictures, joints)
        new = state.step == 0
        near = jnp.where(new, seen[:, 2], state.seen_sheet_before[:, 2])
        seen = seen.at[:, 2].set(near + wrap_half_turn(seen[:, 2] - near))
        before = jnp.where(new[:, None], seen, state.seen_sheet_before)
        return state.replace(seen_sheet=seen, seen_sheet_before=before)

    def loss(self, parameters: Any, pictures: dict[str, jax.Array], joints: jax.Array, truth: jax.Array) -> jax.Array:
        """Mean error in cm of position and of yaw times `LEVER`, against true poses [env, 3]."""
        answer = self._answer(parameters, pictures, joints)
        place = UNIT * answer[:, :2] - (truth[:, :2] - jnp.asarray(self._goal))
        turn = 2 * (truth[:, 2] - jnp.pi / 2)
        turned = LEVER / 2 * (answer[:, 2:] - jnp.stack([jnp.sin(turn), jnp.cos(turn)], -1))
        return 100 * jnp.mean(_length(place) + _length(turned))

    def _answer(self, parameters: Any, pictures: dict[str, jax.Array], joints: jax.Array) -> jax.Array:
        return self._network.apply(parameters, self._in_order(pictures), joints)

    def _in_order(self, pictures: dict[str, jax.Array]) -> list[jax.Array]:
        return [pictures[f"pixels/{name}"] for name in self.render.cameras]


def _length(vectors: jax.Array) -> jax.Array:
    """Lengths of [..., 2], rounded off near zero."""
    return jnp.sqrt(jnp.sum(vectors**2, -1) + ROUNDED**2)
