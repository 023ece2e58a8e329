"""Chunk buffers: each environment executes the first actions of its own chunk, and a fixed number is renewed per step.

A model that gives chunks of many actions costs far more than physics, so a control step renews only
`slots(num_envs, horizon)` chunks. Environments in a new episode come first, then those whose chunk is used up, then
those with the oldest chunks; if nobody waits, nothing is renewed. If more than `slots` wait, the host makes further
passes in the same step: nobody ever executes an action of an earlier episode. So that a mass reset does not lead to a
mass renewal `horizon` steps later, only as many of its chunks as fall due in a step of steady execution last equally
long (`first_limits`).

That is for training, where episodes start at any time. Where all episodes start together and none starts anew, as in
evaluation, every environment executes whole chunks, as a robot does, and all are renewed in the same step, in equal
parts of at most `MOST_DRAWN` (`whole_slots`).
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

SPARE = 1.15
"""Slots over what steady execution needs: room for resets, and a fresher chunk where there are none."""
MOST_DRAWN = 256
"""Environments that are drawn at once where all are renewed together: 118 MB of pictures from two cameras."""


@flax.struct.dataclass
class Chunks:
    """The chunk of each environment and how far it was executed."""

    targets: jax.Array  # [env, length, 6] rad
    position: jax.Array  # int32 [env], the next action
    limit: jax.Array  # int32 [env], actions that may be executed; the chunk is used up at position == limit

    @property
    def used_up(self) -> jax.Array:
        """bool [env], True where no action is left."""
        return self.position >= self.limit


def slots(num_envs: int, horizon: int) -> int:
    """Chunks renewed in one pass when every chunk serves at most `horizon` control steps."""
    return min(num_envs, math.ceil(SPARE * num_envs / horizon))


def whole_slots(num_envs: int) -> int:
    """Chunks renewed in one pass where all environments are renewed in the same step, in equal parts."""
    return math.ceil(num_envs / math.ceil(num_envs / MOST_DRAWN))


def no_chunks(num_envs: int, length: int) -> Chunks:
    """Buffers of `num_envs` environments, all used up."""
    zero = jnp.zeros(num_envs, jnp.int32)
    return Chunks(jnp.zeros((num_envs, length, 6)), zero, zero)


def drop(chunks: Chunks, new_episode: jax.Array) -> Chunks:
    """Forget the chunks of environments where `new_episode` [env] is True."""
    return chunks.replace(limit=jnp.where(new_episode, 0, chunks.limit))


def choose(chunks: Chunks, new_episode: jax.Array, count: int) -> jax.Array:
    """int32 [count] environments to renew: new episodes first, then used-up chunks, then the oldest ones."""
    length = chunks.targets.shape[1]
    urgency = jnp.where(chunks.used_up, length + 1 + new_episode, chunks.position)
    return jax.lax.top_k(urgency, count)[1].astype(jnp.int32)


def first_limits(rank: jax.Array, waiting: jax.Array, num_envs: int, horizon: int) -> jax.Array:
    """int32 [n] actions that the chunks at places `rank` [n] of the queue may execute; `waiting` of it had none.

    Each `num_envs / horizon` places further back one action less: after a mass reset `horizon`, `horizon` - 1, .. 1,
    the same number of each. Chunks renewed early run their full length.
    """
    shorter = rank // math.ceil(num_envs / horizon)
    return jnp.where(rank < waiting, horizon - shorter, horizon).astype(jnp.int32)


def store(chunks: Chunks, envs: jax.Array, targets: jax.Array, limit: jax.Array) -> Chunks:
    """Give environments `envs` [n] new chunks [n, length, 6], of which they may execute `limit` actions."""
    return Chunks(
        targets=chunks.targets.at[envs].set(targets),
        position=chunks.position.at[envs].set(0),
        limit=chunks.limit.at[envs].set(limit),
    )


def execute(chunks: Chunks) -> tuple[Chunks, jax.Array]:
    """Chunks one action further on, and that action of each environment [env, 6] (rad).

    A chunk that is used up stays where it is and gives its last action again.
    """
    last = jnp.maximum(chunks.limit - 1, 0)
    target = action(chunks, jnp.minimum(chunks.position, last))
    return chunks.replace(position=jnp.where(chunks.used_up, chunks.position, chunks.position + 1)), target


def action(chunks: Chunks, index: jax.Array) -> jax.Array:
    """[env, 6] action `index` [env] of each chunk (rad); an index outside of it means its first or last one."""
    index = jnp.clip(index, 0, chunks.targets.shape[1] - 1)
    return jnp.take_along_axis(chunks.targets, index[:, None, None], axis=1)[:, 0]
