"""Base policies that run a model outside JAX: GR00T on this machine, or a server.

The model looks at pictures and joint angles and answers with chunks of absolute joint targets. Between two jitted
control steps `refill` renews a few chunks (see `policies.chunks`) and draws only the environments it renews. Where
episodes do not start anew by themselves, as in evaluation, it renews all of them once their chunks are executed, so
that what an episode gets does not depend on how many run beside it.

A target that is not finite is passed on as it is: the task holds the old one, counts it and ends the episode.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError, Interrupted, require_choice
from mjx_so101.render import AUTO, BACKENDS, PRESETS, RenderConfig, Renderer, make_renderer
from mjx_so101.render.sensor import sense, sensor_varies
from mjx_so101.task import Observation, State
from policies import chunks
from policies.chunks import Chunks
from policies.start import outside_training, require_start

LEAD_SCALE = 10.0
SENSOR_TAG, NOISE_TAG = 11, 12
"""Folded into an environment's own key for its sensor's noise and the model's; 0 and 1 give what the task draws."""


class ChunkSource(Protocol):
    """A model that turns what the robot sees into chunks of absolute joint targets."""

    name: str
    cameras: tuple[str, ...]
    """Views that it wants, in this order."""
    horizon: int
    """Targets in a chunk."""
    noise_shape: tuple[int, ...]
    """Shape of one environment's starting noise."""
    training_range: tuple[np.ndarray, np.ndarray] | None
    """Lowest and highest target [6] (rad) in its training data, where it tells."""
    state_range: tuple[np.ndarray, np.ndarray] | None
    """Lowest and highest measured joint angle [6] (rad) in its training data, where it tells."""
    note: str
    """What a reader of any result must know, or nothing."""

    def chunk(self, images: jax.Array, state: jax.Array, noise: jax.Array) -> jax.Array:
        """float32 [n, horizon, 6] (rad) of uint8 images [n, camera, height, width, 3], joint angles [n, 6] (rad) and
        noise [n, *noise_shape]."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it is, for the record beside a result."""
        ...


