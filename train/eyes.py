"""Pictures for the learner: a renderer, inside the jitted rollout where it can, then the sensor, uint8 throughout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError
from mjx_so101.render import RenderConfig, check_pictures, make_renderer
from mjx_so101.render.base import Array, available_memory
from mjx_so101.render.sensor import sense, sensor_varies
from mjx_so101.scene import JOINTS
from mjx_so101.task import State

NUM_JOINTS = len(JOINTS)
MOVED = 0.15
"""rad: no camera of the scene can miss an arm that moved this far."""


class Eyes:
    """What the cameras of a batch of environments see at each control step."""

    def __init__(self, config: RenderConfig, env: PaperReturnEnv, blind: bool = False):
        """blind: draw nothing; every picture is black, the control of what pictures are worth.

        Raises ConfigError for what the renderer cannot draw or lacks, an unknown camera, or too many pixels.
        """
        self.config, self.blind, self._num_envs = config, blind, env.num_envs
        self.jittable = blind
        """False if the host must hand in what `drawn` gives."""
        if blind:
            return
        self.renderer = make_renderer(config, env.scene, env.num_envs, env.task.randomization)
        self.jittable = self.renderer.jittable
        self._sensing = sensor_varies(env.task.randomization)

    def drawn(self, state: State) -> Array | None:
        """What a renderer outside jit draws of `state`; None if there is none, and the call itself draws."""
        return None if self.jittable else self.renderer.render(state)

    def __call__(
        self, state: State, key: jax.Array, sight: bool | jax.Array = True, rgb: Array | None = None
    ) -> dict[str, jax.Array]:
        """{'pixels/CAMERA': uint8 [env, height, width, 3] sRGB}, black without `sight`; jittable. rgb: see `drawn`."""
        if self.blind:
            blank = jnp.zeros((self._num_envs, self.config.height, self.config.width, 3), jnp.uint8)
            return {f"pixels/{name}": blank for name in self.config.cameras}
        if rgb is None:
            rgb = self.renderer.render(state)
        if self._sensing:
            rgb = sense(rgb, state.params, jax.random.split(key, self._num_envs))
        rgb = rgb * jnp.asarray(sight, jnp.uint8)
        return {f"pixels/{name}": rgb[:, i] for i, name in enumerate(self.config.cameras)}

    def check(self, state: State) -> None:
        """Raise HealthError if a picture of `state` shows one colour only; call it from the host."""
        if not self.blind:
            draw = jax.jit(self.renderer.render) if self.jittable else self.renderer.render
            check_pictures(draw(state), self.config.cameras)


def picture_faults(vectors: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """How many environments of a rollout saw pictures that cannot be real.

    vectors: {'state': [time, env, size], 'pixels/CAMERA': uint8 [time, env, height, width, 3], ...}; the actor's vector
    begins with the measured joints. 'constant_pictures' show one colour in every step; 'frozen_pictures' are the same
    at the first and the last step although the arm moved by more than `MOVED` in between.
    """
    pixels = [pictures for name, pictures in vectors.items() if name.startswith("pixels/")]
    joints = vectors["state"][..., :NUM_JOINTS]
    moved = jnp.max(jnp.abs(joints[-1] - joints[0]), -1) > MOVED
    constant = [jnp.all(p.max((2, 3)) == p.min((2, 3)), (0, 2)) for p in pixels]  # [env] each
    frozen = [jnp.all(p[-1] == p[0], (1, 2, 3)) & moved for p in pixels]
    return {
        "constant_pictures": jnp.sum(jnp.any(jnp.stack(constant), 0)),
        "frozen_pictures": jnp.sum(jnp.any(jnp.stack(frozen), 0)),
    }


def pixel_memory(config: RenderConfig, num_envs: int, unroll: int, minibatches: int, eval_envs: int) -> dict[str, int]:
    """Bytes that training from pixels takes beyond training from state, by what takes them.

    The rollout's pictures are held twice (as collected, and flattened for the update); the renderer's buffers are
    packed pixels, rays and results; a minibatch costs its float32 pictures and, for the gradient, what the
    convolutions leave: about 2.6 floats per pixel and camera (strides 4 and 2, 32 and 64 channels), twice.
    """
    pixels = config.bytes_per_env // 3
    rows = num_envs * unroll // minibatches
    return {
        "rollout": 2 * num_envs * unroll * config.bytes_per_env,
        "renderer": (num_envs + eval_envs) * pixels * 16,
        "minibatch": rows * (config.bytes_per_env * 5 + int(2 * 2.6 * 4 * pixels)),
    }


def check_memory(config: RenderConfig, num_envs: int, unroll: int, minibatches: int, eval_envs: int) -> str:
    """One line on the memory that pixels will take. Raises ConfigError with the largest num_envs that fits."""

    def total(n: int) -> int:
        return sum(pixel_memory(config, n, unroll, minibatches, eval_envs).values())

    free = available_memory()
    parts = pixel_memory(config, num_envs, unroll, minibatches, eval_envs)
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    line = f"Pixels take {total(num_envs) / 2**30:.2f} of {free / 2**30:.1f} GiB ({listed})"
    if total(num_envs) <= free:
        return line
    sizes = np.arange(1, num_envs // minibatches + 1) * minibatches
    fitting = [int(n) for n in sizes if total(int(n)) <= free]
    fix = f"the largest --num-envs that fits is {fitting[-1]}" if fitting else "choose smaller --width and --height"
    raise ConfigError(f"{line}: too much. With these settings {fix}.")
