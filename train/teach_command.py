"""`so101 teach-pose`: teach the network that finds the sheet in pictures, and say how well it does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import tyro

from mjx_so101.errors import ConfigError, require_choice
from mjx_so101.render import PRESETS as RENDER_PRESETS
from mjx_so101.render import RenderConfig
from policies.base import SEES_POSE, make_base
from train.config import PRESETS, TrainConfig
from train.files import make_folders, require_writable_folder, write_text
from train.madrona_first import MADRONA, for_training
from train.provenance import provenance
from train.teach import TeachConfig, Teacher, errors_in_words, measure, save_pose_network, taught


@dataclasses.dataclass(frozen=True)
class TeachFlags:
    """Flags of `so101 teach-pose`."""

    base: str = "jacobian"
    """Base policy in whose episodes it learns, which it guides: 'jacobian' or 'oracle'."""
    randomization: str = "plain"
    """Preset or file, of physics and looks; a training run that uses the network should have the same."""
    physics: str = "auto"
    sheet_friction: str = "dry"
    num_envs: int = 0
    """Environments; default 4096 on a GPU, 256 on a CPU."""
    seed: int = 0
    blind: bool = False
    """Blank pictures: what can be known without them, the control."""
    episodes: int = 256
    """Episodes of 400 steps in which the error is measured."""
    teach: tyro.conf.OmitArgPrefixes[TeachConfig] = dataclasses.field(default_factory=TeachConfig)
    render: tyro.conf.OmitArgPrefixes[RenderConfig] = dataclasses.field(default_factory=lambda: RENDER_PRESETS["small"])
    out: Path = Path("pose")
    """Folder for the network and teach.json."""

    def __post_init__(self) -> None:
        require_choice("base", self.base, SEES_POSE)
        if self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; it must be at least 1.")
        if self.num_envs < 0:
            raise ConfigError(f"num_envs is {self.num_envs}; give at least 1, or 0 for the default.")

    def config(self) -> TrainConfig:
        """The same as the configuration of a run. Madrona, which needs a GPU, must be there before JAX is asked."""
        gpu = self.render.renderer == MADRONA or jax.default_backend() == "gpu"
        start = PRESETS["gpu" if gpu else "cpu"]
        count = self.num_envs or start.num_envs
        return dataclasses.replace(
            start, base=self.base, randomization=self.randomization, physics=self.physics, num_envs=count,
            sheet_friction=self.sheet_friction, seed=self.seed, blind=self.blind, teach=self.teach, render=self.render,
            sheet_pose="camera", ppo=dataclasses.replace(start.ppo, minibatches=1),  # not used, and divides any count
        )  # fmt: skip


def teach_pose(flags: TeachFlags) -> dict[str, Any]:
    """Teach, measure, and write the network and teach.json into `flags.out`; gives what stands there."""
    require_writable_folder(flags.out, "--out")
    config = flags.config()
    with for_training(config):
        return _teach(flags, config.resolve())


def _teach(flags: TeachFlags, config: TrainConfig) -> dict[str, Any]:
    env = config.environment(config.num_envs, training=True)
    base = make_base(config.base, env.task)
    residual = config.make_residual(base.num_features)
    teacher = Teacher(config.teach, env, base, residual, config.blind)
    learner, record = taught(teacher, residual.init(jax.random.PRNGKey(config.seed)), jax.random.PRNGKey(config.seed))
    batch = min(config.evaluation_batch(), flags.episodes)
    measured = config.environment(batch, training=False)
    record |= measure(measured, base, residual, learner, flags.episodes, config.blind)
    record |= {"environment": measured.describe(), **provenance()}
    make_folders(flags.out)
    save_pose_network(flags.out, learner, config, record)
    write_text(flags.out / "teach.json", json.dumps({**record, "config": config.to_dict()}, indent=2) + "\n")
    success = record["success"]["5"]
    print(errors_in_words(record))
    print(f"{config.base} alone, from pictures: {success['rate']:.1%} within 5 mm; taught in {record['seconds']:.0f} s")
    size = f"--width {config.render.width} --height {config.render.height}"
    print(
        f"Use it: so101 eval --base {config.base} --pose-network {flags.out}, or so101 train --sheet-pose camera "
        f"--pose-network {flags.out} {size}"
    )
    return record
