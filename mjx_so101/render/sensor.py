"""What an image sensor does to a picture: exposure, white balance, contrast, blur and noise, on uint8.

What depends on one pixel alone becomes a table of 256 levels for each environment and channel. Two Warp kernels do the
rest in one pass over the pictures each: table and blur down the columns, then blur along the rows and noise.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import warp as wp

from mjx_so101.params import EnvParams, Randomization
from mjx_so101.render.color import linear_to_srgb, srgb_to_linear

SENSOR_FIELDS = ("exposure", "white_balance", "image_gamma", "image_blur", "image_noise")
"""Fields of EnvParams that `sense` reads."""
_TAPS = 4
"""Half width of the blur kernel (px): enough for a standard deviation of up to 1.5 px, beyond it is cut off."""
_ROWS = 8
"""Pixels of a column that one thread of `_blur_down` makes."""
_PIXELS = 4
"""Pixels of a row that one thread of `_blur_along` makes, two pairs of normal numbers."""

wp.set_module_options({"fast_math": True, "enable_backward": False})  # logarithm, sine and cosine of the noise

_above = wp.types.vector(length=_ROWS + 2 * _TAPS, dtype=wp.float32)
_beside = wp.types.vector(length=_PIXELS + 2 * _TAPS, dtype=wp.float32)
_weights = wp.types.vector(length=_TAPS + 1, dtype=wp.float32)
_normals = wp.types.vector(length=_PIXELS, dtype=wp.float32)


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
    _, seen = _kernels(envs, cameras, height, width)(
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
    weights = jnp.exp(-0.5 * (jnp.arange(_TAPS + 1) / jnp.maximum(sigma, 1e-3)[:, None]) ** 2)
    return weights / (2 * jnp.sum(weights, 1, keepdims=True) - 1)


@wp.kernel
def _blur_down(
    rgb: wp.array3d[wp.uint8],
    levels: wp.array3d[wp.float32],
    weights: wp.array[_weights],
    cameras: int,
    half: wp.array3d[wp.uint16],
):
    """Table, then blur down `_ROWS` pixels of a column, as fractions of 65535; rows at the edge are repeated."""
    frame, block, x = wp.tid()
    env, channel, first, height = frame // cameras, x % 3, block * _ROWS, rgb.shape[1]
    column = _above()
    for i in range(_ROWS + 2 * _TAPS):
        y = wp.clamp(first + i - _TAPS, 0, height - 1)
        column[i] = levels[env, channel, int(rgb[frame, y, x])]
    weight = weights[env]
    for i in range(_ROWS):
        value = weight[0] * column[i + _TAPS]
        for j in range(1, _TAPS + 1):
            value += weight[j] * (column[i + _TAPS - j] + column[i + _TAPS + j])
        if first + i < height:
            half[frame, first + i, x] = wp.uint16(65535.0 * value + 0.5)


@wp.func
def _normal_numbers(seed: wp.uint32, place: int) -> _normals:
    """Independent standard normal numbers, by Box and Muller (1958)."""
    state = wp.rand_init(int(seed), place)
    out = _normals()
    for i in range(_PIXELS // 2):
        radius = wp.sqrt(-2.0 * wp.log(1.0 - wp.randf(state)))
        angle = 2.0 * wp.static(math.pi) * wp.randf(state)
        out[2 * i] = radius * wp.cos(angle)
        out[2 * i + 1] = radius * wp.sin(angle)
    return out


@wp.kernel
def _blur_along(
    half: wp.array3d[wp.uint16],
    weights: wp.array[_weights],
    noise: wp.array[wp.float32],
    seeds: wp.array[wp.uint32],
    cameras: int,
    seen: wp.array3d[wp.uint8],
):
    """Blur along `_PIXELS` pixels of a row in one channel, noise, and back to bytes; edge pixels are repeated."""
    frame, y, group = wp.tid()
    env, channel, first, width = frame // cameras, group % 3, group // 3 * _PIXELS, half.shape[2] // 3
    row = _beside()
    for i in range(_PIXELS + 2 * _TAPS):
        x = wp.clamp(first + i - _TAPS, 0, width - 1)
        row[i] = float(half[frame, y, 3 * x + channel]) / 65535.0
    weight, size = weights[env], noise[env]
    groups = 3 * ((width + _PIXELS - 1) // _PIXELS)
    normal = _normal_numbers(seeds[env], ((frame % cameras) * half.shape[1] + y) * groups + group)
    for i in range(_PIXELS):
        value = weight[0] * row[i + _TAPS]
        for j in range(1, _TAPS + 1):
            value += weight[j] * (row[i + _TAPS - j] + row[i + _TAPS + j])
        if first + i < width:
            level = wp.clamp(255.0 * (value + size * normal[i]) + 0.5, 0.0, 255.0)
            seen[frame, y, 3 * (first + i) + channel] = wp.uint8(level)


@functools.cache
def _kernels(envs: int, cameras: int, height: int, width: int):
    """What JAX calls for pictures of one shape; gives what lies between the kernels, and what is seen."""
    frames, across = envs * cameras, 3 * width

    def both(
        rgb: wp.array3d[wp.uint8],
        levels: wp.array3d[wp.float32],
        weights: wp.array[_weights],
        noise: wp.array[wp.float32],
        seeds: wp.array[wp.uint32],
        half: wp.array3d[wp.uint16],
        seen: wp.array3d[wp.uint8],
    ):
        wp.launch(_blur_down, (frames, -(-height // _ROWS), across), [rgb, levels, weights, cameras], [half])
        groups = 3 * -(-width // _PIXELS)
        wp.launch(_blur_along, (frames, height, groups), [half, weights, noise, seeds, cameras], [seen])

    both.__annotations__ = {name: eval(kind, globals()) for name, kind in both.__annotations__.items()}
    shape = (frames, height, across)
    return wp.jax_callable(
        both, num_outputs=2, output_dims={"half": shape, "seen": shape}, graph_mode=wp.JaxCallableGraphMode.JAX
    )
