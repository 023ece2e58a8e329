"""`so101 gate`: is a frozen base policy worth training on? Seeded episodes at alpha 0, checks, and a verdict.

The verdict (train.gate_verdict) comes from rates of the base alone. While their Wilson intervals leave it open, more
episodes are run, twice as many each time; the intervals do not know that they were looked at more than once, which
makes them a little too narrow.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import tyro

from mjx_so101.errors import ConfigError
from policies.base import SCRIPTED
from policies.model import ModelOptions
from policies.residual import Residual, ResidualConfig
from train import gate_report
from train.config import TrainConfig
from train.flags import overrides, require_tiles
from train.gate_trial import Trial, check_joints, measure_actions, training_range
from train.gate_verdict import CAUTION, NEAR_MM, PROCEED, STOP, Verdict, verdict
from train.madrona_first import for_evaluation
from train.outcomes import line, outcomes, table
from train.policy import Policy, load_policy, policy_config
from train.provenance import provenance
from train.report import task_of
from train.run_folder import new_folder, prepare_folder

EXIT_STATUS = {PROCEED: 0, CAUTION: 0, STOP: 3}
"""Of `so101 gate`; a bad flag ends with 2, as everywhere."""


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """How the base policy is judged."""

    episodes: int = 100
    """Episodes to begin with."""
    most_episodes: int = 1024
    """While the verdict is undecided, episodes are doubled up to this many."""
    seed: int = 0
    """Episode i of a seed is that of `so101 eval`."""
    verdict_tolerance_mm: float = 5.0
    """Success within this many mm decides the verdict."""
    eval_batch: int = 0
    """Episodes simulated at once; 0: 128, and for a base that runs a model no more than `episodes`, because each of
    them costs inferences. On native, episodes are those of `so101 eval` bit for bit if its batch is the same."""
    expected_brightness: tuple[float, ...] = ()
    """Mean grey level (0-255) of the training data's pictures, in the order of the cameras; 30 off is a warning."""
    frames: bool = True
    """Save sample frames of what the cameras see."""
    video: bool = True
    """Write episode.mp4, grid.mp4 and failures.mp4."""
    video_episodes: int = 9
    """Episodes in each grid."""
    strict: bool = False
    """Stop at the first episode in which the base asks for a target that is not finite, instead of counting it."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"episodes is {self.episodes}; it must be at least 1.")
        if self.eval_batch < 0:
            raise ConfigError(f"eval_batch is {self.eval_batch}; give at least 1 episode, or 0 for the default.")
        require_tiles(self.video_episodes)
        if self.most_episodes < self.episodes:
            raise ConfigError(
                f"most_episodes is {self.most_episodes}; it must be at least episodes ({self.episodes}): raise it, or "
                "ask for fewer episodes."
            )
        if not (math.isfinite(self.verdict_tolerance_mm) and self.verdict_tolerance_mm > 0):
            raise ConfigError(f"verdict_tolerance_mm is {self.verdict_tolerance_mm}; it must be greater than 0 mm.")
        if not all(0 <= level <= 255 for level in self.expected_brightness):
            raise ConfigError(f"expected_brightness is {self.expected_brightness}; give grey levels from 0 to 255.")


@dataclasses.dataclass(frozen=True)
class GateFlags:
    """Flags of `so101 gate`."""

    base: str
    """Base policy to judge."""
    randomization: str | None = None
    """Preset or file; default plain."""
    physics: str | None = None
    """Backend; default auto."""
    sheet_friction: str | None = None
    """'dry' or 'viscous'; default dry."""
    home: tuple[float, ...] | str | None = None
    """Start pose: 'task' (default), 'checkpoint' (the middle of its states) or six angles in rad, gripper last."""
    out: Path | None = None
    """New folder for the report; default runs/gate-BASE-TIME."""
    settings: tyro.conf.OmitArgPrefixes[GateSettings] = dataclasses.field(default_factory=GateSettings)
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = dataclasses.field(default_factory=ModelOptions)


@dataclasses.dataclass(frozen=True)
class GateResult:
    """What the gate found; `report` is the content of report.json."""

    verdict: Verdict
    report: dict[str, Any]
    folder: Path

    @property
    def line(self) -> str:
        """The result in one line."""
        v, within = self.verdict, f"{self.report['verdict']['tolerance_mm']:g} mm"
        return (
            f"{v.text}: {v.success} of {v.episodes} episodes within {within}; {v.progress}; suggested --alpha "
            f"{v.suggested_alpha}"
        )


def run_gate(policy: Policy, settings: GateSettings, out: Path) -> GateResult:
    """Judge the base of `policy` alone and write report.json, report.md, frames.png and videos into the new folder.

    Raises ConfigError for a folder that is not empty or pictures that are not those of `settings`, HealthError for a
    base whose joints or pictures cannot be real, or if strict for targets that are not finite.
    """
    out = prepare_folder(out)
    try:
        policy = _without_residual(policy, settings.verdict_tolerance_mm)
        batch = _batch(settings, policy.config, runs_model=not policy.base.jittable)
        trial = Trial(policy, batch, settings.seed, settings.strict)
        known = training_range(trial.base)
        check_joints(trial.env.observe(trial.start).joint_pos)
        views = gate_report.Views(trial.base, trial.env, settings.expected_brightness)
        views.check(trial.start)
        judged = _judge(trial, settings, policy.base.name)
    except BaseException:
        if not any(out.iterdir()):
            out.rmdir()  # leave no empty folder behind
        raise
    limits = (trial.env.task.kinematics.lower, trial.env.task.kinematics.upper)
    episodes = trial.episodes()
    report = {
        **provenance(),
        "base": policy.base.name,
        "note": policy.base.note,
        "model": trial.model(),
        "saw": {"base": list(policy.base.sees)},
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "environment": trial.env.describe(),
        "task": task_of(trial.env, trial.count, settings.seed),
        "results": episodes.summary(),
        "episodes": outcomes(episodes),
        "actions": measure_actions(trial.targets(), limits, known),
        "speed": trial.speed(),
        **views.measure(trial.moments(), out / "frames.png" if settings.frames else None),
        "videos": [],
    }
    judged = dataclasses.replace(
        judged, advice=(*gate_report.advice(report, settings.verdict_tolerance_mm), *judged.advice)
    )
    report["verdict"] = {
        **dataclasses.asdict(judged), "text": judged.text, "decided": judged.decided, "progress": judged.progress,
        "tolerance_mm": settings.verdict_tolerance_mm,
    }  # fmt: skip
    result = GateResult(judged, json.loads(json.dumps(report)), out)
    gate_report.write(result.report, out)
    if settings.video:  # last, because nothing else must be lost if they fail
        gate_report.add_videos(result.report, episodes, out, settings.video_episodes)
        gate_report.write(result.report, out)
    return result


def require_gate(result: GateResult, force: bool = False) -> None:
    """Raise ConfigError if the verdict is STOP, unless `force`."""
    if result.verdict.name == STOP and not force:
        raise ConfigError(
            f"base {result.report['base']!r} did not pass the gate: {result.line}. {result.folder / 'report.md'} says "
            "what to try; --force, with another --out, trains on it all the same."
        )


def gate_main(flags: GateFlags) -> int:
    """Run `so101 gate`, print the verdict, and give the exit status: 0 for PROCEED and CAUTION, 3 for STOP."""
    changes = overrides(flags)
    config = policy_config(None, flags.base, changes)
    with for_evaluation(config, _batch(flags.settings, config, runs_model=flags.base not in SCRIPTED)):
        policy = load_policy(None, flags.base, changes)
        result = run_gate(policy, flags.settings, flags.out or new_folder(f"gate-{flags.base}"))
    print(result.line)
    if result.report["note"]:
        print(result.report["note"])
    print(*(f"- {line}" for line in result.verdict.advice), f"Report: {result.folder / 'report.md'}", sep="\n")
    return EXIT_STATUS[result.verdict.name]


def _batch(settings: GateSettings, config: TrainConfig, runs_model: bool) -> int:
    """Episodes simulated at once, see `GateSettings.eval_batch`."""
    most = min(128, settings.episodes) if runs_model else 128
    return settings.eval_batch or config.eval_batch or most


def _without_residual(policy: Policy, tolerance_mm: float) -> Policy:
    """The policy without its residual and pictures of it, with the verdict's tolerances among those evaluated."""
    residual = Residual(ResidualConfig(alpha=0.0), policy.base.num_features)
    tolerances = policy.tolerances
    for mm in (tolerance_mm, NEAR_MM):
        if not any(math.isclose(1000 * tolerance, mm) for tolerance in tolerances):
            tolerances = tuple(sorted((*tolerances, mm / 1000)))
    learner = residual.init(jax.random.PRNGKey(0))
    return dataclasses.replace(policy, residual=residual, learner=learner, tolerances=tolerances)


def _judge(trial: Trial, settings: GateSettings, base: str = "") -> Verdict:
    """Run episodes until the verdict is decided or there are no more to run; prints a line for each."""
    said, more = 0, settings.episodes
    while True:
        trial.run(more)
        rows = outcomes(trial.episodes(), said)
        print(table(rows) if said == 0 else "\n".join(map(line, rows)))
        judged, said = verdict(trial.counts(settings.verdict_tolerance_mm), base), trial.count
        if judged.decided or trial.count >= settings.most_episodes:
            return judged
        more = min(2 * trial.count, settings.most_episodes)
        print(f"{judged.text} after {trial.count} episodes ({judged.success}); going on to {more}", file=sys.stderr)
