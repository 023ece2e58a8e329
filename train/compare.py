"""`so101 compare`: one table and one plot of several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mjx_so101.errors import CheckpointError, ConfigError


def read_report(run: Path) -> dict[str, Any]:
    """report.json of a run folder. Raises CheckpointError if it is missing or damaged."""
    path = Path(run) / "report.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        if not (Path(run) / "config.json").exists():
            raise CheckpointError(f"{run} is not a run folder: neither report.json nor config.json is there.") from None
        raise CheckpointError(f"{run} has no report.json; finish the run with so101 train --resume {run}.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}).") from None


def compare_runs(runs: list[Path], out: Path) -> str:
    """Write comparison.md and comparison.png into `out`; gives the table.

    Columns: base and final success (mean action) at each tolerance, final distance, return, time, memory.
    """
    if not runs:
        raise ConfigError("no run given; name at least one run folder: so101 compare RUN...")
    reports = {str(run): read_report(run) for run in runs}
    tolerances = sorted({t for r in reports.values() for t in r["results"]["base"]["success"]}, key=float)
    head = ["run", "base", "randomization", *(f"{t} mm: base -> final" for t in tolerances)]
    head += ["distance mm", "return", "steps", "minutes", "memory GB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, report in reports.items():
        base, mean = report["results"]["base"], report["results"]["mean"]
        rates = [
            f"{base['success'][t]['rate']:.1%} -> {mean['success'][t]['rate']:.1%}" if t in mean["success"] else "-"
            for t in tolerances
        ]
        lines.append(
            "| "
            + " | ".join([
                name, report["config"]["base"], report["environment"]["randomization"]["name"], *rates,
                f"{mean['final_distance_mm']:.1f}", f"{mean['mean_return']:.2f}", f"{report['steps']:,}",
                f"{report['seconds']['total'] / 60:.1f}", f"{(report['peak_memory_bytes'] or 0) / 1e9:.1f}",
            ])
            + " |"
        )  # fmt: skip
    text = "\n".join(lines)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.md").write_text(text + "\n")
    _plot(reports, tolerances[0], out / "comparison.png")
    return text


def _plot(reports: dict[str, dict[str, Any]], tolerance: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, (name, report) in enumerate(reports.items()):
        points = [(e["steps"], e["success"][tolerance]["rate"]) for e in report["evaluations"]]
        axes.plot(*zip(*points, strict=True), color=f"C{i}", marker="o", ms=3, label=name)
        axes.axhline(report["results"]["base"]["success"][tolerance]["rate"], color=f"C{i}", ls="--", lw=1)
    axes.set(xlabel="control steps", ylabel=f"success within {tolerance} mm (mean action)", ylim=(-0.02, 1.02))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
