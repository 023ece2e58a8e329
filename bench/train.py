"""Trains with `so101 train` over several seeds, each in a process of its own, and records success and time.

    python -m bench.train --seeds 0 1 2 --out bench/results/h100_train.json -- --preset gpu
    python -m bench.train --folder runs/bench --blind-seeds 0 --out NAME.json -- --obs pixels --privileged-base

Rates are those of all episodes of all seeds together, with a 95 % Wilson interval. With `--folder`, a seed that has
been trained there by the same command and the same sources is not trained again: long lists can be made in parts.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

from bench.record import figure, word_of, write_record
from mjx_so101 import ConfigError, SO101Error
from train.provenance import prefix_of, source
from train.statistics import wilson_interval

KEPT = (
    "command", "commit", "dirty", "source_sha256", "device", "driver", "time_utc", "config", "environment", "steps",
    "seconds", "steps_per_second", "peak_memory_bytes", "results", "taught",
)  # fmt: skip
POLICIES = {"mean": "", "sample": "sampled_", "base": "base_", "noise": "noise_", "blind": "blank_"}
"""Policies of a report and what the names of their figures begin with. blank: the trained network, shown blank
pictures; a run with --blind was trained on them too, and `_blind` stands in all its names."""


@dataclasses.dataclass(frozen=True)
class TrainBenchConfig:
    """What to run; everything after -- goes to `so101 train`."""

    seeds: tuple[int, ...] = (0,)
    tolerance_mm: str = "5"
    """Which success makes the headline."""
    blind_seeds: tuple[int, ...] = ()
    """Seeds to train a second time with --blind added, the control."""
    over: Path | None = None
    """Another record of this command, of the same kind of device: training steps/s are also given over its own."""
    folder: Path | None = None
    """Where the run folders go, or are; default a temporary folder."""
    out: Path = Path("train.json")

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds is {self.seeds}; give at least one, each once.")
        if not set(self.blind_seeds) <= set(self.seeds):
            raise ConfigError(f"blind_seeds is {self.blind_seeds}; give some of the seeds {self.seeds}.")
        if self.over and not self.over.is_file():
            raise ConfigError(f"over is {str(self.over)!r}, which is no file; give a record of python -m bench.train.")


def run(seed: int, folder: Path, flags: list[str]) -> dict[str, Any]:
    """One training run; gives its report with the wall time of the whole command. Raises ConfigError if it fails."""
    words = ["train", *flags, "--seed", str(seed), "--out", str(folder)]
    path = folder / "report.json"
    if not path.exists():
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "train.cli", *words])
        if done.returncode or not path.exists():
            raise ConfigError(f"so101 {shlex.join(words)} failed ({done.returncode}); what it says stands above.")
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - begin))
    report = json.loads(path.read_text())
    _check_same(report, shlex.join(["so101", *words]), path)
    evaluations = [{k: e[k] for k in ("steps", "wall_seconds", "rate")} for e in report["evaluations"]]
    seconds = json.loads((folder / "seconds.json").read_text())
    kept = {name: report[name] for name in KEPT}
    return {"seed": seed, "command_seconds": seconds, **kept, "evaluations": evaluations}


def _check_same(report: dict[str, Any], command: str, path: Path) -> None:
    """Raise ConfigError if the report is of another command or other sources, or the run did not come to its end."""
    for name, found, wanted in (
        ("finished", report["finished"], True),
        ("command", report["command"], command),
        ("source_sha256", report["source_sha256"], source().source_sha256),
        ("commit", report["commit"], source().commit),
    ):
        if found != wanted:
            raise ConfigError(f"{name} of {path} is {found!r}, not {wanted!r}; name another --folder.")


def kind_of(report: dict[str, Any]) -> str:
    """What was trained, for the names of its figures: 'train' or what the residual sees, and what is not default."""
    config = report["config"]
    camera = config.get("sheet_pose") == "camera"
    words = ["train" if config["obs"] == "state" else config["obs"]]
    if camera:
        seer = "madrona" if config.get("render", {}).get("renderer") == "madrona" else "pixels"
        words = [seer, "blind" if config.get("blind") else "train"]
    words += ["privileged"] if config.get("privileged_base") else []
    words += [config["base"]] if config["base"] != "jacobian" else []
    name = report["environment"]["randomization"]["name"]
    words += [word_of(name)] if name != "plain" else []
    words += [config["sheet_friction"]] if config["sheet_friction"] != "dry" else []
    words += ["blind"] if config.get("blind") and not camera else []
    return "_".join(words)


def pooled(runs: list[dict[str, Any]], policy: str, kind: str, mm: str) -> dict[str, float]:
    """Rate over all episodes of all runs with its Wilson interval. kind: 'success' or 'success_at_end'."""
    results = [r["results"][policy] for r in runs]
    episodes = sum(result["episodes"] for result in results)
    count = sum(round(result[kind][mm]["rate"] * result["episodes"]) for result in results)
    low, high = wilson_interval(count, episodes)
    return {"value": count / episodes, "low": low, "high": high}


def figures(runs: list[dict[str, Any]], mm: str) -> list[dict[str, Any]]:
    """The headline of runs that differ only in their seed."""
    name = f"{prefix_of(runs[0]['device'])}_{kind_of(runs[0])}"
    found = [
        figure(f"{name}_{start}{kind}_{mm}mm", unit="fraction", **pooled(runs, policy, kind, mm))
        for policy, start in POLICIES.items()
        if policy in runs[0]["results"]
        for kind in ("success", "success_at_end")
    ]

    def longest(seconds) -> float:
        return max(seconds(r) for r in runs)

    return [
        *found,
        figure(f"{name}_minutes", longest(lambda r: r["command_seconds"]) / 60, "min"),
        figure(f"{name}_seconds_excl_compile", longest(_running), "s"),  # and without teaching
        figure(f"{name}_seconds_incl_compile", longest(lambda r: r["seconds"]["total"]), "s"),
        figure(f"{name}_steps_per_s", min(r["steps_per_second"] for r in runs), "control steps/s"),
    ]


def _running(run: dict[str, Any]) -> float:
    """Seconds of rollouts, updates and evaluations: without compilation, and without teaching the pose network."""
    spent = run["seconds"]
    return spent["total"] - spent["compile"] - spent.get("teaching", 0.0)


def speed_over(headline: list[dict[str, Any]], path: Path, device: str) -> dict[str, Any]:
    """Training steps/s of a headline over those of the record at `path`. Raises ConfigError for another device."""
    other = json.loads(path.read_text())
    if other["device"] != device:
        raise ConfigError(f"{path} is of {other['device']}, these runs are of {device}; measure it on the same device.")
    ours, theirs = (next(f for f in h if f["name"].endswith("_steps_per_s")) for h in (headline, other["headline"]))
    below = theirs["name"].removesuffix("_steps_per_s")
    return figure(f"{ours['name']}_over_{below}", ours["value"] / theirs["value"], "ratio")


def record(config: TrainBenchConfig, flags: list[str], sets: list[list[dict[str, Any]]]) -> None:
    """Write the JSON of the runs so far. sets: runs that differ only in their seed, each."""
    sets = [runs for runs in sets if runs]
    runs = [run for runs in sets for run in runs]
    devices = sorted({run["device"] for run in runs})
    if len(devices) > 1:
        raise ConfigError(f"the runs are of several devices: {', '.join(devices)}; name another --folder.")
    headline = [entry for runs in sets for entry in figures(runs, config.tolerance_mm)]
    if config.over:
        headline.append(speed_over(headline, config.over, devices[0]))
    write_record(
        config.out, headline,
        seeds=sorted({run["seed"] for run in runs}),
        num_envs=sorted({run["config"]["num_envs"] for run in runs}),
        conditions={
            "train_flags": flags,
            "rates": "all episodes of all seeds together, none of them used to choose a checkpoint",
            "times": "the slowest seed",
            "seeds_asked_for": list(config.seeds),
        },
        device=devices[0], runs=runs,
    )  # fmt: skip


def main(config: TrainBenchConfig, flags: list[str]) -> None:
    """Run all seeds; the JSON is written after each, so a run that is cut off keeps what it has."""
    folder = config.folder or Path(tempfile.mkdtemp(prefix="so101_bench_"))
    sets: list[list[dict[str, Any]]] = [[], []]
    for seed in config.seeds:
        sets[0].append(run(seed, folder / f"seed{seed}", flags))
        record(config, flags, sets)
    for seed in config.blind_seeds:
        sets[1].append(run(seed, folder / f"blind{seed}", [*flags, "--blind"]))
        record(config, flags, sets)


if __name__ == "__main__":
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    try:
        main(tyro.cli(TrainBenchConfig, args=given[:split]), given[split + 1 :])
    except SO101Error as error:
        sys.exit(f"error: {error}")
