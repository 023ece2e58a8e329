"""What became of each episode, one row each: for the terminal, for reports and for the captions of videos."""

from __future__ import annotations

from typing import Any

import numpy as np

from train.evaluate import Episodes


def outcomes(episodes: Episodes, first: int = 0) -> list[dict[str, Any]]:
    """One row of plain JSON types for each episode from index `first` on.

    'success' and 'at_end' have an entry for each tolerance (mm): the control step at which success came (None if
    never), and whether a success was still inside at the last step.
    """
    names = [f"{1000 * tolerance:g}" for tolerance in episodes.tolerances]
    rows = []
    for i in range(first, len(episodes)):
        steps = np.where(episodes.succeeded[i], episodes.success_step[i], -1).tolist()
        rows.append({
            "episode": i,
            "success": {name: step if step >= 0 else None for name, step in zip(names, steps, strict=True)},
            "at_end": dict(zip(names, episodes.at_end[i].tolist(), strict=True)),
            "final_distance_mm": 1000 * float(episodes.final_distance[i]),
            "gained_mm": 1000 * float(episodes.start_distance[i] - episodes.final_distance[i]),
            "final_yaw_deg": float(np.degrees(episodes.final_yaw[i])),
            "return": float(episodes.total_reward[i]),
            "invalid": bool(episodes.invalid[i]),
            "bad_target": bool(episodes.bad_target[i]),
        })  # fmt: skip
    return rows


def outcome(row: dict[str, Any]) -> str:
    """A row in a few words: of the tightest tolerance."""
    tolerance, step = next(iter(row["success"].items()))
    if row["invalid"]:
        return "invalid: a target was not finite" if row["bad_target"] else "invalid"
    if step is None:
        return f"never within {tolerance} mm"
    stays = "stays" if row["at_end"][tolerance] else "has left again"
    return f"within {tolerance} mm after {step} steps, {stays}"


def heading(tolerances: list[str]) -> str:
    """Head of a Markdown table of `line`s. tolerances: mm, as in a row's 'success'."""
    names = ["episode", *(f"{mm:>2} mm at step" for mm in tolerances)]
    names += ["ends within", "distance mm", "gained mm", "yaw deg", "return", "invalid"]
    return _cells(names) + "\n" + "|".join(["", *("-" * (len(name) + 2) for name in names), ""])


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table, aligned with `heading`."""
    steps = [f"{'-' if step is None else step:>13}" for step in row["success"].values()]
    inside = next((f"{mm} mm" for mm, there in row["at_end"].items() if there), "-")
    invalid = "bad target" if row["bad_target"] else "yes" if row["invalid"] else ""
    rest = [
        f"{inside:>11}",
        f"{row['final_distance_mm']:11.1f}",
        f"{row['gained_mm']:9.1f}",
        f"{row['final_yaw_deg']:7.1f}",
    ]
    return _cells([f"{row['episode']:7}", *steps, *rest, f"{row['return']:6.2f}", f"{invalid:7}"])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of rows, of which there must be at least one."""
    return "\n".join([heading(list(rows[0]["success"])), *map(line, rows)])


def _cells(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"
