"""Triangles of meshes: from poses to linear functions of the pixel, and into the masks of the tiles that they touch."""

from __future__ import annotations

import warp as wp

from mjx_so101.render.quad.maths import (
    EYE,
    TILE_HEIGHT,
    TILE_WIDTH,
    empty_rect,
    grown,
    mat34,
    seen_along,
    xyz,
)  # fmt: skip
from mjx_so101.render.quad.tiles import REACH_X, REACH_Y, largest


@wp.func
def touches(t: mat34, x: float, y: float) -> bool:
    """Whether no side of a triangle keeps it out of the tile whose middle is x, y: a, b >= -1 and a + b <= 0."""
    a = largest(t[0, 0] + t[1, 0], t[0, 1] + t[1, 1], t[0, 2] + t[1, 2], x, y)
    b = largest(t[0, 0] + t[2, 0], t[0, 1] + t[2, 1], t[0, 2] + t[2, 2], x, y)
    c = largest(-t[1, 0] - t[2, 0], -t[1, 1] - t[2, 1], -t[1, 2] - t[2, 2], x, y)
    return wp.min(wp.min(a, b), c) >= -1.0e-6


@wp.kernel(enable_backward=False)
def project_triangles(
    cameras: int,
    width: int,
    height: int,
    tiles_x: int,
    first: int,  # bit of the first triangle in `seen`
    geom: wp.array[int],
    center: wp.array[wp.vec3],
    normal: wp.array[wp.vec3],
    half_a: wp.array[wp.vec3],
    half_b: wp.array[wp.vec3],
    to_a: wp.array[wp.vec3],
    to_b: wp.array[wp.vec3],
    geom_xpos: wp.array2d[wp.vec3],  # [env, geom] m
    geom_xmat: wp.array2d[wp.mat33],
    sun: wp.array[wp.vec3],  # [env]
    casts: wp.array2d[wp.uint64],  # [env, geom]
    cams: wp.array2d[wp.vec4],
    triangles: wp.array2d[mat34],  # out [frame, triangle] rows f, a f, b f as in `project_flat`; max(n . sun, 0) in the
    # corner. Nothing is written of those that no tile sees.
    seen: wp.array3d[wp.uint64],  # in and out [frame, tile, word]
    shades: wp.array3d[wp.uint64],  # in and out, word 0
):
    """What faces away or holds no pixel's middle is left out first: most of a mesh.

    Several threads set bits of one mask at a time, atomically; in which order does not matter.
    """
    env, cam, k = wp.tid()
    frame = env * cameras + cam
    g = geom[k]
    m = geom_xmat[env, g]
    middle = geom_xpos[env, g] + m @ center[k]
    n = m @ normal[k]
    from_center = xyz(cams[frame, EYE]) - middle
    over = wp.dot(n, from_center)
    if over < 1.0e-6:
        return
    end_a, end_b = m @ half_a[k], m @ half_b[k]
    rect = grown(empty_rect(), middle - end_a - end_b, cams, frame)
    rect = grown(rect, middle + end_a - end_b, cams, frame)
    rect = grown(rect, middle - end_a + end_b, cams, frame)
    x0, x1 = wp.max(int(wp.ceil(rect[0])), 0), wp.min(int(wp.floor(rect[2])), width - 1)
    y0, y1 = wp.max(int(wp.ceil(rect[1])), 0), wp.min(int(wp.floor(rect[3])), height - 1)
    if x0 > x1 or y0 > y1:
        return
    world_a, world_b = m @ to_a[k], m @ to_b[k]
    f = seen_along(n, cams, frame) / -over
    a = f * wp.dot(world_a, from_center) + seen_along(world_a, cams, frame)
    b = f * wp.dot(world_b, from_center) + seen_along(world_b, cams, frame)
    light = wp.max(wp.dot(n, sun[env]), 0.0)
    t = mat34(f[0], f[1], f[2], light, a[0], a[1], a[2], 0.0, b[0], b[1], b[2], 0.0)
    triangles[frame, k] = t
    word = (first + k) / 64
    bit = wp.uint64(1) << wp.uint64((first + k) % 64)
    shade = wp.uint64(0)
    if cams[frame, EYE][3] != 0.0:
        shade = casts[env, g]
    for row in range(y0 / TILE_HEIGHT, y1 / TILE_HEIGHT + 1):
        for column in range(x0 / TILE_WIDTH, x1 / TILE_WIDTH + 1):
            if touches(t, float(column * TILE_WIDTH) + REACH_X, float(row * TILE_HEIGHT) + REACH_Y):
                wp.atomic_or(seen, frame, row * tiles_x + column, word, bit)
                wp.atomic_or(shades, frame, row * tiles_x + column, 0, shade)
