"""A policy ready to run: a base policy alone, or the best checkpoint of a run on top of its base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import CheckpointError, ConfigError
from policies.base import BasePolicy, make_base
from policies.model import OF_THE_MACHINE
from policies.residual import Learner, Residual
from train import checkpoint
from train.config import TrainConfig
from train.evaluate import Evaluator
from train.loop import REPORT_SEED, comparable
from train.run_folder import saved_config
from train.teach import load_pose_network
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
    own_ranges: bool = False
    """Whether it runs under the randomization that it was trained with."""

    @property
    def randomization(self) -> str:
        """Which randomization it runs under, in words."""
        own = " (the run's own ranges)" if self.own_ranges else ""
        return f"{self.config.randomization!r}{own}"

    def environment(self, num_envs: int) -> PaperReturnEnv:
        """An evaluation environment: full-length episodes, no automatic reset."""
        return self.config.environment(num_envs, training=False, report_tolerances=self.tolerances)

    def write_video(self, folder: Path, seed: int = REPORT_SEED, episodes: int = 9) -> list[Path]:
        """Run `episodes` episodes and write their videos into `folder`, see `train.video.write_videos`."""
        evaluator = Evaluator(self.environment(episodes), self.base, self.residual, blind=self.config.blind)
        return write_videos(evaluator(self.learner, episodes, seed), folder, episodes)


def load_policy(
    run: Path | None,
    base: str | None,
    overrides: dict[str, Any] | None = None,
    tolerances_mm: tuple[float, ...] = (5.0, 10.0, 20.0),
) -> Policy:
    """Load a run's best checkpoint, or a base policy alone (alpha 0). Give exactly one of `run` and `base`.

    overrides: see `policy_config`. Raises ConfigError or CheckpointError.
    """
    overrides = overrides or {}
    config = policy_config(run, base, overrides)
    if not tolerances_mm:
        raise ConfigError("tolerance_mm is empty; give at least one tolerance in mm, such as 5.")
    tolerances = tuple(mm / 1000 for mm in tolerances_mm)
    if run is None:
        return base_alone(config, tolerances)
    path = Path(run) / "checkpoints" / "best"
    _mention_edits(Path(run), checkpoint_config(run))
    policy = _untrained(str(run), config, tolerances)
    checkpoint.check_same(path, checkpoint.read_meta(path)["layout"], policy.residual.layout, "observation layout")
    learner = checkpoint.restore(path, "learner", policy.learner)
    return dataclasses.replace(policy, learner=learner, own_ranges="randomization" not in overrides)


def policy_config(run: Path | None, base: str | None, overrides: dict[str, Any]) -> TrainConfig:
    """The configuration under which `load_policy` runs; nothing of JAX starts.

    overrides: fields of TrainConfig to replace, such as randomization; 'renderer' is that of `render`, 'pose_network'
    the folder of a network through which a base alone sees the sheet. Raises ConfigError or CheckpointError.
    """
    if run is None and base is None:
        raise ConfigError("nothing to run: give --run DIR (a trained policy) or --base NAME (a base policy alone).")
    if run is not None and base is not None:
        raise ConfigError("give either --run DIR (a trained policy) or --base NAME (a base policy alone), not both.")
    changes = dict(overrides)
    renderer, network = changes.pop("renderer", None), changes.pop("pose_network", None)
    if network and run is not None:
        raise ConfigError("pose_network is for --base; a run keeps its own network.")
    if network:
        changes |= _eyes_of(network)
    if run is None:
        config = TrainConfig(**{"base": base, **changes})
    else:
        config = checkpoint_config(run)
        if "randomization" in changes:
            config = dataclasses.replace(config, resolved=None)
        # a run made elsewhere is evaluated with what this machine has
        config = dataclasses.replace(config, **{"physics": "auto", **changes})
    if renderer is None:
        return config
    if not config.shown:
        raise ConfigError(
            f"renderer is {renderer!r}, but no residual or pose network here sees pictures; leave it out "
            "(--base-renderer draws what the base policy is shown)."
        )
    return dataclasses.replace(config, render=dataclasses.replace(config.render, renderer=renderer))


def checkpoint_config(run: Path) -> TrainConfig:
    """The configuration that a run's best checkpoint was trained with, whatever config.json beside it says now.

    Only where and how a model runs is taken from config.json, because models are moved. Raises CheckpointError.
    """
    beside = saved_config(run)
    config = _config_in(Path(run) / "checkpoints" / "best")
    places = {name: getattr(beside.model, name) for name in OF_THE_MACHINE}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **places))


def _config_in(path: Path) -> TrainConfig:
    """The configuration in the record of a checkpoint. Raises CheckpointError."""
    try:
        return TrainConfig.from_dict(checkpoint.read_meta(path)["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is of another version ({error}).") from None


def _eyes_of(network: str) -> dict[str, Any]:
    """Fields of TrainConfig with which a base policy sees through the network in a folder. Raises CheckpointError."""
    taught = _config_in(Path(network) / "pose")
    seen = {name: getattr(taught, name) for name in ("render", "teach", "blind")}
    return {"sheet_pose": "camera", "pose_network": network, **seen}


def _mention_edits(run: Path, config: TrainConfig) -> None:
    """Print what config.json says otherwise than the checkpoint."""
    edited = checkpoint.differing(comparable(config.to_dict()), comparable(saved_config(run).to_dict()))
    if edited:
        shown = "; ".join(f"{name}: checkpoint {saved!r}, config.json {now!r}" for name, saved, now in edited)
        print(f"warning: {run / 'config.json'} is not what the checkpoint was trained with, which counts: {shown}")


def base_alone(config: TrainConfig, tolerances: tuple[float, ...] = (0.005, 0.010, 0.020)) -> Policy:
    """The base policy of a training run without a residual: alpha 0, and no pictures but those that a taught pose
    network sees. Raises ConfigError if it has yet to be taught."""
    if config.sheet_pose == "camera" and not config.pose_network:
        raise ConfigError(
            "sheet_pose is 'camera', and no pose network is given: teach one with so101 teach-pose --out DIR, then add "
            "--pose-network DIR."
        )
    alone = dataclasses.replace(
        config,
        obs="state",
        privileged_base=False,
        blind=config.blind and config.sheet_pose == "camera",
        residual=dataclasses.replace(config.residual, alpha=0.0),
    )
    policy = _untrained(config.base, alone, tolerances)
    if not config.pose_network:
        return policy
    learner = load_pose_network(Path(config.pose_network), policy.learner, policy.config)
    return dataclasses.replace(policy, learner=learner)


def _untrained(name: str, config: TrainConfig, tolerances: tuple[float, ...]) -> Policy:
    config = config.resolve()
    task = config.environment(1, training=False, report_tolerances=tolerances).task
    base = make_base(config.base, task, config.model)
    residual = config.make_residual(base.num_features)
    return Policy(name, config, tolerances, base, residual, residual.init(jax.random.PRNGKey(0)))
