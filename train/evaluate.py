"""Deterministic evaluation: full-length episodes on the true state, success at every tolerance with intervals."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.env import PaperReturnEnv, StepResult
from mjx_so101.errors import ConfigError
from mjx_so101.task import State
from policies.base import BasePolicy
from policies.residual import Learner, Residual
from train.rollout import MEAN, Pending, Roller, Transition
from train.statistics import wilson_interval


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """What was measured of each episode, first axis [episode]."""

    succeeded: np.ndarray  # bool [episode, tolerance], held long enough at any time, and never invalid
    at_end: np.ndarray  # bool [episode, tolerance], succeeded and inside the tolerance in the last control step
    success_step: np.ndarray  # int [episode, tolerance], -1 if never
    start_distance: np.ndarray  # m, sheet centre to goal at the start
    final_distance: np.ndarray  # m, sheet centre to goal at the end
    final_yaw: np.ndarray  # rad, rotation left at the end, absolute
    total_reward: np.ndarray  # sum of the task's reward terms up to the first success, or the end
    residual: np.ndarray  # rad, mean absolute correction of a joint target
    residual_rms: np.ndarray  # root mean square of r
    invalid: np.ndarray  # bool, NaN or inf, or the sheet was lost
    bad_target: np.ndarray  # bool, a target was not finite at least once
    nonfinite: np.ndarray  # bool, the same, or the simulation failed at least once
    overflow: np.ndarray  # bool, a buffer overflowed at least once
    tolerances: tuple[float, ...]  # m, of the columns of `succeeded`
    seconds: float  # wall time, compilation included
    qpos: np.ndarray | None = None  # float32 [time, batch, 9] after each control step of the first episodes
    more: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [time, episode, ...] that was asked for

    def __len__(self) -> int:
        return len(self.succeeded)

    def summary(self) -> dict[str, Any]:
        """Rates with Wilson 95 % intervals and means, ready for JSON. Keys of 'success' are in mm."""
        success, at_end = {}, {}
        for i, tolerance in enumerate(self.tolerances):
            solved, mm = self.succeeded[:, i], f"{1000 * tolerance:g}"
            steps = self.success_step[solved, i]
            success[mm] = {**_rate(solved), "median_steps": float(np.median(steps)) if solved.any() else None}
            at_end[mm] = _rate(self.at_end[:, i])
        return {
            "episodes": len(self),
            "success": success,
            "success_at_end": at_end,
            "final_distance_mm": 1000 * float(self.final_distance.mean()),
            "median_gained_mm": 1000 * float(np.median(self.start_distance - self.final_distance)),
            "final_yaw_deg": float(np.degrees(self.final_yaw.mean())),
            "mean_return": float(self.total_reward.mean()),
            "mean_residual_rad": float(self.residual.mean()),
            "residual_rms": float(np.sqrt((self.residual_rms**2).mean())),
            "invalid_episodes": int(self.invalid.sum()),
            "bad_target_episodes": int(self.bad_target.sum()),
            "nonfinite_episodes": int(self.nonfinite.sum()),
            "overflow_episodes": int(self.overflow.sum()),
            "seconds": self.seconds,
        }


def _rate(succeeded: np.ndarray) -> dict[str, float]:
    """Share of the episodes and its Wilson 95 % interval."""
    low, high = wilson_interval(int(succeeded.sum()), len(succeeded))
    return {"rate": float(succeeded.mean()), "low": low, "high": high}


class Evaluator:
    """Evaluates one base policy with a residual in one environment; compiled once, used for any learner.

    Episodes run in batches of `env.num_envs`, the last one filled up with episodes that are not counted. XLA rounds
    differently for other shapes, and over 400 control steps such a difference grows until some episodes end elsewhere:
    so episode i of a seed is the same for any number of episodes, bit for bit on `native`, but not for another batch.
    """

    def __init__(
        self,
        env: PaperReturnEnv,
        base: BasePolicy,
        residual: Residual,
        mode: str = MEAN,
        noise: float = 0.0,
        blind: bool = False,
        more: Callable[[Pending, StepResult], dict[str, jax.Array]] | None = None,
    ):
        """env must have been built with auto_reset=False. blind: see `Roller`. more: what else to keep of each control
        step, each [env, ...]."""
        if env.auto_reset:
            raise ConfigError("evaluation needs PaperReturnEnv(..., auto_reset=False): episodes run full length.")
        self.env = env

        def keep(pending, transition, result):
            return {**_keep(pending, transition, result), "more": more(pending, result) if more else {}}

        self._roller = Roller(env, base, residual, keep, mode=mode, noise=noise, blind=blind)
        self.base = self._roller.base
        """The base policy, bound to `env`."""

    @property
    def sees_pictures(self) -> bool:
        """Whether the policy is shown pictures, and not only blank ones."""
        return self._roller.eyes is not None and not self._roller.eyes.blind

    def variant(self, mode: str, noise: float = 0.0, blind: bool = False) -> Evaluator:
        """The same evaluator in another mode, or with blank pictures; what is compiled is shared."""
        other = copy.copy(self)
        other._roller = self._roller.variant(mode, noise, blind)
        return other

    @property
    def stopped(self) -> Callable[[], bool]:
        """Asked now and then while episodes run; True raises Interrupted."""
        return self._roller.stopped

    @stopped.setter
    def stopped(self, stopped: Callable[[], bool]) -> None:
        self._roller.stopped = stopped

    def __call__(self, learner: Learner, episodes: int, seed: int, first: int = 0) -> Episodes:
        """Run episodes `first` to `first + episodes - 1` of a seed; `first` is a multiple of the batch."""
        if episodes < 1:
            raise ConfigError(f"episodes is {episodes}; it must be at least 1.")
        if first % self.env.num_envs:
            raise ConfigError(f"first is {first}; it must be a multiple of the batch, {self.env.num_envs}.")
        begin = time.perf_counter()
        env, parts, more, qpos = self.env, [], [], None
        for start in range(first, first + episodes, env.num_envs):
            carry = self._roller.start(*episode_keys(seed, start, env.num_envs))
            started = {"start_distance": np.asarray(_distance(env, carry.state))}  # before the carry is used up
            carry, kept = self._roller.roll(learner, carry, env.task.config.episode_steps)
            final, kept = jax.tree.map(np.asarray, (final_state(env, carry.state), kept))
            states = kept.pop("qpos")
            qpos = states[:, :episodes] if qpos is None else qpos
            more.append(kept.pop("more"))
            # whole batches: sums round as their shapes have it
            parts.append({**started, **final, **self._measured(kept)})
        return Episodes(
            **jax.tree.map(lambda *x: np.concatenate(x)[:episodes], *parts),
            tolerances=env.task.config.report_tolerances,
            seconds=time.perf_counter() - begin,
            qpos=qpos,
            more=jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :episodes], *more),
        )

    def _measured(self, kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `Episodes` keeps [env] of what `_keep` kept [time, env]."""
        return {
            "total_reward": kept["reward"].sum(0),
            "residual": self._roller.mix.authority * kept["residual"].mean(0),
            "residual_rms": np.sqrt(kept["square"].mean(0)),
            **{name: kept[name].any(0) for name in ("bad_target", "nonfinite", "overflow")},
        }


