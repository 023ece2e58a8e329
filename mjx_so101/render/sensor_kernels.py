"""The Warp kernels of the image sensor."""

import functools
import math

import warp as wp

TAPS = 4
"""Half width of the blur kernel (px): enough for a standard deviation of up to 1.5 px, beyond it is cut off."""
ROWS = 8
"""Pixels of a column that one thread of `blur_down` makes."""
PIXELS = 4
"""Pixels of a row that one thread of `blur_along` makes, two pairs of normal numbers."""

wp.set_module_options({"fast_math": True, "enable_backward": False})  # logarithm, sine and cosine of the noise

Above = wp.types.vector(length=ROWS + 2 * TAPS, dtype=wp.float32)
Beside = wp.types.vector(length=PIXELS + 2 * TAPS, dtype=wp.float32)
Weights = wp.types.vector(length=TAPS + 1, dtype=wp.float32)
Normals = wp.types.vector(length=PIXELS, dtype=wp.float32)


@wp.kernel
def blur_down(
    rgb: wp.array3d[wp.uint8],
    levels: wp.array3d[wp.float32],
    weights: wp.array[Weights],
    cameras: int,
    half: wp.array3d[wp.uint16],
):
    """Table, then blur down `ROWS` pixels of a column, as fractions of 65535; rows at the edge are repeated."""
    frame, block, x = wp.tid()
    env, channel, first, height = frame // cameras, x % 3, block * ROWS, rgb.shape[1]
    column = Above()
    for i in range(ROWS + 2 * TAPS):
        y = wp.clamp(first + i - TAPS, 0, height - 1)
        column[i] = levels[env, channel, int(rgb[frame, y, x])]
    weight = weights[env]
    for i in range(ROWS):
        value = weight[0] * column[i + TAPS]
        for j in range(1, TAPS + 1):
            value += weight[j] * (column[i + TAPS - j] + column[i + TAPS + j])
        if first + i < height:
            half[frame, first + i, x] = wp.uint16(65535.0 * value + 0.5)


@wp.func
def normal_numbers(seed: wp.uint32, place: int) -> Normals:
    """Independent standard normal numbers, by Box and Muller (1958)."""
    state = wp.rand_init(int(seed), place)
    out = Normals()
    for i in range(PIXELS // 2):
        radius = wp.sqrt(-2.0 * wp.log(1.0 - wp.randf(state)))
        angle = 2.0 * wp.static(math.pi) * wp.randf(state)
        out[2 * i] = radius * wp.cos(angle)
        out[2 * i + 1] = radius * wp.sin(angle)
    return out


@wp.kernel
def blur_along(
    half: wp.array3d[wp.uint16],
    weights: wp.array[Weights],
    noise: wp.array[wp.float32],
    seeds: wp.array[wp.uint32],
    cameras: int,
    seen: wp.array3d[wp.uint8],
):
    """Blur along `PIXELS` pixels of a row in one channel, noise, and back to bytes; edge pixels are repeated."""
    frame, y, group = wp.tid()
    env, channel, first, width = frame // cameras, group % 3, group // 3 * PIXELS, half.shape[2] // 3
    row = Beside()
    for i in range(PIXELS + 2 * TAPS):
        x = wp.clamp(first + i - TAPS, 0, width - 1)
        row[i] = float(half[frame, y, 3 * x + channel]) / 65535.0
    weight, size = weights[env], noise[env]
    groups = 3 * ((width + PIXELS - 1) // PIXELS)
    normal = normal_numbers(seeds[env], ((frame % cameras) * half.shape[1] + y) * groups + group)
    for i in range(PIXELS):
        value = weight[0] * row[i + TAPS]
        for j in range(1, TAPS + 1):
            value += weight[j] * (row[i + TAPS - j] + row[i + TAPS + j])
        if first + i < width:
            level = wp.clamp(255.0 * (value + size * normal[i]) + 0.5, 0.0, 255.0)
            seen[frame, y, 3 * (first + i) + channel] = wp.uint8(level)


@functools.cache
def make_program(envs: int, cameras: int, height: int, width: int):
    """What JAX calls for pictures of one shape; gives what lies between the kernels, and what is seen."""
    frames, across = envs * cameras, 3 * width

    def both(
        rgb: wp.array3d[wp.uint8],
        levels: wp.array3d[wp.float32],
        weights: wp.array[Weights],
        noise: wp.array[wp.float32],
        seeds: wp.array[wp.uint32],
        half: wp.array3d[wp.uint16],
        seen: wp.array3d[wp.uint8],
    ):
        wp.launch(blur_down, (frames, -(-height // ROWS), across), [rgb, levels, weights, cameras], [half])
        groups = 3 * -(-width // PIXELS)
        wp.launch(blur_along, (frames, height, groups), [half, weights, noise, seeds, cameras], [seen])

    shape = (frames, height, across)
    return wp.jax_callable(
        both, num_outputs=2, output_dims={"half": shape, "seen": shape}, graph_mode=wp.JaxCallableGraphMode.JAX
    )
