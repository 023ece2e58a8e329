"""Measurements of the control loop around GR00T, or around a model that answers at once, and of training in it."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bench.groot_model import gpu_memory, synchronize
from mjx_so101 import PaperReturnEnv
from mjx_so101.env import StepResult
from mjx_so101.render import Renderer
from mjx_so101.task import State
from policies.chunked import ChunkedPolicy
from policies.groot.policy import Gr00tPolicy
from policies.groot.source import Gr00tSource
from policies.model import ModelOptions
from policies.residual import Residual, ResidualConfig
from train.config import TrainConfig
from train.loop import Trainer
from train.ppo import PPOConfig
from train.rollout import SAMPLE, Roller

MINIBATCHES = 8


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

    name, noise_shape, note = "instant", (16, 32), ""
    training_range = state_range = None

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


def measure_loop(source: Gr00tSource, num_envs: int, horizon: int, steps: int) -> dict[str, Any]:
    """The whole loop with GR00T, and how much of its time is GR00T's."""
    timed = Timed(source.policy)
    source.policy.chunk = timed  # type: ignore[method-assign]
    try:
        loop = Loop(ChunkedPolicy(source, horizon, any_start=True), num_envs)  # the time depends on no values
        first, _ = loop.run(3)
        timed.take()
        passes = loop.roller.base.passes
        seconds, health = loop.run(steps)
        model = timed.take()
    finally:
        del source.policy.chunk
    return {
        "num_envs": num_envs,
        "horizon": horizon,
        "renewed_per_step": loop.roller.base.slots,
        "passes_per_step": (loop.roller.base.passes - passes) / steps,
        "steps_per_s": num_envs * steps / seconds,
        "seconds_per_step": seconds / steps,
        "groot_seconds_per_step": model / steps,
        "share_not_groot": 1 - model / seconds,
        "first_3_steps_s": first,
        **health,
        **gpu_memory(),
    }


def measure_recovery(source: Gr00tSource, num_envs: int, horizon: int, steps: int) -> dict[str, Any]:
    """Loop steps/s with an instant model: due environments drawn, all drawn, and the first with MJX's own graphs."""
    cases: dict[str, Callable[[], Loop]] = {
        "due": lambda: Loop(ChunkedPolicy(Instant(source), horizon), num_envs),
        "all": lambda: Loop(DrawsAll(Instant(source), horizon), num_envs),
        "due_recorded_anew": lambda: Loop(ChunkedPolicy(Instant(source), horizon), num_envs, host_stepped=False),
    }
    row = {}
    for name, make in cases.items():
        loop = make()
        loop.run(3)
        seconds, health = loop.run(steps)
        row[name] = {"steps_per_s": num_envs * steps / seconds, "seconds": seconds, **health}
        print(f"{name}: {row[name]['steps_per_s']:,.0f} steps/s, {1000 * seconds / steps:.1f} ms a step")
        del loop
        gc.collect()
    return row


def measure_training(options: ModelOptions, num_envs: int, unroll: int) -> dict[str, Any]:
    """PPO on top of the model: two iterations, a checkpoint, and one after resuming in a new trainer."""
    train = TrainConfig(
        base="groot", model=options, num_envs=num_envs, eval_episodes=2, video=False,
        steps=3 * num_envs * unroll, ppo=PPOConfig(unroll=unroll, minibatches=MINIBATCHES),
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
