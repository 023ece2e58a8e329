"""Throughput with GR00T as the base policy: inferences/s, the control loop, what drawing less wins, fp8, training.

    python -m bench.groot --out bench/results/h100_groot.json

The weights are random: the model's time does not depend on them, and nothing that the arm does means anything. Phases
run in one process, so that the model is loaded and compiled once; the record is written after each.

loop      control steps/s of physics, drawing of the environments whose chunk is due, GR00T, residual, reward and resets
recovery  the same loop with an instant model, drawing due environments against all of them
train     two PPO iterations, a checkpoint, and one more iteration after resuming from it in a new trainer
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from train.hardware import set_caches, share_gpu

set_caches()
share_gpu()

import tyro

from bench.groot_loop import MINIBATCHES, measure_loop, measure_recovery, measure_training
from bench.groot_model import measure_exchange, measure_fp8, measure_inference, write_profile
from bench.record import figure, write_record
from mjx_so101 import ConfigError, SO101Error
from mjx_so101.errors import require_choice
from policies.groot.make_checkpoint import SIZES, make_checkpoint
from policies.model import ModelOptions
from train.provenance import device, prefix_of

PHASES = ("inference", "recovery", "loop", "train", "fp8")


@dataclasses.dataclass(frozen=True)
class GrootBenchConfig:
    """What to measure."""

    size: str = "full"
    """Random checkpoint to make: 'full' (3B) or 'tiny'."""
    folder: Path | None = None
    """Where it is, or is made; default: a temporary folder."""
    micro_batch: tuple[int, ...] = (148,)
    """Environments a pass; each is measured, the first is the loop's."""
    num_envs: int = 2048
    horizon: int = 16
    steps: int = 30
    """Control steps that are timed."""
    unroll: int = 8
    """Control steps of a PPO iteration."""
    phases: tuple[str, ...] = PHASES
    profile: Path | None = None
    """Text file for the time of each kernel in one pass of the inference phase."""
    out: Path = Path("groot.json")

    def __post_init__(self) -> None:
        require_choice("size", self.size, SIZES)
        for name in self.phases:
            require_choice("phases", name, PHASES)
        for name in ("num_envs", "steps", "unroll"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if "train" in self.phases and self.num_envs * self.unroll % MINIBATCHES:
            raise ConfigError(
                f"num_envs x unroll is {self.num_envs} x {self.unroll}; the train phase needs a multiple of "
                f"{MINIBATCHES}."
            )
        if not self.micro_batch or min(self.micro_batch) < 1:
            raise ConfigError(f"micro_batch is {self.micro_batch}; give at least one size, each at least 1.")


def main(config: GrootBenchConfig) -> None:
    """Run the phases."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = config.folder or Path(temporary) / "checkpoint"
        if not (folder / "config.json").exists():
            print(f"writing a {config.size} checkpoint of random weights")
            make_checkpoint(folder, config.size)
        options = ModelOptions(
            checkpoint=str(folder), horizon=config.horizon, micro_batch=config.micro_batch[0], any_start=True
        )
        run(config, options)


def run(config: GrootBenchConfig, options: ModelOptions) -> None:
    """Run the phases on a checkpoint; the record is written after each."""
    headline: list[dict[str, Any]] = []
    details: dict[str, Any] = {}

    def keep(phase: str, result: Any, *figures: tuple[str, float, str]) -> None:
        details[phase] = result
        headline.extend(figure(f"{prefix}_{name}", value, unit) for name, value, unit in figures)
        print(f"{phase}: {result}")
        write_record(config.out, headline, num_envs=[config.num_envs], conditions=conditions, **details)

    prefix = prefix_of(device())
    conditions = {"weights": f"random, {config.size}", "horizon": config.horizon, "micro_batch": config.micro_batch}
    source = options.load("groot")
    sizes = config.num_envs, config.horizon, config.steps
    details["model"] = source.describe()
    if "inference" in config.phases:
        rows = [measure_inference(source.policy, batch) for batch in config.micro_batch]
        best = max(rows, key=lambda row: row["inferences_per_s"])
        figures = [("groot_inferences_per_s", best["inferences_per_s"], "inferences/s")]
        if "torch_peak_gib" in best:
            figures.append(("groot_torch_peak_gib", max(row["torch_peak_gib"] for row in rows), "GiB"))
        source.policy.micro_batch = config.micro_batch[0]
        if config.profile:
            write_profile(source.policy, config.micro_batch[0], config.profile)
        details["exchange"] = measure_exchange(source, config.micro_batch[0])
        keep("inference", rows, *figures)
    if "loop" in config.phases:
        row = measure_loop(source, *sizes)
        figures = [
            ("groot_loop_steps_per_s", row["steps_per_s"], "control steps/s"),
            ("groot_loop_share_not_groot", row["share_not_groot"], "1"),
        ]
        if "device_in_use_gib" in row:
            figures.append(("groot_loop_device_memory_gib", row["device_in_use_gib"], "GiB"))
        keep("loop", row, *figures)
    if "recovery" in config.phases:
        row = measure_recovery(source, *sizes)
        ratio = row["due"]["steps_per_s"] / row["all"]["steps_per_s"]
        keep("recovery", row, ("image_recovery_ratio", ratio, "1"))
    if "train" in config.phases:
        row = measure_training(options, config.num_envs, config.unroll)
        keep("train", row, ("groot_train_steps_per_s", row["steps_per_s"], "control steps/s"))
    if "fp8" in config.phases:
        row = measure_fp8(options, source.policy, config.micro_batch[0])
        keep(
            "fp8", row,
            ("groot_fp8_inferences_per_s", row["inferences_per_s"], "inferences/s"),
            ("groot_fp8_mean_action_error_rad", row["mean_action_error_rad"], "rad"),
        )  # fmt: skip


if __name__ == "__main__":
    try:
        main(tyro.cli(GrootBenchConfig))
    except SO101Error as error:
        sys.exit(f"error: {error}")
