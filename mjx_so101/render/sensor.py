"""What an image sensor does to a picture: exposure, white balance, contrast, blur and noise, on uint8.

What depends on one pixel alone becomes a table of 256 levels for each environment and channel. Two Warp kernels do the
rest in one pass over the pictures each: table and blur down the columns, then blur along the rows and noise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mjx_so101.params import EnvParams, Randomization
from mjx_so101.render.color import linear_to_srgb, srgb_to_linear
from mjx_so101.render.sensor_kernels import TAPS, make_program

SENSOR_FIELDS = ("exposure", "white_balance", "image_gamma", "image_blur", "image_noise")
"""Fields of EnvParams that `sense` reads."""


def sensor_varies(randomization: Randomization) -> bool:
    """Whether any sensor effect is ever other than its default."""
    return bool(randomization.varied(SENSOR_FIELDS))


@jax.jit
def sense(rgb: jax.Array, params: EnvParams, keys: jax.Array) -> jax.Array:
    """uint8 [env, camera, height, width, 3] sRGB as the sensors of the environments see it.

    params: [env, ...]. keys: one for each environment [env, 2]; its noise depends on nothing else.
    Exactly the input where all sensor fields of `params` have their defaults.
    """
    envs, cameras, height, width, _ = rgb.shape
    seeds = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(keys)
    _, seen = make_program(envs, cameras, height, width)(
        rgb.reshape(envs * cameras, height, 3 * width), levels(params), blur_weights(params.image_blur),
        params.image_noise, seeds,
    )  # fmt: skip
    return seen.reshape(rgb.shape)


def levels(params: EnvParams) -> jax.Array:
    """What becomes of each of the 256 levels without blur and noise: float32 [env, 3, 256] in [0, 1], sRGB."""
    warmth = 2.0 ** (params.white_balance / 2)
    gain = 2.0 ** params.exposure[:, None] * jnp.stack([warmth, jnp.ones_like(warmth), 1 / warmth], 1)
    light = srgb_to_linear(jnp.arange(256) / 255.0) * gain[..., None]
    return linear_to_srgb(jnp.clip(light, 0.0, 1.0)) ** params.image_gamma[:, None, None]


def blur_weights(sigma: jax.Array) -> jax.Array:
    """Gaussian weights of a pixel and of its neighbours 1 to 4 px away, for sigma [env] in px: [env, 5]."""
    weights = jnp.exp(-0.5 * (jnp.arange(TAPS + 1) / jnp.maximum(sigma, 1e-3)[:, None]) ** 2)
    return weights / (2 * jnp.sum(weights, 1, keepdims=True) - 1)
