"""Throughput with GR00T as the base policy: inferences/s, the control loop, what drawing less wins, fp8, training.

    python -m bench.groot --prefix h100 --out bench/results/h100_groot.json

The weights are random: the model's time does not depend on them, and nothing that the arm does means anything. Phases
run in one process, so that the model is loaded and compiled once; the record is written after each.

loop      control steps/s of physics, drawing of the environments whose chunk is due, GR00T, residual, reward and resets
recovery  the same loop with an instant model, drawing due environments against all of them
train     two PPO iterations, a checkpoint, and one more iteration after resuming from it in a new trainer
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.hardware import set_caches, share_gpu

set_caches()
share_gpu()

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from bench.record import figure, write_record
from mjx_so101 import ConfigError, PaperReturnEnv, SO101Error
from mjx_so101.env import StepResult
from mjx_so101.errors import require_choice
from mjx_so101.render import Renderer
from mjx_so101.task import State
from policies.chunked import ChunkedPolicy
from policies.groot.dlpack import to_torch
from policies.groot.make_checkpoint import SIZES, make_checkpoint
from policies.groot.policy import Gr00tPolicy
from policies.groot.source import Gr00tSource
from policies.model import ModelOptions
from policies.residual import Residual, ResidualConfig
from train.config import TrainConfig
from train.loop import Trainer
from train.ppo import PPOConfig
from train.rollout import SAMPLE, Roller

MINIBATCHES = 8
PHASES = ("inference", "recovery", "loop", "train", "fp8")


@dataclasses.dataclass(frozen=True)
class GrootBenchConfig:
    """What to measure."""

    prefix: str = "cpu"
    """First part of the headline names."""
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


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gpu_memory() -> dict[str, float]:
    """Peak GiB of torch, and GiB in use on the whole device: JAX's share, Warp's buffers and torch."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "torch_peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "torch_reserved_gib": torch.cuda.memory_reserved() / 2**30,
        "device_in_use_gib": (total - free) / 2**30,
    }


# -- the model alone ---------------------------------------------------------------------------------------------------
def random_inputs(policy: Gr00tPolicy, batch: int) -> tuple[torch.Tensor, ...]:
    """Images of noise at the renderer's size, joint angles and starting noise, on the policy's device."""
    random = torch.Generator(policy.device).manual_seed(0)
    make = {"device": policy.device, "generator": random}
    return (
        torch.randint(0, 256, (batch, len(policy.cameras), 240, 320, 3), dtype=torch.uint8, **make),
        0.5 * torch.rand(batch, 6, **make),
        torch.randn(batch, policy.horizon, policy.config.head.action_dim, **make),
    )


