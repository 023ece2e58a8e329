"""Trains with `so101 train` over several seeds, each in a process of its own, and records success and time.

python -m bench.train --prefix h100 --seeds 0 1 2 --out bench/results/NAME.json -- --preset gpu --base jacobian
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

from bench.record import figure, write_record

KEPT = ("command", "config", "environment", "steps", "seconds", "steps_per_second", "peak_memory_bytes", "results")


@dataclasses.dataclass(frozen=True)
class TrainBenchConfig:
    """What to run; everything after -- goes to `so101 train`."""

    prefix: str = "cpu"
    """First part of the headline names."""
    seeds: tuple[int, ...] = (0,)
    tolerance_mm: str = "5"
    """Which success makes the headline."""
    folder: Path | None = None
    """Where the run folders go; default a temporary folder."""
    extend: bool = False
    """Keep the seeds that `out` already holds and run only the others."""
    against: Path | None = None
    """Record of other runs, whose steps/s those of these runs are divided by in the headline."""
    out: Path = Path("train.json")


def run(seed: int, folder: Path, flags: list[str]) -> dict[str, Any]:
    """One training run; gives its report with the wall time of the whole command."""
    command = [sys.executable, "-m", "train.cli", "train", *flags, "--seed", str(seed), "--out", str(folder)]
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    report = json.loads((folder / "report.json").read_text())
    evaluations = [{k: e[k] for k in ("steps", "wall_seconds", "rate")} for e in report["evaluations"]]
    kept = {name: report[name] for name in KEPT}
    return {"seed": seed, "command_seconds": time.perf_counter() - begin, **kept, "evaluations": evaluations}


def record(config: TrainBenchConfig, flags: list[str], runs: list[dict[str, Any]]) -> None:
    """Write the JSON of the runs so far."""

    def pooled(policy: str) -> float:
        return sum(r["results"][policy]["success"][config.tolerance_mm]["rate"] for r in runs) / len(runs)

    def longest(seconds) -> float:
        return max(seconds(r) for r in runs)

    mm, prefix = config.tolerance_mm, config.prefix
    headline = [
        figure(f"{prefix}_success_{mm}mm", pooled("mean"), "fraction"),
        figure(f"{prefix}_sampled_success_{mm}mm", pooled("sample"), "fraction"),
        figure(f"{prefix}_base_success_{mm}mm", pooled("base"), "fraction"),
        figure(f"{prefix}_noise_success_{mm}mm", pooled("noise"), "fraction"),
        figure(f"{prefix}_minutes", longest(lambda r: r["command_seconds"]) / 60, "min"),
        figure(
            f"{prefix}_seconds_excl_compile", longest(lambda r: r["seconds"]["total"] - r["seconds"]["compile"]), "s"
        ),
        figure(f"{prefix}_seconds_incl_compile", longest(lambda r: r["seconds"]["total"]), "s"),
        figure(f"{prefix}_steps_per_s", min(r["steps_per_second"] for r in runs), "control steps/s"),
    ]
    if config.against:
        other = json.loads(config.against.read_text())
        ratio = min(r["steps_per_second"] for r in runs) / min(r["steps_per_second"] for r in other["runs"])
        headline.append(figure(f"{prefix}_steps_per_s_over_{config.against.stem}", ratio, "fraction"))
    note = f"{len(runs)} of {len(config.seeds)} seeds; rates: mean over seeds; times: slowest seed"
    write_record(config.out, headline, train_flags=flags, note=note, runs=runs)


def main(config: TrainBenchConfig, flags: list[str]) -> None:
    """Run all seeds; the JSON is written after each, so a run that is cut off keeps what it has."""
    folder = config.folder or Path(tempfile.mkdtemp(prefix="so101_bench_"))
    runs: list[dict[str, Any]] = json.loads(config.out.read_text())["runs"] if config.extend else []
    done = {r["seed"] for r in runs}
    for seed in [s for s in config.seeds if s not in done]:
        runs.append(run(seed, folder / f"{config.prefix}-{seed}", flags))
        record(config, flags, runs)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    main(tyro.cli(TrainBenchConfig, args=arguments[:split]), arguments[split + 1 :])
