"""How far repeated evaluations of one policy on the same episodes differ: not at all on `native`, a little on a GPU.

    python -m bench.repeat --out bench/results/NAME.json              # jacobian with a random residual
    python -m bench.repeat --run runs/NAME --out bench/results/NAME.json

Without a run the residual is an untrained network whose weights are shaken, so that its answers depend on every input
as those of a trained one do.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from train.hardware import set_caches

set_caches()

import jax
import numpy as np
import tyro

from bench.record import figure, write_record
from mjx_so101 import ConfigError, SO101Error
from policies.base import make_base
from policies.residual import Learner
from train.config import TrainConfig
from train.evaluate import Episodes, Evaluator
from train.loop import REPORT_SEED
from train.policy import Policy, load_policy
from train.provenance import device, prefix_of


@dataclasses.dataclass(frozen=True)
class RepeatConfig:
    """What to repeat."""

    run: Path | None = None
    """Folder of a training run; its best checkpoint is evaluated."""
    base: str = "jacobian"
    """Without a run: a scripted base policy under a shaken residual."""
    shake: float = 0.02
    """Standard deviation of what is added to each weight of the untrained residual."""
    randomization: str = "plain"
    """Without a run: preset or file."""
    physics: str = "auto"
    episodes: int = 1024
    repeats: int = 5
    seed: int = REPORT_SEED
    out: Path = Path("repeat.json")

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("repeats", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not 0 <= self.shake < float("inf"):
            raise ConfigError(f"shake is {self.shake}; it must be finite and at least 0.")


def shaken(learner: Learner, size: float, seed: int = 0) -> Learner:
    """The learner with noise added to every weight of its policy."""
    leaves, structure = jax.tree.flatten(learner.policy)
    keys = jax.random.split(jax.random.PRNGKey(seed), len(leaves))
    noisy = [leaf + size * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return learner.replace(policy=jax.tree.unflatten(structure, noisy))


def policy_of(config: RepeatConfig) -> Policy:
    """The policy to evaluate."""
    if config.run:
        return load_policy(config.run, None, {"physics": config.physics})
    train = TrainConfig(base=config.base, randomization=config.randomization, physics=config.physics)
    base = make_base(config.base, train.environment(1, training=False).task)
    residual = train.make_residual(base.num_features)
    learner = shaken(residual.init(jax.random.PRNGKey(0)), config.shake)
    return Policy(f"{config.base}, shaken residual", train, (0.005, 0.010, 0.020), base, residual, learner)


def differences(repeats: list[Episodes]) -> dict[str, Any]:
    """What differs between repeats of the same episodes, at the first tolerance."""
    succeeded = np.stack([episodes.succeeded[:, 0] for episodes in repeats])
    distance = np.stack([episodes.final_distance for episodes in repeats])
    rates = succeeded.mean(1)
    return {
        "episodes_whose_outcome_differs": int((succeeded != succeeded[0]).any(0).sum()),
        "episodes_that_differ": int((distance != distance[0]).any(0).sum()),
        "largest_difference_mm": 1000 * float(np.max(np.ptp(distance, axis=0))),
        "success": [float(rate) for rate in rates],
        "spread_of_success": float(rates.max() - rates.min()),
    }


def main(config: RepeatConfig) -> dict[str, Any]:
    """Evaluate, print what differs and write the JSON."""
    policy = policy_of(config)
    env = policy.environment(policy.config.evaluation_batch())
    evaluator = Evaluator(env, policy.base, policy.residual, blind=policy.config.blind)
    repeats = [evaluator(policy.learner, config.episodes, config.seed) for _ in range(config.repeats)]
    found = differences(repeats)
    residual = repeats[0].summary()["mean_residual_rad"]
    print(f"{policy.name}, {env.physics.name}: {found}")
    name = f"{prefix_of(device())}_repeat"
    headline = [
        figure(f"{name}_success_spread_5mm", found["spread_of_success"], "fraction"),
        figure(f"{name}_outcomes_that_differ", found["episodes_whose_outcome_differs"] / config.episodes, "fraction"),
        figure(f"{name}_episodes_that_differ", found["episodes_that_differ"] / config.episodes, "fraction"),
    ]
    return write_record(
        config.out, headline, seeds=[config.seed], num_envs=[env.num_envs],
        conditions={
            "policy": policy.name, "environment": env.describe(), "episodes": config.episodes,
            "repeats": config.repeats, "mean_residual_rad": residual,
        },
        **found,
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main(tyro.cli(RepeatConfig))
    except SO101Error as error:
        sys.exit(f"error: {error}")
