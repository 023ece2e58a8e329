"""What an image sensor does to a picture: exposure, white balance, contrast, blur and noise, in JAX on uint8."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mjx_so101.params import EnvParams, Randomization
from mjx_so101.render.color import linear_to_srgb, srgb_to_linear

SENSOR_FIELDS = ("exposure", "white_balance", "image_gamma", "image_blur", "image_noise")
"""Fields of EnvParams that `sense` reads."""
_TAPS = 4
"""Half width of the blur kernel (px): enough for a standard deviation of up to 1.5 px, beyond it is cut off."""


def sensor_varies(randomization: Randomization) -> bool:
    """Whether any sensor effect is ever other than its default."""
    return bool(randomization.varied(SENSOR_FIELDS))


def sense(rgb: jax.Array, params: EnvParams, key: jax.Array) -> jax.Array:
    """uint8 [camera, height, width, 3] sRGB as the sensor of one environment sees it; vmap for more.

    Exactly the input where all sensor fields of `params` have their defaults.
    """
    light = srgb_to_linear(rgb / 255.0)
    warmth = 2.0 ** (params.white_balance / 2)
    light = light * 2.0**params.exposure * jnp.stack([warmth, jnp.ones_like(warmth), 1 / warmth])
    seen = linear_to_srgb(jnp.clip(light, 0.0, 1.0)) ** params.image_gamma
    seen = _blurred(seen, params.image_blur)
    seen = seen + params.image_noise * jax.random.normal(key, seen.shape)
    return jnp.clip(255 * seen + 0.5, 0, 255).astype(jnp.uint8)


def sense_all(rgb: jax.Array, params: EnvParams, key: jax.Array) -> jax.Array:
    """`sense` for a batch: uint8 [env, camera, height, width, 3], params [env, ...], one key for all."""
    return jax.vmap(sense)(rgb, params, jax.random.split(key, rgb.shape[0]))


def _blurred(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Gaussian blur of [camera, height, width, 3] along both axes; edges are repeated."""
    at = jnp.arange(-_TAPS, _TAPS + 1)
    weights = jnp.exp(-0.5 * (at / jnp.maximum(sigma, 1e-3)) ** 2)
    weights = weights / jnp.sum(weights)
    for axis in (1, 2):
        widths = [(0, 0)] * image.ndim
        widths[axis] = (_TAPS, _TAPS)
        padded = jnp.pad(image, widths, mode="edge")
        size = image.shape[axis]
        padded = jax.lax.optimization_barrier(padded)  # or XLA works it out anew for every tap
        shifted = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(2 * _TAPS + 1))
        image = sum(weight * part for weight, part in zip(weights, shifted, strict=True))  # one loop, no copies
    return image
