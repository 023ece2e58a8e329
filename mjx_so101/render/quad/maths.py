"""Types and functions that the kernels share.

A picture's coordinates are pixels: x from the left, y from the top, (0, 0) the middle of the first. The ray of a pixel
is o + t d with d = d0 + x dx + y dy, whose part along the optical axis is 1, so that t is the depth (m). What is
compared between surfaces is w = 1 / t: on a plane it is linear in x and y.
"""

from __future__ import annotations

import warp as wp

mat34 = wp.types.matrix(shape=(3, 4), dtype=wp.float32)
mat44 = wp.mat44

TILE_WIDTH, TILE_HEIGHT = 16, 8
"""Pixels of a tile, whose 32 threads draw RUN neighbours in a row each."""
RUN = 4
NEAR = 1e-3
"""What is nearer (m) to a camera has no bounds in its picture."""

# Rows of a camera's record, wp.vec4 each; the fourth number of the first three belongs to the lamp.
EYE, RAY, RAY_X, RAY_Y, RIGHT, DOWN, AHEAD = range(7)
CAMERA_ROWS = 7


@wp.func
def xyz(v: wp.vec4) -> wp.vec3:
    """The first three numbers."""
    return wp.vec3(v[0], v[1], v[2])


@wp.func
def linear(m: mat34, i: int, x: float, y: float) -> float:
    """Row i of m, [constant, per x, per y, ...], at pixel x, y."""
    return m[i, 0] + m[i, 1] * x + m[i, 2] * y


@wp.func
def row4(v: wp.vec3, last: float) -> wp.vec4:
    """v and one number more."""
    return wp.vec4(v[0], v[1], v[2], last)


@wp.func
def seen_along(direction: wp.vec3, cams: wp.array2d[wp.vec4], frame: int) -> wp.vec3:
    """direction . d as a linear function of the pixel."""
    return wp.vec3(
        wp.dot(direction, xyz(cams[frame, RAY])),
        wp.dot(direction, xyz(cams[frame, RAY_X])),
        wp.dot(direction, xyz(cams[frame, RAY_Y])),
    )


@wp.func
def grown(rect: wp.vec4, point: wp.vec3, cams: wp.array2d[wp.vec4], frame: int) -> wp.vec4:
    """rect [x low, y low, x high, y high] (pixels) made to hold a point of the world; all of the plane if it is behind
    the camera or very near."""
    to_point = point - xyz(cams[frame, EYE])
    depth = wp.dot(xyz(cams[frame, AHEAD]), to_point)
    if depth < NEAR:
        return wp.vec4(-1.0e9, -1.0e9, 1.0e9, 1.0e9)
    x = wp.dot(xyz(cams[frame, RIGHT]), to_point) / depth + cams[frame, RIGHT][3]
    y = wp.dot(xyz(cams[frame, DOWN]), to_point) / depth + cams[frame, DOWN][3]
    return wp.vec4(wp.min(rect[0], x), wp.min(rect[1], y), wp.max(rect[2], x), wp.max(rect[3], y))


@wp.func
def empty_rect() -> wp.vec4:
    """A rectangle that holds nothing, to be grown."""
    return wp.vec4(1.0e9, 1.0e9, -1.0e9, -1.0e9)


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    return __ffsll((long long)mask) - 1;
#else
    return __builtin_ctzll(mask);
#endif
""")
def lowest_bit(mask: wp.uint64) -> int:
    """Place of the lowest bit that is set; undefined for 0."""
    ...
