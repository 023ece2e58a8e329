"""What went wrong in a rollout: faults per environment, their replay, and when training must stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.env import StepResult, describe_fault, save_replay
from mjx_so101.errors import HealthError
from train.rollout import Pending

PATIENCE = 3
"""Faulty updates in a row after which training stops."""
_CAUSES = {
    "bad_vectors": "the networks' inputs (the base policy's targets and features are among them)",
    "bad_actions": "the policy network's actions",
    "bad_log_probs": "log-probabilities",
    "bad_rewards": "rewards or the values of last states",
}


def count_faults(pending: Pending, result: StepResult, replay: bool) -> dict[str, Any]:
    """Counts of one control step's faults; with `replay` also what `refuse_faults` needs of the first of them."""
    last = result.last
    bad = last.nonfinite | (last.physics.overflow != 0)
    counts: dict[str, Any] = {
        "overflow": jnp.sum(last.physics.overflow != 0),
        "nonfinite": jnp.sum(last.nonfinite),
        "bad_target": jnp.sum(last.bad_target),
        "invalid": jnp.sum(result.invalid),
    }
    if replay:
        env = jnp.argmax(bad)
        begun = pending.carry.state  # holds the new target already; a replay needs the two before it
        before = begun.replace(target=begun.previous_target, previous_target=pending.older_target)
        row = {"before": before, "asked": pending.asked, "after": last}
        counts["fault"] = {"bad": jnp.sum(bad), "env": env, **jax.tree.map(lambda x: x[env], row)}
    return counts


def refuse_faults(fault: dict[str, Any], folder: Path) -> None:
    """Strict mode: raise HealthError for the first faulty control step [time, ...] of a rollout, with its replay."""
    fault = jax.tree.map(np.asarray, fault)
    faulty = np.flatnonzero(fault["bad"])
    if not len(faulty):
        return
    row = jax.tree.map(lambda x: x[faulty[0]], fault)
    env = int(row["env"])
    path = save_replay(folder, env, row["before"], row["asked"])
    what = describe_fault(int(row["after"].physics.overflow), bool(row["after"].bad_target))
    raise HealthError(
        f"env {env} ({int(row['bad'])} envs in control step {faulty[0]} of a rollout): {what}; replay saved to {path}. "
        "Run without --strict to count faults instead."
    )


def refuse_pictures(metrics: dict[str, float]) -> None:
    """Strict mode: raise HealthError if pictures of a rollout were constant or frozen."""
    for name in ("constant", "frozen"):
        count = metrics.get(f"{name}_pictures", 0)
        if count:
            raise HealthError(f"the pictures of {count:.0f} environments were {name} in a whole rollout.")


class UpdateWatch:
    """Stops training, with the cause, once updates go wrong again and again."""

    def __init__(self, rows: int):
        """rows: transitions in an update."""
        self._rows, self._faulty = rows, 0

    def check(self, metrics: dict[str, float], steps: int) -> None:
        """Raise HealthError after `PATIENCE` faulty updates in a row.

        An update is faulty if a gradient was not finite, so that its step was left out, or if more than half of its
        rows could not be learned from. A few bad rows are left out and counted, nothing more.
        """
        faulty = metrics["skipped_updates"] > 0 or metrics["bad_rows"] > self._rows / 2
        self._faulty = self._faulty + 1 if faulty else 0
        if self._faulty >= PATIENCE:
            raise HealthError(
                f"{PATIENCE} updates in a row went wrong, the last at {steps:,} steps: {_cause(metrics)}. The learner "
                "was left as it was before each step that was skipped; checkpoints/last is the latest one saved."
            )


def _cause(metrics: dict[str, float]) -> str:
    """The first thing that was not finite, in the order in which they follow from one another."""
    for name, what in _CAUSES.items():
        if metrics[name]:
            return f"{what} were not finite in {metrics[name]:.0f} rows"
    if metrics["bad_rows"]:
        return f"the value network's outputs were not finite, which took {metrics['bad_rows']:.0f} rows"
    return f"gradients were not finite in {metrics['skipped_updates']:.0f} minibatches; lower --learning-rate"
