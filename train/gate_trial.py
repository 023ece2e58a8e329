"""Episodes of a base policy alone, and what it asked of the joints in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.env import StepResult
from mjx_so101.errors import ConfigError, HealthError
from mjx_so101.scene import JOINTS
from mjx_so101.task import State
from policies.base import BasePolicy
from train.evaluate import Episodes, Evaluator, episode_keys, joined
from train.gate_verdict import GAINED_MM, NEAR_MM, Counts
from train.policy import Policy
from train.rollout import BASE, Pending

JUMP = 0.5
"""A target that changes by more than this (rad) from one control step to the next is called a jump."""
_SLACK = 1e-4  # rad beyond a limit that is rounding


class Trial:
    """Episodes of the base of a policy; those run later go on where the earlier ones ended."""

    def __init__(self, policy: Policy, batch: int, seed: int, strict: bool = False):
        """batch: episodes simulated at once. strict: refuse targets that are not finite, instead of counting them."""
        self.env = policy.environment(batch)
        self.count = 0
        self._learner, self._seed, self._strict = policy.learner, seed, strict
        self._evaluate = Evaluator(self.env, policy.base, policy.residual, mode=BASE, more=_targets)
        self.base = self._evaluate.base
        """The base policy, bound to `env`."""
        self._parts: list[Episodes] = []  # whole batches
        self.start: State = self.env.reset(episode_keys(seed, 0, batch)[1])
        """How the episodes of the first batch start."""

    def run(self, episodes: int) -> None:
        """Go on until there are `episodes`. Raises HealthError for a target that is not finite, if strict."""
        batch = self.env.num_envs
        while len(self._parts) * batch < episodes:
            self._parts.append(self._evaluate(self._learner, batch, self._seed, first=len(self._parts) * batch))
        self.count = episodes
        if self._strict and (bad := first_bad_target(self.targets())):
            raise HealthError(
                f"base {self.base.name!r} asks for {bad}; targets must be finite. Check the weights, the number format "
                "and the statistics of the base policy, or leave out --strict to count such episodes as invalid."
            )

    def episodes(self) -> Episodes:
        """All of them, as `Evaluator` gives them; `qpos` is that of the first batch."""
        return joined(self._parts, self.count)

    def targets(self) -> np.ndarray:
        """[time, episode, 6] what the base asked for (rad), before the clip to the joint limits."""
        return self.episodes().more["target"]

    def counts(self, tolerance_mm: float) -> Counts:
        """What the verdict asks for; both tolerance_mm and NEAR_MM are among those evaluated."""
        episodes = self.episodes()
        mm = [1000 * tolerance for tolerance in episodes.tolerances]
        solved, near = (
            episodes.succeeded[:, [math.isclose(value, wanted) for value in mm].index(True)]
            for wanted in (tolerance_mm, NEAR_MM)
        )
        gained = (1000 * (episodes.start_distance - episodes.final_distance) >= GAINED_MM) & ~episodes.invalid
        return Counts(self.count, int(solved.sum()), int(near.sum()), int(gained.sum()))

    def speed(self) -> dict[str, Any]:
        """Control steps a second, without the first batch, which compiles, if there is another; and the base
        policy's own count of its inferences, if it keeps one (`inference_stats`)."""
        seconds = [part.seconds for part in self._parts]
        timed = seconds[1:] or seconds
        rounds = len(timed) * self.env.task.config.episode_steps
        stats = getattr(self.base, "inference_stats", None)
        return {
            "seconds": sum(seconds),
            "batch": self.env.num_envs,
            "control_steps_per_second": rounds * self.env.num_envs / sum(timed),
            "seconds_per_batch_step": sum(timed) / rounds,
            "with_compilation": len(seconds) == 1,
            "inference": _inference(stats()) if stats else None,
        }

    def model(self) -> dict[str, Any] | None:
        """What the base policy runs, if it runs a model."""
        source = getattr(self.base, "source", None)
        return None if source is None else source.describe()

    def moments(self) -> list[State]:
        """States of the first batch at the start, in the middle and at the end of its episodes."""
        qpos = self._parts[0].qpos
        later = [self.start.physics.replace(qpos=jnp.asarray(qpos[t])) for t in (len(qpos) // 2, len(qpos) - 1)]
        return [self.start, *(self.start.replace(physics=physics) for physics in later)]


def _targets(pending: Pending, result: StepResult) -> dict[str, jax.Array]:
    del result
    return {"target": pending.base_target}


def first_bad_target(targets: np.ndarray) -> str | None:
    """The first of targets [time, episode, 6] that is not finite, in words."""
    bad = ~np.isfinite(targets)
    if not bad.any():
        return None
    episode, step, joint = np.argwhere(bad.swapaxes(0, 1))[0]
    return f"{targets[step, episode, joint]} rad of {JOINTS[joint]} in step {step} of episode {episode}"


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
    Targets that are not finite count for nothing but 'first_bad_target'.

    limits: low [6] and high [6]. known: what `training_range` gives. Shares are of all targets of a joint, of all
    targets ('clipped', 'outside_training'), or of the steps ('jumps'); 'moved_rad' is the widest range of a joint in
    an episode.
    """
    low, high = limits
    bad = first_bad_target(targets)
    finite = np.isfinite(targets)
    targets = np.where(finite, targets, np.nan)  # is neither below nor above anything
    outside = (targets < low - _SLACK) | (targets > high + _SLACK)
    unusual = None
    if known is not None:
        unusual = (targets < known[0] - _SLACK) | (targets > known[1] + _SLACK)
    joints = {}
    for j, name in enumerate(JOINTS):
        asked = targets[..., j][finite[..., j]]
        spread = np.percentile(asked, (0, 1, 99, 100)).tolist() if asked.size else [None] * 4
        joints[name] = {
            "limits": [float(low[j]), float(high[j])],
            **dict(zip(("min", "p1", "p99", "max"), spread, strict=True)),
            "clipped": float(outside[..., j].mean()),
            "training_range": None if known is None else known[:, j].tolist(),
            "outside_training": None if unusual is None else float(unusual[..., j].mean()),
        }
    moved = np.max(targets, 0, where=finite, initial=-np.inf) - np.min(targets, 0, where=finite, initial=np.inf)
    return {
        "joints": joints,
        "first_bad_target": bad,
        "clipped": float(outside.mean()),
        "steps_clipped": float(outside.any(2).mean()),
        "outside_training": None if unusual is None else float(unusual.mean()),
        "jumps": float((np.abs(np.diff(targets, axis=0)) > JUMP).any(2).mean()) if len(targets) > 1 else 0.0,
        "moved_rad": max(0.0, float(moved.max())),
    }
