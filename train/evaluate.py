"""Deterministic evaluation: full-length episodes on the true state, success at every tolerance with intervals."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError
from mjx_so101.task import State
from policies.base import BasePolicy
from policies.residual import Learner, Residual
from train.rollout import MEAN, Roller
from train.statistics import wilson_interval


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """What was measured of each episode, first axis [episode]."""

    succeeded: np.ndarray  # bool [episode, tolerance], held long enough at any time
    success_step: np.ndarray  # int [episode, tolerance], -1 if never
    final_distance: np.ndarray  # m, sheet centre to goal at the end
    final_yaw: np.ndarray  # rad, rotation left at the end, absolute
    total_reward: np.ndarray  # sum of the task's reward terms up to the first success, or the end
    residual: np.ndarray  # rad, mean absolute correction of a joint target
    residual_rms: np.ndarray  # root mean square of r
    nonfinite: np.ndarray  # bool, the simulation failed at least once
    overflow: np.ndarray  # bool, a buffer overflowed at least once
    tolerances: tuple[float, ...]  # m, of the columns of `succeeded`
    seconds: float  # wall time, compilation included

    def __len__(self) -> int:
        return len(self.succeeded)

    def summary(self) -> dict[str, Any]:
        """Rates with Wilson 95 % intervals and means, ready for JSON. Keys of 'success' are in mm."""
        success = {}
        for i, tolerance in enumerate(self.tolerances):
            count = int(self.succeeded[:, i].sum())
            low, high = wilson_interval(count, len(self))
            steps = self.success_step[self.succeeded[:, i], i]
            success[f"{1000 * tolerance:g}"] = {
                "rate": count / len(self),
                "low": low,
                "high": high,
                "median_steps": float(np.median(steps)) if count else None,
            }
        return {
            "episodes": len(self),
            "success": success,
            "final_distance_mm": 1000 * float(self.final_distance.mean()),
            "final_yaw_deg": float(np.degrees(self.final_yaw.mean())),
            "mean_return": float(self.total_reward.mean()),
            "mean_residual_rad": float(self.residual.mean()),
            "residual_rms": float(np.sqrt((self.residual_rms**2).mean())),
            "nonfinite_episodes": int(self.nonfinite.sum()),
            "overflow_episodes": int(self.overflow.sum()),
            "seconds": self.seconds,
        }


class Evaluator:
    """Evaluates one base policy with a residual in one environment; compiled once, used for any learner."""

    def __init__(self, env: PaperReturnEnv, base: BasePolicy, residual: Residual, mode: str = MEAN, noise: float = 0.0):
        """env must have been built with auto_reset=False."""
        if env.auto_reset:
            raise ConfigError("evaluation needs PaperReturnEnv(..., auto_reset=False): episodes run full length.")
        self.env = env

        def keep(pending, transition, result):
            del transition
            task_reward = sum(v for k, v in result.terms.items() if not k.startswith("residual_"))
            return {
                "reward": jnp.where(result.last.succeeded[:, 0] & ~result.success, 0.0, task_reward),
                "residual": jnp.mean(jnp.abs(pending.residual), -1),
                "square": jnp.mean(pending.residual**2, -1),
                "nonfinite": result.last.nonfinite,
                "overflow": result.last.physics.overflow != 0,
            }

        self._roller = Roller(env, base, residual, keep, mode=mode, noise=noise)

    def variant(self, mode: str, noise: float = 0.0) -> Evaluator:
        """The same evaluator in another mode; what is compiled is shared."""
        other = copy.copy(self)
        other._roller = self._roller.variant(mode, noise)
        return other

    @property
    def stopped(self) -> Callable[[], bool]:
        """Asked now and then while episodes run; True raises Interrupted."""
        return self._roller.stopped

    @stopped.setter
    def stopped(self, stopped: Callable[[], bool]) -> None:
        self._roller.stopped = stopped

    def __call__(self, learner: Learner, episodes: int, seed: int) -> Episodes:
        """Run `episodes` episodes; episode i is the same whatever the batch size, for the same seed and backend."""
        if episodes < 1:
            raise ConfigError(f"episodes is {episodes}; it must be at least 1.")
        begin = time.perf_counter()
        env, parts = self.env, []
        for first in range(0, episodes, env.num_envs):
            carry = self._roller.start(*episode_keys(seed, first, env.num_envs))
            carry, kept = self._roller.roll(learner, carry, env.task.config.episode_steps)
            parts.append(jax.tree.map(np.asarray, (final_state(env, carry.state), kept)))
        final = jax.tree.map(lambda *x: np.concatenate(x)[:episodes], *[p[0] for p in parts])
        kept = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :episodes], *[p[1] for p in parts])
        return Episodes(
            **final,
            total_reward=kept["reward"].sum(0),
            residual=self._roller.mix.authority * kept["residual"].mean(0),
            residual_rms=np.sqrt(kept["square"].mean(0)),
            nonfinite=kept["nonfinite"].any(0),
            overflow=kept["overflow"].any(0),
            tolerances=env.task.config.report_tolerances,
            seconds=time.perf_counter() - begin,
        )


def episode_keys(seed: int, first: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Keys of a batch and of its episodes first, first + 1, ...: uint32 [2] and [count, 2]. Episode i of a seed is the
    same whatever batch it is in."""
    index = jnp.arange(first, first + count)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.PRNGKey(seed), i))(index)
    return jax.random.fold_in(jax.random.PRNGKey(seed), first), keys


def final_state(env: PaperReturnEnv, state: State) -> dict[str, jax.Array]:
    """What `Episodes` keeps of the last state of a batch, each [env, ...]."""
    geometry, sheet = env.task.geometry, state.physics.qpos[:, 6:]
    return {
        "succeeded": state.succeeded[:, 1:],
        "success_step": state.success_step[:, 1:],
        "final_distance": jnp.linalg.norm(jax.vmap(geometry.translation_left)(sheet), axis=-1),
        "final_yaw": jnp.abs(jax.vmap(geometry.rotation_left)(sheet)),
    }