def joined(parts: Sequence[Episodes], count: int) -> Episodes:
    """The first `count` episodes of parts that follow one another; `qpos` is that of the first part."""
    values = {}
    for field in dataclasses.fields(Episodes):
        if field.name not in ("tolerances", "seconds", "qpos", "more"):
            values[field.name] = np.concatenate([getattr(part, field.name) for part in parts])[:count]
    more = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :count], *[part.more for part in parts])
    seconds, qpos = sum(part.seconds for part in parts), parts[0].qpos
    qpos = None if qpos is None else qpos[:, :count]
    return Episodes(**values, tolerances=parts[0].tolerances, seconds=seconds, qpos=qpos, more=more)


def _keep(pending: Pending, transition: Transition, result: StepResult) -> dict[str, jax.Array]:
    """What an evaluation keeps of each control step, each [env, ...]."""
    del transition
    task_reward = sum(v for k, v in result.terms.items() if not k.startswith("residual_"))
    return {
        "reward": jnp.where(result.last.succeeded[:, 0] & ~result.success, 0.0, task_reward),
        "residual": jnp.mean(jnp.abs(pending.residual), -1),
        "square": jnp.mean(pending.residual**2, -1),
        "bad_target": result.last.bad_target,
        "nonfinite": result.last.nonfinite,
        "overflow": result.last.physics.overflow != 0,
        "qpos": result.last.physics.qpos,
    }


_BATCH = 1 << 30
"""Tells the keys of batches from those of episodes, which are numbered from 0."""


def episode_keys(seed: int, first: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Keys of a batch and of its episodes first, first + 1, ...: uint32 [2] and [count, 2]. Episode i of a seed has
    the same key whatever batch it is in."""
    root = jax.random.PRNGKey(seed)
    keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(first, first + count))
    return jax.random.fold_in(root, _BATCH + first), keys


def _distance(env: PaperReturnEnv, state: State) -> jax.Array:
    """[env] from the sheet's centre to its goal (m)."""
    return jnp.linalg.norm(jax.vmap(env.task.geometry.translation_left)(state.physics.qpos[:, 6:]), axis=-1)


def final_state(env: PaperReturnEnv, state: State) -> dict[str, jax.Array]:
    """What `Episodes` keeps of the last state of a batch, each [env, ...]."""
    geometry, sheet = env.task.geometry, state.physics.qpos[:, 6:]
    succeeded = state.succeeded[:, 1:] & ~state.invalid[:, None]
    over = jax.vmap(geometry.overshoot)(sheet)[:, None]
    return {
        "succeeded": succeeded,
        "at_end": succeeded & (over <= jnp.asarray(env.task.config.report_tolerances)),
        "success_step": jnp.where(succeeded, state.success_step[:, 1:], -1),
        "final_distance": _distance(env, state),
        "final_yaw": jnp.abs(jax.vmap(geometry.rotation_left)(sheet)),
        "invalid": state.invalid,
    }
