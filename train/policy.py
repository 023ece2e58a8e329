"""A policy ready to run: a base policy alone, or the best checkpoint of a run on top of its base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError
from policies.base import BasePolicy, make_base
from policies.residual import Learner, Residual
from train import checkpoint
from train.config import TrainConfig
from train.loop import REPORT_SEED, saved_config
from train.report import record_episodes
from train.video import write_videos


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """Base, residual and learner, with the configuration of the environment they belong to."""

    name: str
    config: TrainConfig
    tolerances: tuple[float, ...]
    base: BasePolicy
    residual: Residual
    learner: Learner

    def environment(self, num_envs: int) -> PaperReturnEnv:
        """An evaluation environment: full-length episodes, no automatic reset."""
        return self.config.environment(num_envs, training=False, report_tolerances=self.tolerances)

    def write_video(self, folder: Path, seed: int = REPORT_SEED, episodes: int = 9) -> list[Path]:
        """Play episodes and write grid.mp4 and episode.mp4 into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        env = self.environment(episodes)
        qpos, success = record_episodes(env, self.base, self.residual, self.learner, seed)
        return write_videos(qpos, folder, large_episode=int(np.argmax(success)))


def load_policy(
    run: Path | None,
    base: str | None,
    overrides: dict[str, Any] | None = None,
    tolerances_mm: tuple[float, ...] = (5.0, 10.0, 20.0),
) -> Policy:
    """Load a run's best checkpoint, or a base policy alone (alpha 0). Give exactly one of `run` and `base`.

    overrides: fields of TrainConfig to replace, such as randomization. Raises ConfigError or CheckpointError.
    """
    if run is None and base is None:
        raise ConfigError("nothing to run: give --run DIR (a trained policy) or --base NAME (a base policy alone).")
    if run is not None and base is not None:
        raise ConfigError("give either --run DIR (a trained policy) or --base NAME (a base policy alone), not both.")
    if not tolerances_mm:
        raise ConfigError("tolerance_mm is empty; give at least one tolerance in mm, such as 5.")
    overrides = overrides or {}
    tolerances = tuple(mm / 1000 for mm in tolerances_mm)
    if run is None:
        return base_alone(TrainConfig(**{"base": base, **overrides}), tolerances)
    saved = saved_config(run)
    # a run made elsewhere is evaluated with what this machine has
    config = dataclasses.replace(saved, **{"physics": "auto", **overrides})
    policy = _untrained(str(run), config, tolerances)
    path = Path(run) / "checkpoints" / "best"
    meta = checkpoint.read_meta(path)
    checkpoint.check_same(path, meta["layout"], policy.residual.layout, "observation layout")
    return dataclasses.replace(policy, learner=checkpoint.restore(path, "learner", policy.learner))


def base_alone(config: TrainConfig, tolerances: tuple[float, ...] = (0.005, 0.010, 0.020)) -> Policy:
    """The base policy of a training run without a residual: alpha 0, and nothing that sees pictures."""
    alone = dataclasses.replace(
        config,
        obs="state",
        privileged_base=False,
        blind=False,
        residual=dataclasses.replace(config.residual, alpha=0.0),
    )
    return _untrained(config.base, alone, tolerances)


def _untrained(name: str, config: TrainConfig, tolerances: tuple[float, ...]) -> Policy:
    task = config.environment(1, training=False, report_tolerances=tolerances).task
    base = make_base(config.base, task, config.model)
    residual = config.make_residual(base.num_features)
    return Policy(name, config, tolerances, base, residual, residual.init(jax.random.PRNGKey(0)))
