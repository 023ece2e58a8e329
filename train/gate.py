"""`so101 gate`: is a frozen base policy worth training on? Seeded episodes at alpha 0, checks, and a verdict.

The verdict is the success rate of the base alone: STOP below 5 %, PROCEED above 20 %, CAUTION from one to the other.
While the Wilson interval of the rate holds a threshold, more episodes are run, twice as many each time; the interval
does not know that it was looked at more than once, which makes it a little too narrow.
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
from policies.model import ModelOptions
from policies.residual import Residual, ResidualConfig
from train import gate_report
from train.flags import overrides
from train.gate_trial import Trial, check_joints, measure_actions, training_range
from train.policy import Policy, load_policy
from train.provenance import provenance
from train.run_folder import new_folder, prepare_folder
from train.statistics import wilson_interval

STOP, CAUTION, PROCEED = "STOP", "CAUTION", "PROCEED"
STOP_BELOW, PROCEED_ABOVE = 0.05, 0.20
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
    """Episode i of a seed is that of `so101 eval`, whatever the batch size."""
    verdict_tolerance_mm: float = 5.0
    """Success within this many mm decides the verdict."""
    num_envs: int = 128
    """Most episodes simulated at once; the first ones are split in two batches, to time one without compilation."""
    expected_brightness: tuple[float, ...] = ()
    """Mean grey level (0-255) of the training data's pictures, in the order of the cameras; 30 off is a warning."""
    frames: bool = True
    """Save sample frames of what the cameras see."""
    video: bool = True
    """Write grid.mp4 and episode.mp4."""

    def __post_init__(self) -> None:
        for name in ("episodes", "num_envs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
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
class Verdict:
    """What a success rate says about training on the base policy."""

    name: str
    """STOP, CAUTION or PROCEED: that of the rate."""
    between: tuple[str, str]
    """The verdicts at the two ends of the rate's 95 % interval."""
    rate: float
    low: float
    high: float
    episodes: int
    suggested_alpha: float
    advice: tuple[str, ...]
    """What to try."""

    @property
    def decided(self) -> bool:
        """Whether the whole interval says the same."""
        return self.between[0] == self.between[1]

    @property
    def text(self) -> str:
        """The verdict in a few words."""
        return self.name if self.decided else f"{self.name}, undecided between {' and '.join(self.between)}"


_MEANING = {
    STOP: "The base hardly ever solves the task, so training would seldom meet the success it should learn from. Fix "
    "the base first; `so101 train --force` trains on it all the same.",
    CAUTION: "The base solves the task now and then. Train, but look at the first evaluations before a long run.",
    PROCEED: "The base solves the task often enough to train a residual on it.",
}


def verdict(successes: int, episodes: int) -> Verdict:
    """The verdict on `successes` of `episodes`. Raises ValueError unless 0 <= successes <= episodes, episodes >= 1."""
    low, high = wilson_interval(successes, episodes)
    rate = successes / episodes
    name, between = _name_of(rate), (_name_of(low), _name_of(high))
    alpha = 0.7 if rate < 0.20 else 0.5 if rate <= 0.30 else 0.3
    advice = [_MEANING[name]]
    if between[0] != between[1]:
        advice.append(f"{episodes} episodes do not decide between {' and '.join(between)}: raise --most-episodes.")
    return Verdict(name, between, rate, low, high, episodes, alpha, tuple(advice))


def _name_of(rate: float) -> str:
    return STOP if rate < STOP_BELOW else PROCEED if rate > PROCEED_ABOVE else CAUTION


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
            f"{v.text}: {v.rate:.1%} ({v.low:.1%}-{v.high:.1%}) of {v.episodes} episodes within {within}; "
            f"suggested --alpha {v.suggested_alpha}"
        )


def run_gate(policy: Policy, settings: GateSettings, out: Path) -> GateResult:
    """Judge the base of `policy` alone and write report.json, report.md, frames.png and videos into the new folder.

    Raises ConfigError for a folder that is not empty or pictures that are not those of `settings`, HealthError for a
    base whose joints or pictures cannot be real or whose targets are not finite.
    """
    out = prepare_folder(out)
    try:
        policy = _without_residual(policy, settings.verdict_tolerance_mm)
        trial = Trial(policy, min(settings.num_envs, math.ceil(settings.episodes / 2)), settings.seed)
        known = training_range(trial.base)
        check_joints(trial.env.observe(trial.start).joint_pos)
        views = gate_report.Views(trial.base, trial.env, settings.expected_brightness)
        views.check(trial.start)
        judged = _judge(trial, settings)
    except BaseException:
        if not any(out.iterdir()):
            out.rmdir()  # leave no empty folder behind
        raise
    limits = (trial.env.task.kinematics.lower, trial.env.task.kinematics.upper)
    report = {
        **provenance(),
        "base": policy.base.name,
        "note": policy.base.note,
        "model": trial.model(),
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "environment": trial.env.describe(),
        "results": trial.episodes().summary(),
        "actions": measure_actions(trial.targets(), limits, known),
        "speed": trial.speed(),
        **views.measure(trial.moments(), out / "frames.png" if settings.frames else None),
        "videos": [],
    }
    judged = dataclasses.replace(
        judged, advice=(*gate_report.advice(report, settings.verdict_tolerance_mm), *judged.advice)
    )
    report["verdict"] = {
        **dataclasses.asdict(judged), "text": judged.text, "decided": judged.decided,
        "tolerance_mm": settings.verdict_tolerance_mm,
    }  # fmt: skip
    result = GateResult(judged, json.loads(json.dumps(report)), out)
    gate_report.write(result.report, out)
    if settings.video:  # last, because nothing else must be lost if they fail
        gate_report.add_videos(result.report, policy, settings.seed, out)
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
    policy = load_policy(None, flags.base, overrides(flags))
    result = run_gate(policy, flags.settings, flags.out or new_folder(f"gate-{flags.base}"))
    print(result.line)
    if result.report["note"]:
        print(result.report["note"])
    print(*(f"- {line}" for line in result.verdict.advice), f"Report: {result.folder / 'report.md'}", sep="\n")
    return EXIT_STATUS[result.verdict.name]


def _without_residual(policy: Policy, tolerance_mm: float) -> Policy:
    """The policy without its residual and pictures of it, with the verdict's tolerance among those evaluated."""
    residual = Residual(ResidualConfig(alpha=0.0), policy.base.num_features)
    tolerances = policy.tolerances
    if not any(math.isclose(1000 * tolerance, tolerance_mm) for tolerance in tolerances):
        tolerances = tuple(sorted((*tolerances, tolerance_mm / 1000)))
    learner = residual.init(jax.random.PRNGKey(0))
    return dataclasses.replace(policy, residual=residual, learner=learner, tolerances=tolerances)


def _judge(trial: Trial, settings: GateSettings) -> Verdict:
    """Run episodes until the verdict is decided or there are no more to run."""
    trial.run(settings.episodes)
    while True:
        judged = verdict(trial.successes(settings.verdict_tolerance_mm), trial.count)
        if judged.decided or trial.count >= settings.most_episodes:
            return judged
        more = min(2 * trial.count, settings.most_episodes)
        print(f"{judged.text} after {trial.count} episodes ({judged.rate:.1%}); going on to {more}", file=sys.stderr)
        trial.run(more)