class ChunkedPolicy:
    """Base policy that executes the chunks of a `ChunkSource`. See `policies.base.BasePolicy`.

    Built without an environment it only knows its model; `for_env` gives the one that works, with a renderer for the
    environments renewed in a pass. Several share one model.
    """

    jittable = False
    horizon = 1
    sees: tuple[str, ...] = ("joints", "pictures")
    """All that the model is shown."""
    num_features = 7  # how far the chunk is executed, and where it leads

    def __init__(
        self,
        source: ChunkSource,
        executed: int = 16,
        renderer: str = AUTO,
        env: PaperReturnEnv | None = None,
        size: tuple[int, int] | None = None,
        any_start: bool = False,
    ):
        """executed: actions of a chunk that an environment executes at most. renderer: 'auto' or one of
        `render.BACKENDS`. size: width and height of the pictures (px); default 320 x 240. any_start: do not refuse a
        start pose, see `check_start`.

        Raises ConfigError for more actions than a chunk has, another renderer, a camera that the scene lacks, or a
        start pose that is not allowed.
        """
        if not 1 <= executed <= source.horizon:
            raise ConfigError(
                f"horizon is {executed}; a chunk of this model has {source.horizon} actions: give 1 to "
                f"{source.horizon}."
            )
        require_choice("base_renderer", renderer, (AUTO, *BACKENDS))
        self.source, self.executed = source, executed
        self.name, self.cameras, self.note = source.name, source.cameras, source.note
        self.training_range = source.training_range
        self.any_start = any_start
        self.render_config = pictures_for(renderer, source.cameras, size)
        self.passes = 0
        """Passes through the model so far."""
        self.stopped: Callable[[], bool] = lambda: False
        """Asked before each pass; True raises Interrupted."""
        self._in_use: list[Any] = []
        if env is not None:
            self._bind(env)

    def _bind(self, env: PaperReturnEnv) -> None:
        self.env = env
        self.check_start(env.task.config.home)
        self.staggered = env.auto_reset
        n = env.num_envs
        self.slots = chunks.slots(n, self.executed) if self.staggered else chunks.whole_slots(n)
        self.renderer = self._make_renderer()
        self._senses = sensor_varies(env.task.randomization)
        draw = self.renderer.render
        self._draw = jax.jit(draw) if self.renderer.jittable else draw
        self._begin, self._store = jax.jit(_begin), jax.jit(self._store_pass)
        self._choose, self._feel = jax.jit(self._choose_envs), jax.jit(self._joints_and_noise)
        self._sense = jax.jit(_sense)

    def check_start(self, home: tuple[float, ...]) -> None:
        """Raise ConfigError if start pose `home` [6] (rad) is unlike the training data; with `any_start`, note it."""
        if not self.any_start:
            require_start(home, self.source.state_range)
        elif strange := outside_training(home, self.source.state_range):
            text = f"{self.source.note} The start pose is unlike the training data: {'; '.join(strange)}."
            self.note = text.strip()

    def _make_renderer(self) -> Renderer:
        there = self.env.scene.camera_names
        unknown = [name for name in self.cameras if name not in there]
        if unknown:
            raise ConfigError(
                f"{self.name} wants camera {unknown[0]!r}; the scene has {', '.join(there)}. Say which of them each "
                "camera of the model is, as in --camera-map KEY=top (so101 groot inspect lists the keys), or add it "
                "with SceneConfig(extra_cameras=...)."
            )
        return self._renderer_for(self.slots)

    def _renderer_for(self, num_envs: int) -> Renderer:
        return make_renderer(
            self.render_config, self.env.scene, num_envs, self.env.task.randomization, host_stepped=True
        )

    def for_env(self, env: PaperReturnEnv) -> ChunkedPolicy:
        """The same policy, with the same model, for the environments of `env`."""
        drawn = self.render_config
        return type(self)(self.source, self.executed, drawn.renderer, env, (drawn.width, drawn.height), self.any_start)

    # -- the protocol of base policies -------------------------------------------------------------------------------
    def init(self, num_envs: int) -> Chunks:
        """Empty buffers."""
        return chunks.no_chunks(num_envs, self.source.horizon)

    def chunk(self, carry: Chunks, observation: Observation, key: jax.Array, reset_mask: jax.Array):
        """The next action of each buffer, [env, 1, 6]; `refill` has already dealt with the resets."""
        del observation, key, reset_mask
        carry, target = chunks.execute(carry)
        return carry, target[:, None]

    def features(self, carry: Chunks) -> jax.Array:
        """How much of the chunk is executed, and where its last action leads from the present one.

        For a chunk that is used up this is what it was after its last action.
        """
        present = chunks.action(carry, carry.position - 1)
        done = carry.position / self.source.horizon
        return jnp.concatenate([done[:, None], LEAD_SCALE * (carry.targets[:, -1] - present)], axis=1)

    # -- between two control steps -----------------------------------------------------------------------------------
    def refill(self, carry: Chunks, state: State) -> Chunks:
        """Buffers in which every environment has an action of its present episode. Called from the host.

        It waits for the device once, to learn how many environments wait for a chunk.
        """
        carry, waiting = self._begin(carry, state)
        passes = math.ceil(int(waiting) / self.slots)
        if passes:
            self._in_use.clear()  # the device has caught up: nobody reads these any more
        for i in range(passes):
            if self.stopped():
                raise Interrupted
            envs = self._choose(carry, state)
            inputs = self.look(state, envs)
            targets = jnp.asarray(self.source.chunk(*inputs))
            # a source may read in another library, and JAX would reuse the memory of arrays that only that still reads
            self._in_use.append((inputs, targets))
            carry = self._store(carry, envs, targets, waiting, i)
        self.passes += passes
        return carry

    def look(self, state: State, envs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images, joint angles and noise of environments `envs` [slots], as `ChunkSource.chunk` takes them."""
        images = jnp.asarray(self._draw(state, envs))
        if self._senses:
            images = self._sense(images, state, envs)
        return images, *self._feel(state, envs)

    def _choose_envs(self, carry: Chunks, state: State) -> jax.Array:
        return chunks.choose(carry, state.step == 0, self.slots)

    def _store_pass(
        self, carry: Chunks, envs: jax.Array, targets: jax.Array, waiting: jax.Array, i: jax.Array
    ) -> Chunks:
        rank = i * self.slots + jnp.arange(self.slots)
        limits = jnp.full(self.slots, self.executed, jnp.int32)
        if self.staggered:
            limits = chunks.first_limits(rank, waiting, len(carry.limit), self.executed)
        return chunks.store(carry, envs, targets, limits)

    def _joints_and_noise(self, state: State, envs: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jax.tree.map(lambda x: x[envs], state)
        joints = jax.vmap(self.env.task.observe)(rows).joint_pos
        keys = _own_keys(rows.key, NOISE_TAG)
        return joints, jax.vmap(lambda key: jax.random.normal(key, self.source.noise_shape))(keys)

    # -- for reports -------------------------------------------------------------------------------------------------
    def pictures(self, state: State) -> np.ndarray:
        """What the model is shown of the first environments: uint8 [slots, camera, height, width, 3]."""
        return np.asarray(self.look(state, jnp.arange(self.slots))[0])

    def inference_stats(self) -> dict[str, float]:
        """Passes so far, and the time of one: the median of five with the images of the last, waited for."""
        if not self._in_use:
            return {"passes": 0, "inferences": 0}
        inputs, _ = self._in_use[-1]
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            jax.block_until_ready(jnp.asarray(self.source.chunk(*inputs)))
            seconds.append(time.perf_counter() - begin)
        latency = float(np.median(seconds))
        return {
            "passes": self.passes,
            "inferences": self.passes * self.slots,
            "latency_s_median": latency,
            "inferences_per_s": self.slots / latency,
        }


def pictures_for(renderer: str, cameras: tuple[str, ...], size: tuple[int, int] | None = None) -> RenderConfig:
    """What a model is shown: all its cameras, drawn in full detail. size: width and height (px); default 320 x 240."""
    preset = PRESETS["gr00t"]
    width, height = size or (preset.width, preset.height)
    return dataclasses.replace(preset, renderer=renderer, cameras=cameras, width=width, height=height)


def _begin(carry: Chunks, state: State) -> tuple[Chunks, jax.Array]:
    """Buffers without the chunks of ended episodes, and how many environments have none."""
    carry = chunks.drop(carry, state.step == 0)
    return carry, jnp.sum(carry.used_up)


def _sense(images: jax.Array, state: State, envs: jax.Array) -> jax.Array:
    """Images after the sensor effects of environments `envs`."""
    params, keys = jax.tree.map(lambda x: x[envs], (state.params, state.key))
    return sense(images, params, _own_keys(keys, SENSOR_TAG))


def _own_keys(keys: jax.Array, tag: int) -> jax.Array:
    """A key of each environment's own, so that its noise does not depend on who else is renewed."""
    return jax.vmap(lambda key: jax.random.fold_in(key, tag))(keys)
