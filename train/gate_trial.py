"""Episodes of a base policy alone, and what it asked of the joints in them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.errors import ConfigError, HealthError
from mjx_so101.scene import JOINTS
from mjx_so101.task import State
from policies.base import BasePolicy
from train.evaluate import Episodes, episode_keys, final_state
from train.policy import Policy
from train.rollout import BASE, Roller

JUMP = 0.5
"""A target that changes by more than this (rad) from one control step to the next is called a jump."""
_SLACK = 1e-4  # rad beyond a limit that is rounding


class Trial:
    """Episodes of the base of a policy; those run later go on where the earlier ones ended."""

    def __init__(self, policy: Policy, num_envs: int, seed: int):
        """num_envs: episodes in a batch. The policy's residual is not asked (mode 'base')."""
        self.env = policy.environment(num_envs)
        self.count = 0
        self._learner, self._seed = policy.learner, seed
        self._roller = Roller(self.env, policy.base, policy.residual, _keep, mode=BASE)
        self.base = self._roller.base
        """The base policy, bound to `env`."""
        self._final: list[dict[str, np.ndarray]] = []  # of each batch, [env, ...]
        self._kept: list[dict[str, np.ndarray]] = []  # of each batch, [time, env, ...]
        self._seconds: list[float] = []
        self.start: State = self.env.reset(episode_keys(seed, 0, num_envs)[1])
        """How the episodes of the first batch start."""

    def run(self, episodes: int) -> None:
        """Go on until there are `episodes`. Raises HealthError for a target that is not finite."""
        while self.count < episodes:
            begin, fresh = time.perf_counter(), min(self.env.num_envs, episodes - self.count)
            carry = self._roller.start(*episode_keys(self._seed, self.count, self.env.num_envs))
            carry, kept = self._roller.roll(self._learner, carry, self.env.task.config.episode_steps)
            final, kept = jax.tree.map(np.asarray, (final_state(self.env, carry.state), kept))
            self._seconds.append(time.perf_counter() - begin)
            self._check_targets(kept["target"][:, :fresh])
            self._final.append(jax.tree.map(lambda x, n=fresh: x[:n], final))
            self._kept.append(jax.tree.map(lambda x, n=fresh: x[:, :n], kept))
            self.count += fresh

    def _check_targets(self, targets: np.ndarray) -> None:
        bad = ~np.isfinite(targets)
        if bad.any():
            step, env, joint = np.argwhere(bad)[0]
            raise HealthError(
                f"base {self.base.name!r} asks for {targets[step, env, joint]} rad of {JOINTS[joint]} in step {step} "
                f"of episode {self.count + env}; targets must be finite, and those of {bad.any(2).mean():.1%} of the "
                "steps are not. Check the weights, the number format and the statistics of the base policy."
            )

    def targets(self) -> np.ndarray:
        """[time, episode, 6] what the base asked for (rad), before the clip to the joint limits."""
        return self._joined("target")

    def _joined(self, name: str) -> np.ndarray:
        return np.concatenate([kept[name] for kept in self._kept], axis=1)

    def episodes(self) -> Episodes:
        """The same record as that of `Evaluator`."""
        final = jax.tree.map(lambda *x: np.concatenate(x), *self._final)
        return Episodes(
            **final,
            total_reward=self._joined("reward").sum(0),
            residual=np.zeros(self.count),
            residual_rms=np.zeros(self.count),
            bad_target=self._joined("bad_target").any(0),
            nonfinite=self._joined("nonfinite").any(0),
            overflow=self._joined("overflow").any(0),
            tolerances=self.env.task.config.report_tolerances,
            seconds=sum(self._seconds),
        )

    def successes(self, tolerance_mm: float) -> int:
        """Episodes solved within a tolerance that is evaluated."""
        mm = [1000 * tolerance for tolerance in self.env.task.config.report_tolerances]
        column = [math.isclose(value, tolerance_mm) for value in mm].index(True)
        return int(sum(final["succeeded"][:, column].sum() for final in self._final))

    def speed(self) -> dict[str, Any]:
        """Control steps a second, without the first batch, which compiles, if there is another; and the base
        policy's own count of its inferences, if it keeps one (`inference_stats`)."""
        timed = self._seconds[1:] or self._seconds
        rounds = len(timed) * self.env.task.config.episode_steps
        stats = getattr(self.base, "inference_stats", None)
        return {
            "seconds": sum(self._seconds),
            "batch": self.env.num_envs,
            "control_steps_per_second": rounds * self.env.num_envs / sum(timed),
            "seconds_per_batch_step": sum(timed) / rounds,
            "with_compilation": len(self._seconds) == 1,
            "inference": _inference(stats()) if stats else None,
        }

    def model(self) -> dict[str, Any] | None:
        """What the base policy runs, if it runs a model."""
        source = getattr(self.base, "source", None)
        return None if source is None else source.describe()

    def moments(self) -> list[State]:
        """States of the first batch at the start, in the middle and at the end of its episodes."""
        qpos = self._kept[0]["qpos"]
        later = [self.start.physics.replace(qpos=jnp.asarray(qpos[t])) for t in (len(qpos) // 2, len(qpos) - 1)]
        return [self.start, *(self.start.replace(physics=physics) for physics in later)]


def _keep(pending, transition, result) -> dict[str, jax.Array]:
    del transition
    return {
        "target": pending.base_target,
        "qpos": result.last.physics.qpos,
        "reward": jnp.where(result.last.succeeded[:, 0] & ~result.success, 0.0, result.reward),
        "bad_target": result.last.bad_target,
        "nonfinite": result.last.nonfinite,
        "overflow": result.last.physics.overflow != 0,
    }


def _inference(stats: dict[str, float]) -> dict[str, float | None]:
    names = ("inferences", "inferences_per_s", "latency_s_median")
    known = {name: float(stats.get(name, math.nan)) for name in names}
    return {name: value if math.isfinite(value) else None for name, value in known.items()}


def check_joints(joint_pos: np.ndarray) -> None:
    """Raise HealthError if the measured joints [env, 6] (rad) of an episode's first step cannot be an arm's."""
    joints = np.asarray(joint_pos)
    bad = ~np.isfinite(joints).all(1) | (joints == joints[:, :1]).all(1)
    if bad.any():
        env = int(np.argmax(bad))
        raise HealthError(
            f"joint_pos of env {env} at the first step is {joints[env].tolist()}; six equal or non-finite angles are "
            "no state of the arm. Check what fills the base policy's state."
        )


def training_range(base: BasePolicy) -> np.ndarray | None:
    """[2, 6] lowest and highest joint target (rad) in the training data of `base`, None if it does not tell.

    Raises ConfigError for a range that is none.
    """
    given = getattr(base, "training_range", None)
    if given is None:
        return None
    known = np.asarray(given, float)
    if known.shape != (2, 6) or not (np.isfinite(known).all() and (known[0] <= known[1]).all()):
        raise ConfigError(f"training_range of base {base.name!r} is {known.tolist()}; give low [6] <= high [6] in rad.")
    return known


def measure_actions(
    targets: np.ndarray, limits: Sequence[np.ndarray], known: np.ndarray | None = None
) -> dict[str, Any]:
    """How targets [time, episode, 6] (rad) lie in the joint limits and in the range of the base's training data.

    limits: low [6] and high [6]. known: what `training_range` gives. Shares are of all targets of a joint, of all
    targets ('clipped', 'outside_training'), or of the steps ('jumps'); 'moved_rad' is the widest range of a joint in
    an episode.
    """
    low, high = limits
    outside = (targets < low - _SLACK) | (targets > high + _SLACK)
    unusual = None
    if known is not None:
        unusual = (targets < known[0] - _SLACK) | (targets > known[1] + _SLACK)
    lowest, p1, p99, highest = np.percentile(targets, (0, 1, 99, 100), axis=(0, 1))
    joints = {}
    for j, name in enumerate(JOINTS):
        joints[name] = {
            "limits": [float(low[j]), float(high[j])],
            "min": float(lowest[j]), "p1": float(p1[j]), "p99": float(p99[j]), "max": float(highest[j]),
            "clipped": float(outside[..., j].mean()),
            "training_range": None if known is None else known[:, j].tolist(),
            "outside_training": None if unusual is None else float(unusual[..., j].mean()),
        }  # fmt: skip
    return {
        "joints": joints,
        "clipped": float(outside.mean()),
        "steps_clipped": float(outside.any(2).mean()),
        "outside_training": None if unusual is None else float(unusual.mean()),
        "jumps": float((np.abs(np.diff(targets, axis=0)) > JUMP).any(2).mean()) if len(targets) > 1 else 0.0,
        "moved_rad": float(np.ptp(targets, axis=0).max()),
    }
