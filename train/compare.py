"""`so101 compare`: one table and one plot of several runs of one task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mjx_so101.errors import CheckpointError, ConfigError
from train.report import rate, seen
from train.run_folder import no_run_folder

_NEEDED = ("results", "evaluations", "config", "environment", "task", "saw", "steps", "seconds", "peak_memory_bytes")
_SHOWN = 12  # differences listed


def read_report(run: Path) -> dict[str, Any]:
    """report.json of a run folder. Raises CheckpointError if it is missing, damaged or of an older version."""
    path = Path(run) / "report.json"
    fix = f"so101 train --resume {run}"
    try:
        report = json.loads(path.read_text())
    except FileNotFoundError:
        if not (Path(run) / "config.json").exists():
            raise no_run_folder(run, "neither report.json nor config.json is there") from None
        raise CheckpointError(f"{run} has no report.json; finish the run with {fix}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); write it again with {fix}.") from None
    missing = [name for name in _NEEDED if not isinstance(report, dict) or name not in report]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it is none of this version; write it with {fix}.")
    return report


def compare_runs(runs: list[Path], out: Path, mixed: bool = False) -> str:
    """Write comparison.md and comparison.png into `out`; gives the text of the former.

    Success is shown with 95 % Wilson intervals, of the base alone -> of the final policy (mean action), ever held and
    at the end. Raises ConfigError if the tasks differ, unless `mixed`: then the differences stand above the table.
    """
    if not runs:
        raise ConfigError("no run given; name at least one run folder: so101 compare RUN...")
    if twice := [run for i, run in enumerate(runs) if run.resolve() in [other.resolve() for other in runs[:i]]]:
        raise ConfigError(f"{twice[0]} is named twice; name each run folder once.")
    reports = {str(run): read_report(run) for run in runs}
    different = differences({name: report["task"] for name, report in reports.items()})
    if different and not mixed:
        raise ConfigError(
            "these runs are not of one task:\n" + "\n".join(f"  {text}" for text in different) + "\nCompare runs of "
            "one task, or give --mixed: the table then says how they differ."
        )
    common = set.intersection(*(set(report["results"]["base"]["success"]) for report in reports.values()))
    parts = ["\n".join(f"- Different tasks: {text}" for text in different), table(reports), _NOTE]
    text = "\n\n".join(filter(None, [*parts, "" if common else "No plot: the runs have no tolerance in common."]))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.md").write_text(text + "\n")
    if common:
        _plot(reports, min(common, key=float), out / "comparison.png")
    return text


_NOTE = (
    "Base alone -> final policy (mean action), each with its 95 % Wilson interval. *Held*: inside for ten steps at any "
    "time; *at the end*: held, and still inside at the last step."
)


def differences(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """Where the tasks of runs differ, a line for each value: 'episodes: 512 in a; 4 in b'."""
    flat = {name: dict(_leaves(task)) for name, task in tasks.items()}
    lines = []
    for key in dict.fromkeys(key for task in flat.values() for key in task):
        values: dict[str, list[str]] = {}
        for name, task in flat.items():
            values.setdefault(json.dumps(task[key]) if key in task else "not recorded", []).append(name)
        if len(values) > 1:
            lines.append(f"{key}: " + "; ".join(f"{value} in {', '.join(names)}" for value, names in values.items()))
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more"]


def _leaves(task: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in task.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Markdown table, a line for each run."""
    tolerances = sorted({t for r in reports.values() for t in r["results"]["base"]["success"]}, key=float)
    head = ["run", "base", "seen", "randomization", "physics", "episodes"]
    head += [f"{t} mm, {kind}" for t in tolerances for kind in ("held", "at the end")]
    head += ["distance mm", "residual mrad", "return", "steps", "minutes", "memory GB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, report in reports.items():
        base, mean, env = report["results"]["base"], report["results"]["mean"], report["environment"]
        rates = [
            f"{rate(base[kind][t])} -> {rate(mean[kind][t])}" if t in mean[kind] else "-"
            for t in tolerances
            for kind in ("success", "success_at_end")
        ]
        row = [
            name, report["config"]["base"], seen(report["saw"]), env["randomization"]["name"], env["physics"],
            f"{mean['episodes']:,}", *rates, f"{base['final_distance_mm']:.1f} -> {mean['final_distance_mm']:.1f}",
            f"{1000 * mean['mean_residual_rad']:.1f}", f"{base['mean_return']:.2f} -> {mean['mean_return']:.2f}",
            f"{report['steps']:,}", f"{report['seconds']['total'] / 60:.1f}",
            f"{(report['peak_memory_bytes'] or 0) / 1e9:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _plot(reports: dict[str, dict[str, Any]], tolerance: str, path: Path) -> None:
    """Success of the selection episodes over steps with intervals."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, (name, report) in enumerate(reports.items()):
        evaluations = [e for e in report["evaluations"] if tolerance in e["success"]]
        steps, entries = [e["steps"] for e in evaluations], [e["success"][tolerance] for e in evaluations]
        axes.plot(steps, [e["rate"] for e in entries], color=f"C{i}", marker="o", ms=3, label=name)
        axes.fill_between(steps, [e["low"] for e in entries], [e["high"] for e in entries], color=f"C{i}", alpha=0.15)
        dashes = (4 * i, (4, 4 * max(1, len(reports) - 1)))  # lines on top of one another take turns
        axes.axhline(report["results"]["base"]["success"][tolerance]["rate"], color=f"C{i}", ls=dashes, lw=1)
    axes.plot([], [], color="grey", ls="--", lw=1, label="dashed: base alone, on the report episodes")
    axes.fill_between([], [], [], color="grey", alpha=0.15, label="95 % interval, on the selection episodes")
    axes.set(xlabel="control steps", ylabel=f"success within {tolerance} mm (mean action)", ylim=(-0.02, 1.02))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
