"""The verdict of the gate: rates, intervals, the second criterion, alpha and what it advises."""

import pytest

from train.gate_verdict import CAUTION, PROCEED, STOP, Counts, verdict
from train.statistics import wilson_interval


def judge(solved, episodes=100, near=0, gained=0, base="groot"):
    return verdict(Counts(episodes, solved, near, gained), base)


@pytest.mark.parametrize(
    ("successes", "episodes", "name", "between"),
    [
        (0, 100, STOP, (STOP, STOP)),
        (4, 100, STOP, (STOP, CAUTION)),
        (5, 100, CAUTION, (STOP, CAUTION)),  # 5 % is no longer below 5 %
        (12, 100, CAUTION, (CAUTION, CAUTION)),
        (20, 100, CAUTION, (CAUTION, PROCEED)),  # 20 % is not yet above 20 %
        (21, 100, PROCEED, (CAUTION, PROCEED)),
        (40, 100, PROCEED, (PROCEED, PROCEED)),
        (1, 8, CAUTION, (STOP, PROCEED)),
        (30, 1024, STOP, (STOP, STOP)),
        (288, 1024, PROCEED, (PROCEED, PROCEED)),
    ],
)
def test_verdict_without_progress(successes, episodes, name, between):
    judged = judge(successes, episodes)
    assert (judged.name, judged.between, judged.decided) == (name, between, between[0] == between[1])
    assert (judged.success.rate, judged.episodes) == (successes / episodes, episodes)
    assert (judged.success.low, judged.success.high) == wilson_interval(successes, episodes)
    undecided = f"undecided between {between[0]} and {between[1]}"
    assert judged.text == (name if judged.decided else f"{name}, {undecided}")
    assert any("--most-episodes" in line for line in judged.advice) != judged.decided


@pytest.mark.parametrize(
    ("solved", "near", "gained", "episodes", "name", "decided"),
    [
        (49, 386, 0, 1024, CAUTION, True),  # jacobian under real: 4.8 % at 5 mm, 37.7 % at 20 mm; trains to 48.5 %
        (28, 234, 0, 1024, CAUTION, True),  # and under wild: 2.7 % and 22.9 %
        (5, 38, 0, 100, CAUTION, True),  # the same base, after 100 episodes
        (0, 19, 49, 100, STOP, False),
        (0, 20, 0, 100, CAUTION, False),  # 20 % within 20 mm is progress
        (0, 0, 50, 100, CAUTION, False),  # a median gain of 50 mm as well
        (0, 0, 70, 100, CAUTION, True),
        (0, 100, 100, 100, CAUTION, True),  # never more than CAUTION
        (0, 8, 30, 100, STOP, True),
    ],
)
def test_progress_saves_a_base_from_stop(solved, near, gained, episodes, name, decided):
    judged = judge(solved, episodes, near, gained)
    assert (judged.name, judged.decided) == (name, decided)
    saved = name == CAUTION and judged.success.rate < 0.05
    assert ("makes progress" in judged.advice[0]) == saved
    assert f"within 20 mm in {near / episodes:.1%}" in judged.progress
    assert f"at least 50 mm nearer to the goal at the end in {gained / episodes:.1%}" in judged.progress


@pytest.mark.parametrize(
    ("successes", "alpha"), [(0, 0.7), (19, 0.7), (20, 0.5), (25, 0.5), (30, 0.5), (31, 0.3), (100, 0.3)]
)
def test_suggested_alpha(successes, alpha):
    assert judge(successes).suggested_alpha == alpha


@pytest.mark.parametrize(
    ("solved", "base", "named"),
    [(0, "groot", True), (12, "remote", True), (20, "groot", True), (21, "groot", False), (0, "jacobian", False)],
)
def test_jacobian_is_the_fallback_up_to_20_percent(solved, base, named):
    assert any("--base jacobian" in line for line in judge(solved, base=base).advice) == named


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (10, 11, 0, 0), (10, 0, -1, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="need 0 <= successes"):
        verdict(Counts(*counts))
