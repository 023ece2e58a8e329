"""Configuration of a training run: every field is a flag of `so101 train`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import tyro

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError, require_choice
from mjx_so101.params import FIELDS, Randomization, load_randomization
from mjx_so101.params import PRESETS as PHYSICS_PRESETS
from mjx_so101.physics import BACKENDS, default_backend
from mjx_so101.render import IN_JIT, RenderConfig
from mjx_so101.render import PRESETS as RENDER_PRESETS
from mjx_so101.scene import SHEET_FRICTIONS, SceneConfig
from mjx_so101.task import TaskConfig
from policies.base import BASES, SCRIPTED, SEES_POSE
from policies.model import ModelOptions
from policies.pose import PoseNetwork
from policies.residual import Residual, ResidualConfig, actor_layout
from train.flags import require_tiles
from train.ppo import PPOConfig
from train.teach import TeachConfig

OBSERVATIONS = ("state", "state25", "pixels")
SHEET_POSES = ("simulation", "camera")
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
    steps: int = 6_000_000
    """Control steps to train for, over all environments."""
    seed: int = 0
    episode_steps: int = 200
    """Length of a training episode; evaluation always runs 400 steps."""
    tolerance: float = 0.005
    """Success tolerance (m) that training rewards."""
    stop_at_success: float = 0.97
    """Stop early once this rate of success at the end of the selection episodes is reached, at `tolerance`."""
    eval_every: float = 0.125
    """Evaluate and checkpoint each time this share of the steps is done."""
    eval_episodes: int = 128
    """Episodes on which the best checkpoint is chosen."""
    report_episodes: int = 512
    """Other episodes on which the final numbers are reported."""
    eval_batch: int = 0
    """Episodes that an evaluation simulates at once, which decides its rounding; 0: 128 on native, else 1,024, and with
    a base that runs a model no more than eval_episodes."""
    stay_share: float = 0.25
    """Share of the training episodes that go on after success, so that the policy learns to stay."""
    obs: str = "state"
    """What the residual sees: 'state' (with the sheet's seen pose), 'state25' (the published 25 numbers and nothing
    else) or 'pixels' (pictures and its own joints)."""
    sheet_pose: str = "simulation"
    """Who tells base and residual where the sheet is: the 'simulation' (with noise and latency as the randomization has
    them) or a 'camera': a network reads it from pictures."""
    pose_network: str = ""
    """With --sheet-pose camera: folder of `so101 teach-pose`; default: taught before the training begins."""
    privileged_base: bool = False
    """With --obs pixels: allow a base that reads the sheet's true pose; its plan is then hidden from the residual."""
    blind: bool = False
    """Where pictures are seen: they are blank. The control of what a run learns from its pictures."""
    video: bool = True
    """Write the videos of the report."""
    video_episodes: int = 9
    """Episodes in each grid of the videos."""
    strict: bool = False
    """Stop at the first buffer overflow or non-finite state, instead of counting it."""
    residual: tyro.conf.OmitArgPrefixes[ResidualConfig] = dataclasses.field(default_factory=ResidualConfig)
    ppo: tyro.conf.OmitArgPrefixes[PPOConfig] = dataclasses.field(default_factory=PPOConfig)
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = dataclasses.field(default_factory=ModelOptions)
    teach: TeachConfig = dataclasses.field(default_factory=TeachConfig)
    render: tyro.conf.OmitArgPrefixes[RenderConfig] = dataclasses.field(default_factory=lambda: RENDER_PRESETS["small"])
    resolved: tyro.conf.Suppress[tyro.conf.Fixed[dict[str, Any] | None]] = None
    """What `randomization` meant when the run began, see `resolve`: files change."""

    def __post_init__(self) -> None:
        require_choice("base", self.base, BASES)
        self.model.require(self.base)
        require_choice("physics", self.physics, ("auto", *BACKENDS))
        require_choice("sheet_friction", self.sheet_friction, SHEET_FRICTIONS)
        require_choice("obs", self.obs, OBSERVATIONS)
        require_choice("sheet_pose", self.sheet_pose, SHEET_POSES)
        if isinstance(self.home, str) and self.home not in HOMES:
            raise ConfigError(
                f"home is {self.home!r}; give 'task', 'checkpoint' or six angles in rad, gripper last, as in "
                "--home 0 -1.1 0.8 1.45 1.6 -0.07."
            )
        for name in ("num_envs", "steps", "eval_episodes", "report_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.eval_batch < 0:
            raise ConfigError(f"eval_batch is {self.eval_batch}; give at least 1 episode, or 0 for the default.")
        self._check_sight()
        if not 0 < self.eval_every <= 1:
            raise ConfigError(f"eval_every is {self.eval_every}; give a share of the steps in (0, 1].")
        if not 0 < self.stop_at_success <= 1:
            raise ConfigError(f"stop_at_success is {self.stop_at_success}; give a rate in (0, 1].")
        require_tiles(self.video_episodes)
        rows = self.num_envs * self.ppo.unroll
        if rows % self.ppo.minibatches:
            raise ConfigError(
                f"num_envs x unroll = {self.num_envs} x {self.ppo.unroll} = {rows} transitions do not divide into "
                f"{self.ppo.minibatches} minibatches; choose num_envs as a multiple of {self.ppo.minibatches}."
            )
        if self.home != "checkpoint":  # which needs its files
            self.task_config(training=True)  # raises for a bad tolerance, episode length or home

    def _check_sight(self) -> None:
        """Raise ConfigError unless what the residual sees goes with what the base policy sees."""
        camera = self.sheet_pose == "camera"
        if self.blind and not self.shown:
            raise ConfigError(
                "blind is for a policy that sees pictures: add --obs pixels or --sheet-pose camera, or leave it out."
            )
        if self.pose_network and not camera:
            raise ConfigError(f"pose_network is {self.pose_network!r}, which --sheet-pose camera reads: add it.")
        if self.privileged_base and (self.obs != "pixels" or camera):
            raise ConfigError(
                "privileged_base is for a residual that sees pictures and a base that is told the true pose: add "
                "--obs pixels without --sheet-pose camera, or leave it out."
            )
        if self.obs != "pixels" or camera:
            return
        if self.base in SEES_POSE and not self.privileged_base:
            raise ConfigError(
                f"base {self.base!r} reads the sheet's true pose, so a residual that sees only pictures could not be "
                "deployed on it. Choose --sheet-pose camera, which shows the base pictures too, or --base zero, groot "
                "or remote; or add --privileged-base: the base's plan is then hidden from the residual, and the report "
                "says what the base saw."
            )
        if self.privileged_base and self.base not in SEES_POSE:
            raise ConfigError(f"base {self.base!r} does not read the sheet's pose; leave out --privileged-base.")

    def evaluation_batch(self) -> int:
        """Episodes that an evaluation simulates at once."""
        physics = default_backend() if self.physics == "auto" else self.physics
        most = 128 if physics == "native" else 1024
        return self.eval_batch or (most if self.base in SCRIPTED else min(most, self.eval_episodes))

    def task_config(self, training: bool, report_tolerances: tuple[float, ...] | None = None) -> TaskConfig:
        """The task's rules in training (shorter episodes) or evaluation."""
        config = TaskConfig(tolerance=self.tolerance)
        if self.home != "task":
            home = self.model.home() if self.home == "checkpoint" else self.home
            config = dataclasses.replace(config, home=tuple(home))
        if training:
            config = dataclasses.replace(config, episode_steps=self.episode_steps, stay_share=self.stay_share)
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
        randomization = randomization or self.load_randomization()
        self._require_looks_seen(randomization)
        return PaperReturnEnv(
            num_envs,
            self.physics,
            randomization,
            self.scene_config(),
            self.task_config(training, report_tolerances),
            auto_reset=training,
            host_stepped=self.base not in SCRIPTED or self._draws_outside_jit,
        )

    def scene_config(self) -> SceneConfig:
        """The scene without what only pictures need."""
        return SceneConfig(sheet_friction=self.sheet_friction, visual=False)

    @property
    def pictures(self) -> RenderConfig | None:
        """What the residual sees, or None if it learns from state."""
        return self.render if self.obs == "pixels" else None

    @property
    def _draws_outside_jit(self) -> bool:
        """Whether the host draws what is seen."""
        return self.shown is not None and not self.blind and self.render.renderer not in IN_JIT

    @property
    def shown(self) -> RenderConfig | None:
        """The pictures that residual or pose network see, or None."""
        return self.render if self.sheet_pose == "camera" else self.pictures

    def make_residual(self, num_features: int) -> Residual:
        """Networks over a base policy with `num_features` features, told what `obs` says."""
        layout = actor_layout(self.obs, self.base in SEES_POSE and self.sheet_pose == "simulation")
        return Residual(self.residual, num_features, self.pictures, layout, self.make_pose_network())

    def make_pose_network(self) -> PoseNetwork | None:
        """The network that finds the sheet in pictures, or None if the simulation tells where it is."""
        if self.sheet_pose == "simulation":
            return None
        return PoseNetwork(self.render, self.scene_config().goal_center, self.teach.channels, self.teach.hidden)

    def load_randomization(self) -> Randomization:
        """The randomization that the run names; as it was when it was resolved, whatever the file says now."""
        if self.resolved and self.resolved["of"] == self.randomization:
            return Randomization(self.resolved["name"], {k: tuple(v) for k, v in self.resolved["ranges"].items()})
        return load_randomization(self.randomization)

    def resolve(self) -> TrainConfig:
        """The same with what it names in files written out: ranges, a checkpoint's start pose, the commit of a repo.

        A file may change under its name; the record of a run must not. Raises ConfigError or CheckpointError for one
        that cannot be read.
        """
        values = json.loads(json.dumps(self.load_randomization().to_dict()))
        config = dataclasses.replace(self, resolved={"of": self.randomization, **values})
        if self.model.checkpoint and (self.base == "groot" or self.home == "checkpoint"):
            config = dataclasses.replace(config, model=self.model.pinned())
        if self.home == "checkpoint":
            config = dataclasses.replace(config, home=config.model.home())
        return config

    def _require_looks_seen(self, randomization: Randomization) -> None:
        """Raise ConfigError if it varies how things look where nothing draws pictures: that would change nothing."""
        looks = randomization.varied(name for name, field in FIELDS.items() if field.group == "look")
        if not looks or self.shown or self.base not in SCRIPTED:
            return
        plain = self.randomization.removesuffix("+looks")
        fix = f"use {plain!r}" if plain in PHYSICS_PRESETS else f"leave {'it' if len(looks) == 1 else 'them'} out"
        raise ConfigError(
            f"randomization {self.randomization!r} varies how things look ({', '.join(looks)}), and nothing here draws "
            f"pictures: obs is 'state', and base {self.base!r} sees none. They would change nothing: {fix}, or learn "
            "with --obs pixels or --sheet-pose camera."
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Back from `to_dict`. Raises ConfigError for unknown fields."""
        values = dict(values)
        kinds = {
            "residual": ResidualConfig, "ppo": PPOConfig, "model": ModelOptions, "render": RenderConfig,
            "teach": TeachConfig,
        }  # fmt: skip
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
        steps=24_000_000,
        eval_every=0.0625,
        eval_episodes=1024,
        report_episodes=1024,
        stop_at_success=0.99,
        stay_share=1.0,
        ppo=PPOConfig(
            unroll=16, epochs=8, minibatches=32, learning_rate=5e-4, final_learning_rate=1e-4, entropy_cost=1e-3
        ),
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
        stay_share=1.0,
        ppo=PPOConfig(
            unroll=16, epochs=8, minibatches=8, learning_rate=5e-4, final_learning_rate=1e-4, entropy_cost=1e-3
        ),
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
