"""The row that each episode gets: in words, as a line and in a table."""

import numpy as np
import pytest

from train.evaluate import Episodes
from train.outcomes import heading, line, outcome, outcomes, table


def canned(**changes):
    """Four episodes at 5 and 20 mm: stays, has left again, only near, invalid by a bad target."""
    succeeded = np.array([[True, True], [True, True], [False, True], [False, False]])
    values = {
        "succeeded": succeeded,
        "at_end": np.array([[True, True], [False, True], [False, True], [False, False]]),
        "success_step": np.where(succeeded, 120, -1),
        "start_distance": np.full(4, 0.1),
        "final_distance": np.array([0.002, 0.008, 0.015, 0.12]),
        "final_yaw": np.radians([1.0, 2.0, 3.0, 4.0]),
        "total_reward": np.array([3.0, 2.5, 0.25, -1.0]),
        "residual": np.zeros(4),
        "residual_rms": np.zeros(4),
        "invalid": np.arange(4) == 3,
        "bad_target": np.arange(4) == 3,
        "nonfinite": np.arange(4) == 3,
        "overflow": np.zeros(4, bool),
        "tolerances": (0.005, 0.020),
        "seconds": 1.0,
    }
    return Episodes(**{**values, **changes})


def test_rows_hold_what_became_of_each_episode(read_json):
    rows = outcomes(canned())
    assert [row["episode"] for row in rows] == [0, 1, 2, 3]
    assert [row["success"] for row in rows] == [
        {"5": 120, "20": 120}, {"5": 120, "20": 120}, {"5": None, "20": 120}, {"5": None, "20": None}
    ]  # fmt: skip
    assert [row["at_end"]["5"] for row in rows] == [True, False, False, False]
    assert [row["final_distance_mm"] for row in rows] == pytest.approx([2, 8, 15, 120])
    assert [row["gained_mm"] for row in rows] == pytest.approx([98, 92, 85, -20])
    assert [row["final_yaw_deg"] for row in rows] == pytest.approx([1, 2, 3, 4])
    assert [row["return"] for row in rows] == [3.0, 2.5, 0.25, -1.0]
    assert [row["invalid"] for row in rows] == [row["bad_target"] for row in rows] == [False, False, False, True]


def test_later_rows_keep_their_index():
    assert outcomes(canned(), first=2) == outcomes(canned())[2:]
    assert outcomes(canned(), first=4) == []


def test_outcome_in_words():
    assert [outcome(row) for row in outcomes(canned())] == [
        "within 5 mm after 120 steps, stays",
        "within 5 mm after 120 steps, has left again",
        "never within 5 mm",
        "invalid: a target was not finite",
    ]
    lost = outcomes(canned(bad_target=np.zeros(4, bool)))[3]
    assert outcome(lost) == "invalid"


def test_lines_stand_below_their_heading():
    text = table(outcomes(canned())).splitlines()
    assert "\n".join(text[:2]) == heading(["5", "20"])
    assert text[2:] == [line(row) for row in outcomes(canned())]
    bars = [[i for i, sign in enumerate(row) if sign == "|"] for row in text]
    assert all(places[:-1] == bars[0][:-1] for places in bars)  # the last column may be wider
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in text]
    assert cells[0] == [
        "episode", "5 mm at step", "20 mm at step", "ends within", "distance mm", "gained mm", "yaw deg", "return",
        "invalid",
    ]  # fmt: skip
    assert cells[3] == ["1", "120", "120", "20 mm", "8.0", "92.0", "2.0", "2.50", ""]
    assert cells[5] == ["3", "-", "-", "-", "120.0", "-20.0", "4.0", "-1.00", "bad target"]