def measure_inference(policy: Gr00tPolicy, batch: int, repeats: int = 10) -> dict[str, Any]:
    """Inferences/s of one micro-batch from uint8 images to joint targets, with what the first call took."""
    policy.micro_batch = batch
    inputs = random_inputs(policy, batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    policy.chunk(*inputs)
    synchronize()
    first = time.perf_counter() - begin
    policy.chunk(*inputs)
    synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        policy.chunk(*inputs)
    synchronize()
    seconds = (time.perf_counter() - begin) / repeats
    return {
        "micro_batch": batch,
        "inferences_per_s": batch / seconds,
        "seconds_per_pass": seconds,
        "first_pass_s": first,
        **gpu_memory(),
    }


def write_profile(policy: Gr00tPolicy, batch: int, path: Path) -> None:
    """Write the time of each kernel of one pass, the longest first."""
    inputs = random_inputs(policy, batch)
    with torch.profiler.profile() as profile:
        policy.chunk(*inputs)
        synchronize()
    column = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(profile.key_averages().table(sort_by=column, row_limit=60, max_name_column_width=100))
    print(f"written: {path}")


def measure_fp8(options: ModelOptions, reference: Gr00tPolicy, batch: int) -> dict[str, Any]:
    """Inferences/s in fp8, and how far its targets are from those of `reference` on the same inputs and noise."""
    policy = Gr00tSource.load(dataclasses.replace(options, fp8=True)).policy
    row = measure_inference(policy, batch)
    inputs = random_inputs(policy, batch)
    exact, fast = reference.chunk(*inputs), policy.chunk(*inputs)
    difference = (fast - exact).abs()
    return {
        **row,
        "mean_action_error_rad": float(difference.mean()),
        "largest_action_error_rad": float(difference.max()),
        "standard_deviation_of_actions_rad": float(exact.std(dim=(0, 1)).mean()),
    }


def measure_exchange(source: Gr00tSource, batch: int) -> dict[str, Any]:
    """Whether arrays change sides between JAX and torch in place: addresses, and copies to the host in a profile."""
    inputs = [jnp.asarray(x.cpu().numpy()) for x in random_inputs(source.policy, batch)]
    there = [to_torch(array) for array in inputs]
    jax.block_until_ready(source.chunk(*inputs))
    with torch.profiler.profile() as profile:
        targets = source.chunk(*inputs)
        jax.block_until_ready(targets)
    copies = [event.key for event in profile.key_averages() if "DtoH" in event.key or "HtoD" in event.key]
    return {
        "same_addresses": [a.unsafe_buffer_pointer() == b.data_ptr() for a, b in zip(inputs, there, strict=True)],
        "copies_between_host_and_device": copies,
    }


# -- the control loop --------------------------------------------------------------------------------------------------
class Timed:
    """Measures the time that a model needs on the GPU (or the CPU) within a loop, without waiting for it."""

    def __init__(self, policy: Gr00tPolicy):
        self._call, self._spans = policy.chunk, []

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """`Gr00tPolicy.chunk`."""
        if not torch.cuda.is_available():
            begin = time.perf_counter()
            targets = self._call(*inputs)
            self._spans.append(time.perf_counter() - begin)
            return targets
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        targets = self._call(*inputs)
        end.record()
        self._spans.append((begin, end))
        return targets

    def take(self) -> float:
        """Seconds since the last call of this."""
        synchronize()
        spans, self._spans = self._spans, []
        return sum(span if isinstance(span, float) else span[0].elapsed_time(span[1]) / 1000 for span in spans)


class Instant:
    """A model that answers at once: the joint angles it was given."""

    name, noise_shape, training_range, note = "instant", (16, 32), None, ""

    def __init__(self, source: Gr00tSource):
        self.cameras, self.horizon = source.cameras, source.horizon
        self._answer = jax.jit(self._of)

    def _of(self, images: jax.Array, state: jax.Array) -> jax.Array:
        seen = jnp.mean(images.astype(jnp.float32))  # every pixel is needed
        return jnp.repeat(state[:, None], self.horizon, 1) + 1e-9 * seen

    def chunk(self, images: jax.Array, state: jax.Array, noise: jax.Array) -> jax.Array:
        """See `ChunkSource.chunk`."""
        del noise
        return self._answer(images, state)

    def describe(self) -> dict[str, Any]:
        """See `ChunkSource.describe`."""
        return {}


class DrawsAll(ChunkedPolicy):
    """Draws every environment in every control step and shows the model those that are due."""

    def _make_renderer(self) -> Renderer:
        renderer = self._renderer_for(self.env.num_envs)
        self._all = jax.jit(lambda state, envs: renderer.render(state)[envs])
        return renderer

    def look(self, state: State, envs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """See `ChunkedPolicy.look`."""
        return self._all(state, envs), *self._feel(state, envs)


class Loop:
    """The control loop that training runs, without the update."""

    def __init__(self, base: ChunkedPolicy, num_envs: int, host_stepped: bool = True):
        env = PaperReturnEnv(num_envs, "auto", "plain", host_stepped=host_stepped)
        residual = Residual(ResidualConfig(), base.num_features)
        self.num_envs = num_envs
        self.roller = Roller(env, base, residual, _health, mode=SAMPLE)
        self.learner = residual.init(jax.random.PRNGKey(0))
        carry = self.roller.start(jax.random.PRNGKey(1))
        age = jax.random.randint(jax.random.PRNGKey(2), (num_envs,), 0, env.task.config.episode_steps)
        self.carry = carry.replace(state=carry.state.replace(step=age.astype(jnp.int32)))

    def run(self, steps: int) -> tuple[float, dict[str, float]]:
        """Seconds of `steps` control steps, results on the host included, and what went wrong in them."""
        begin = time.perf_counter()
        self.carry, kept = self.roller.roll(self.learner, self.carry, steps)
        return time.perf_counter() - begin, {name: float(value.sum()) for name, value in kept.items()}


def _health(pending: Any, transition: Any, result: StepResult) -> dict[str, jax.Array]:
    del pending
    return {
        "resets": jnp.sum(result.done),
        "overflows": jnp.sum(result.last.physics.overflow != 0),
        "nonfinite": jnp.sum(result.last.nonfinite),
        "reward": jnp.sum(transition.reward),
    }


def measure_loop(config: GrootBenchConfig, source: Gr00tSource) -> dict[str, Any]:
    """The whole loop with GR00T, and how much of its time is GR00T's."""
    timed = Timed(source.policy)
    source.policy.chunk = timed  # type: ignore[method-assign]
    try:
        loop = Loop(ChunkedPolicy(source, config.horizon), config.num_envs)
        first, _ = loop.run(3)
        timed.take()
        passes = loop.roller.base.passes
        seconds, health = loop.run(config.steps)
        model = timed.take()
    finally:
        del source.policy.chunk
    return {
        "num_envs": config.num_envs,
        "horizon": config.horizon,
        "renewed_per_step": loop.roller.base.slots,
        "passes_per_step": (loop.roller.base.passes - passes) / config.steps,
        "steps_per_s": config.num_envs * config.steps / seconds,
        "seconds_per_step": seconds / config.steps,
        "groot_seconds_per_step": model / config.steps,
        "share_not_groot": 1 - model / seconds,
        "first_3_steps_s": first,
        **health,
        **gpu_memory(),
    }


def measure_recovery(config: GrootBenchConfig, source: Gr00tSource) -> dict[str, Any]:
    """Loop steps/s with an instant model: due environments drawn, all drawn, and the first with MJX's own graphs."""
    cases: dict[str, Callable[[], Loop]] = {
        "due": lambda: Loop(ChunkedPolicy(Instant(source), config.horizon), config.num_envs),
        "all": lambda: Loop(DrawsAll(Instant(source), config.horizon), config.num_envs),
        "due_recorded_anew": lambda: Loop(
            ChunkedPolicy(Instant(source), config.horizon), config.num_envs, host_stepped=False
        ),
    }
    row = {}
    for name, make in cases.items():
        loop = make()
        loop.run(3)
        seconds, health = loop.run(config.steps)
        row[name] = {"steps_per_s": config.num_envs * config.steps / seconds, "seconds": seconds, **health}
        print(f"{name}: {row[name]['steps_per_s']:,.0f} steps/s, {1000 * seconds / config.steps:.1f} ms a step")
        del loop
        gc.collect()
    return row


def measure_training(config: GrootBenchConfig, options: ModelOptions) -> dict[str, Any]:
    """PPO on top of the model: two iterations, a checkpoint, and one after resuming in a new trainer."""
    train = TrainConfig(
        base="groot", model=options, num_envs=config.num_envs, eval_episodes=2, video=False,
        steps=3 * config.num_envs * config.unroll, ppo=PPOConfig(unroll=config.unroll, minibatches=MINIBATCHES),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        first = Trainer(train, Path(folder))
        losses = [first.iterate() for _ in range(2)]
        first.save("last")
        again = Trainer(train, Path(folder))
        again.resume()
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), first.learner, again.learner)
        begin = time.perf_counter()
        losses.append(again.iterate())
        return {
            "steps": again.steps,
            "rollout_s": first.seconds["rollout"],
            "update_s": first.seconds["update"],
            "steps_per_s": first.steps_per_second,
            "resumed_learner_is_equal": all(jax.tree.leaves(same)),
            "resumed_iteration_s": time.perf_counter() - begin,
            "losses": losses,
            "note": "random weights: throughput and plumbing; success means nothing",
        }


def main(config: GrootBenchConfig) -> None:
    """Run the phases."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = config.folder or Path(temporary) / "checkpoint"
        if not (folder / "config.json").exists():
            print(f"writing a {config.size} checkpoint of random weights")
            make_checkpoint(folder, config.size)
        options = ModelOptions(checkpoint=str(folder), horizon=config.horizon, micro_batch=config.micro_batch[0])
        run(config, options)


def run(config: GrootBenchConfig, options: ModelOptions) -> None:
    """Run the phases on a checkpoint; the record is written after each."""
    headline: list[dict[str, Any]] = []
    details: dict[str, Any] = {}

    def keep(phase: str, result: Any, *figures: tuple[str, float, str]) -> None:
        details[phase] = result
        headline.extend(figure(f"{config.prefix}_{name}", value, unit) for name, value, unit in figures)
        print(f"{phase}: {result}")
        write_record(config.out, headline, **details)

    source = options.load("groot")
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
        row = measure_loop(config, source)
        figures = [
            ("groot_loop_steps_per_s", row["steps_per_s"], "control steps/s"),
            ("groot_loop_share_not_groot", row["share_not_groot"], "1"),
        ]
        if "device_in_use_gib" in row:
            figures.append(("groot_loop_device_memory_gib", row["device_in_use_gib"], "GiB"))
        keep("loop", row, *figures)
    if "recovery" in config.phases:
        row = measure_recovery(config, source)
        ratio = row["due"]["steps_per_s"] / row["all"]["steps_per_s"]
        keep("recovery", row, ("image_recovery_ratio", ratio, "1"))
    if "train" in config.phases:
        row = measure_training(config, options)
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
