"""Configuration of a training run: every field is a flag of `so101 train`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import tyro

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError, require_choice
from mjx_so101.params import Randomization, load_randomization
from mjx_so101.physics import BACKENDS
from mjx_so101.render import PRESETS as RENDER_PRESETS
from mjx_so101.render import RenderConfig
from mjx_so101.scene import SHEET_FRICTIONS, SceneConfig
from mjx_so101.task import TaskConfig
from policies.base import BASES, SCRIPTED
from policies.model import ModelOptions
from policies.residual import ResidualConfig
from train.ppo import PPOConfig

OBSERVATIONS = ("state", "pixels")
HOMES = ("task", "checkpoint")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run; `PRESETS` holds those that the command line starts from."""

    base: str = "jacobian"
    """Base policy: 'jacobian', 'oracle', 'zero', 'groot' (with --checkpoint) or 'remote' (with --url)."""
    randomization: str = "plain"
    """Preset nominal, plain, real or wild, each also with +looks, or a JSON or TOML file with [low, high] per field."""
    physics: str = "auto"
    """'native' (MuJoCo C), 'warp' or 'jax' (MJX); 'auto' takes warp on a GPU and native elsewhere."""
    sheet_friction: str = "dry"
    """How the sheet rubs on the table: 'dry' or 'viscous'."""
    home: tuple[float, ...] | str = "task"
    """Start pose of the arm: 'task' (the task's own), 'checkpoint' (the middle of the checkpoint's states), or six
    angles in rad, gripper last."""
    num_envs: int = 256
    """Environments that train in parallel."""
    steps: int = 4_000_000
    """Control steps to train for, over all environments."""
    seed: int = 0
    episode_steps: int = 200
    """Length of a training episode; evaluation always runs 400 steps."""
    tolerance: float = 0.005
    """Success tolerance (m) that training rewards."""
    stop_at_success: float = 0.97
    """Stop early once this success rate is reached on the selection episodes (at the training tolerance)."""
    eval_every: float = 0.125
    """Evaluate and checkpoint each time this share of the steps is done."""
    eval_episodes: int = 128
    """Episodes on which the best checkpoint is chosen."""
    report_episodes: int = 512
    """Other episodes on which the final numbers are reported."""
    obs: str = "state"
    """What the residual sees: 'state' (with the sheet's seen pose) or 'pixels' (pictures and its own joints)."""
    video: bool = True
    """Write the videos of the report."""
    strict: bool = False
    """Stop at the first buffer overflow or non-finite state, instead of counting it."""
    residual: tyro.conf.OmitArgPrefixes[ResidualConfig] = dataclasses.field(default_factory=ResidualConfig)
    ppo: tyro.conf.OmitArgPrefixes[PPOConfig] = dataclasses.field(default_factory=PPOConfig)
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = dataclasses.field(default_factory=ModelOptions)
    render: tyro.conf.OmitArgPrefixes[RenderConfig] = dataclasses.field(default_factory=lambda: RENDER_PRESETS["small"])

    def __post_init__(self) -> None:
        require_choice("base", self.base, BASES)
        self.model.require(self.base)
        require_choice("physics", self.physics, ("auto", *BACKENDS))
        require_choice("sheet_friction", self.sheet_friction, SHEET_FRICTIONS)
        require_choice("obs", self.obs, OBSERVATIONS)
        if isinstance(self.home, str) and self.home not in HOMES:
            raise ConfigError(
                f"home is {self.home!r}; give 'task', 'checkpoint' or six angles in rad, gripper last, as in "
                "--home 0 -1.1 0.8 1.45 1.6 -0.07."
            )
        for name in ("num_envs", "steps", "eval_episodes", "report_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.eval_every <= 1:
            raise ConfigError(f"eval_every is {self.eval_every}; give a share of the steps in (0, 1].")
        if not 0 < self.stop_at_success <= 1:
            raise ConfigError(f"stop_at_success is {self.stop_at_success}; give a rate in (0, 1].")
        rows = self.num_envs * self.ppo.unroll
        if rows % self.ppo.minibatches:
            raise ConfigError(
                f"num_envs x unroll = {self.num_envs} x {self.ppo.unroll} = {rows} transitions do not divide into "
                f"{self.ppo.minibatches} minibatches; choose num_envs as a multiple of {self.ppo.minibatches}."
            )
        if self.home != "checkpoint":  # which needs its files
            self.task_config(training=True)  # raises for a bad tolerance, episode length or home

    def task_config(self, training: bool, report_tolerances: tuple[float, ...] | None = None) -> TaskConfig:
        """The task's rules in training (shorter episodes) or evaluation."""
        config = TaskConfig(tolerance=self.tolerance)
        if self.home != "task":
            home = self.model.home() if self.home == "checkpoint" else self.home
            config = dataclasses.replace(config, home=tuple(home))
        if training:
            config = dataclasses.replace(config, episode_steps=self.episode_steps)
        if report_tolerances:
            config = dataclasses.replace(config, report_tolerances=report_tolerances)
        return config

    def environment(
        self,
        num_envs: int,
        training: bool,
        randomization: Randomization | None = None,
        report_tolerances: tuple[float, ...] | None = None,
    ) -> PaperReturnEnv:
        """Environments to train in (episodes start anew by themselves) or to evaluate in (full length, once).

        randomization: what `load_randomization` gave earlier; default: load it.
        """
        return PaperReturnEnv(
            num_envs,
            self.physics,
            randomization or self.load_randomization(),
            self.scene_config(),
            self.task_config(training, report_tolerances),
            auto_reset=training,
            host_stepped=self.base not in SCRIPTED,
        )

    def scene_config(self) -> SceneConfig:
        """The scene without what only pictures need."""
        return SceneConfig(sheet_friction=self.sheet_friction, visual=False)

    def resolved(self) -> TrainConfig:
        """The same with what it names in a checkpoint written out: the start pose, and the commit of a repo.

        A checkpoint may change under its name; the record of a run must not.
        Raises ConfigError or CheckpointError for a checkpoint that cannot be read.
        """
        config = self
        if self.model.checkpoint and (self.base == "groot" or self.home == "checkpoint"):
            config = dataclasses.replace(config, model=self.model.pinned())
        if self.home == "checkpoint":
            config = dataclasses.replace(config, home=config.model.home())
        return config

    @property
    def pictures(self) -> RenderConfig | None:
        """What the residual sees, or None if it learns from state."""
        return self.render if self.obs == "pixels" else None

    def load_randomization(self) -> Randomization:
        """The randomization that the run names."""
        return load_randomization(self.randomization)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Back from `to_dict`. Raises ConfigError for unknown fields."""
        values = dict(values)
        kinds = {"residual": ResidualConfig, "ppo": PPOConfig, "model": ModelOptions, "render": RenderConfig}
        for name, kind in kinds.items():
            part = dict(values.get(name, {}))
            part = {key: tuple(value) if isinstance(value, list) else value for key, value in part.items()}
            values[name] = _build(kind, part)
        if isinstance(values.get("home"), list):
            values["home"] = tuple(values["home"])
        return _build(cls, values)


def _build(kind, values: dict[str, Any]):
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"unknown field(s) {', '.join(unknown)} of {kind.__name__}; valid: {', '.join(sorted(known))}."
        )
    return kind(**values)


PRESETS: dict[str, TrainConfig] = {
    "cpu": TrainConfig(),
    "gpu": TrainConfig(
        num_envs=4096,
        steps=16_000_000,
        eval_every=0.0625,
        eval_episodes=1024,
        report_episodes=1024,
        stop_at_success=0.99,
        residual=ResidualConfig(initial_std=0.3),
        ppo=PPOConfig(unroll=16, minibatches=16, learning_rate=5e-4, final_learning_rate=5e-4),
    ),
    # A model of three billion parameters gives some thousand control steps a second: few steps, each used often, and
    # few episodes in evaluations. 128 iterations of 512 x 16 steps.
    "gpu-groot": TrainConfig(
        num_envs=512,
        steps=1_048_576,
        eval_every=0.25,
        eval_episodes=128,
        report_episodes=256,
        stop_at_success=0.99,
        residual=ResidualConfig(initial_std=0.3),
        ppo=PPOConfig(unroll=16, epochs=8, minibatches=8, learning_rate=5e-4, final_learning_rate=1e-4),
    ),
    # The plan of the project before this one: 500,000 steps, 4 environments, learning rate 3e-4, rollouts of 256
    # steps, minibatches of 64 rows.
    "seed": TrainConfig(
        num_envs=4,
        steps=500_000,
        ppo=PPOConfig(unroll=256, minibatches=4 * 256 // 64, learning_rate=3e-4, final_learning_rate=3e-4),
    ),
}


def default_preset(base: str, gpu: bool) -> str:
    """Name of the preset that a run starts from where none is given."""
    if not gpu:
        return "cpu"
    return "gpu" if base in SCRIPTED else "gpu-groot"
