"""Pictures for the learner: a renderer inside the jitted rollout, then the sensor, uint8 throughout."""

from __future__ import annotations

import jax
import numpy as np

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import ConfigError
from mjx_so101.render import RenderConfig, check_pictures, make_renderer
from mjx_so101.render.base import available_memory
from mjx_so101.render.sensor import sense_all, sensor_varies
from mjx_so101.task import State


class Eyes:
    """What the cameras of a batch of environments see at each control step."""

    def __init__(self, config: RenderConfig, env: PaperReturnEnv):
        """Raises ConfigError for a renderer that cannot work inside jit, an unknown camera, or too many pixels."""
        if config.renderer != "warp":
            raise ConfigError(
                f"renderer is {config.renderer!r}; learning from pixels needs 'warp', which draws inside jit."
            )
        self.config = config
        self.renderer = make_renderer(config, env.scene, env.num_envs, env.task.randomization)
        self._sensing = sensor_varies(env.task.randomization)

    def __call__(self, state: State, key: jax.Array) -> dict[str, jax.Array]:
        """{'pixels/CAMERA': uint8 [env, height, width, 3] sRGB}; jittable."""
        rgb = self.renderer.render(state)
        if self._sensing:
            rgb = sense_all(rgb, state.params, key)
        return {f"pixels/{name}": rgb[:, i] for i, name in enumerate(self.config.cameras)}

    def check(self, state: State) -> None:
        """Raise HealthError if a picture of `state` shows one colour only; call it from the host."""
        check_pictures(jax.jit(self.renderer.render)(state), self.config.cameras)


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
