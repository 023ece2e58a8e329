"""The verdict of the gate: what the episodes of a base policy alone say about training on it.

PROCEED: more than 20 % are solved. STOP: fewer than 5 % are solved, and there is no progress either. CAUTION: all
others. Progress is one of two: the sheet is held within 20 mm in at least 20 % of the episodes, or it ends at least
50 mm nearer to its goal than it started in at least half of them (so the median gain is at least 50 mm). `jacobian`
under `real` solves 4.8 % and reaches 20 mm in 37.7 %; a residual on top of it learns, so it must not be stopped.
"""

from __future__ import annotations

import dataclasses

from train.statistics import wilson_interval

STOP, CAUTION, PROCEED = "STOP", "CAUTION", "PROCEED"
STOP_BELOW, PROCEED_ABOVE = 0.05, 0.20
NEAR_MM, NEAR_SHARE = 20.0, 0.20
GAINED_MM, GAINED_SHARE = 50.0, 0.50


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of the episodes with its 95 % Wilson interval."""

    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, episodes: int) -> Rate:
        """Raises ValueError unless 0 <= count <= episodes and episodes >= 1."""
        low, high = wilson_interval(count, episodes)
        return cls(count / episodes, low, high)

    def __str__(self) -> str:
        return f"{self.rate:.1%} ({self.low:.1%}-{self.high:.1%})"


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many of `episodes` did what the verdict asks for."""

    episodes: int
    solved: int
    """Held within the verdict's tolerance."""
    near: int
    """Held within NEAR_MM."""
    gained: int
    """Ended at least GAINED_MM nearer to the goal than they started."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the episodes of a base say about training on it."""

    name: str
    """STOP, CAUTION or PROCEED: that of the rates."""
    between: tuple[str, str]
    """The verdicts at the lower and the upper ends of the rates' intervals."""
    episodes: int
    success: Rate
    near: Rate
    gained: Rate
    suggested_alpha: float
    advice: tuple[str, ...]
    """What to try."""

    @property
    def decided(self) -> bool:
        """Whether both ends of the intervals say the same."""
        return self.between[0] == self.between[1]

    @property
    def text(self) -> str:
        """The verdict in a few words."""
        return self.name if self.decided else f"{self.name}, undecided between {' and '.join(self.between)}"

    @property
    def progress(self) -> str:
        """The second criterion in words."""
        return (
            f"within {NEAR_MM:g} mm in {self.near}, at least {GAINED_MM:g} mm nearer to the goal at the end in "
            f"{self.gained}"
        )


def verdict(counts: Counts, base: str = "") -> Verdict:
    """The verdict on `counts`; `base` is the name of the policy judged, for the advice."""
    success, near, gained = (Rate.of(n, counts.episodes) for n in (counts.solved, counts.near, counts.gained))
    name = _name(success.rate, near.rate, gained.rate)
    between = (_name(success.low, near.low, gained.low), _name(success.high, near.high, gained.high))
    alpha = 0.7 if success.rate < 0.20 else 0.5 if success.rate <= 0.30 else 0.3
    judged = Verdict(name, between, counts.episodes, success, near, gained, alpha, ())
    return dataclasses.replace(judged, advice=tuple(_advice(judged, base)))


def _name(success: float, near: float, gained: float) -> str:
    if success > PROCEED_ABOVE:
        return PROCEED
    progress = near >= NEAR_SHARE or gained >= GAINED_SHARE
    return CAUTION if success >= STOP_BELOW or progress else STOP


def _advice(judged: Verdict, base: str) -> list[str]:
    lines = [_meaning(judged)]
    if judged.name != PROCEED and base != "jacobian":
        lines.append(
            "Meanwhile train with --base jacobian: it needs no model, only the sheet's pose, and shows what a residual "
            "can do."
        )
    if not judged.decided:
        lines.append(
            f"{judged.episodes} episodes do not decide between {' and '.join(judged.between)}: raise --most-episodes."
        )
    return lines


def _meaning(judged: Verdict) -> str:
    if judged.name == PROCEED:
        return "The base solves the task often enough to train a residual on it."
    if judged.name == STOP:
        return (
            "The base hardly ever solves the task and seldom brings the sheet nearer, so training would seldom meet "
            "the success it should learn from. Fix the base first; `so101 train --force` trains on it all the same."
        )
    if judged.success.rate < STOP_BELOW:
        return (
            f"The base hardly ever solves the task, but it makes progress: {judged.progress}. A residual can learn "
            "what is missing. Train, but look at the first evaluations before a long run."
        )
    return "The base solves the task now and then. Train, but look at the first evaluations before a long run."
