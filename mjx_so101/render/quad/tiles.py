"""Which surfaces and which shadows a tile of a picture can hold: bits of masks, so that pixels try few of them."""

from __future__ import annotations

import warp as wp

from mjx_so101.render.quad.maths import EYE, TILE_HEIGHT, TILE_WIDTH, mat34

REACH_X, REACH_Y = wp.constant(0.5 * (TILE_WIDTH - 1)), wp.constant(0.5 * (TILE_HEIGHT - 1))


@wp.func
def largest(c: float, cx: float, cy: float, x: float, y: float) -> float:
    """Largest value of c + cx X + cy Y over the pixels X, Y of the tile whose middle is x, y."""
    return c + cx * x + cy * y + wp.abs(cx) * REACH_X + wp.abs(cy) * REACH_Y


@wp.func
def may_hold(f: mat34, m: mat34, i: int, x: float, y: float) -> bool:
    """Whether |row i of m| <= row 0 of f can be true in the tile."""
    less = largest(f[0, 0] - m[i, 0], f[0, 1] - m[i, 1], f[0, 2] - m[i, 2], x, y)
    more = largest(f[0, 0] + m[i, 0], f[0, 1] + m[i, 1], f[0, 2] + m[i, 2], x, y)
    return wp.min(less, more) >= -1.0e-6


@wp.func
def overlaps(rect: wp.vec4, x: float, y: float) -> bool:
    """Whether a rectangle of pixels and the tile whose middle is x, y have something in common."""
    return rect[0] <= x + REACH_X and rect[2] >= x - REACH_X and rect[1] <= y + REACH_Y and rect[3] >= y - REACH_Y


@wp.kernel(enable_backward=False)
def mark_tiles(
    cameras: int,
    tiles_x: int,
    flat_geom: wp.array[int],
    round_geom: wp.array[int],
    casts: wp.array2d[wp.uint64],  # [env, geom]
    planes: wp.array2d[mat34],
    edges: wp.array2d[mat34],
    rects: wp.array2d[wp.vec4],  # [frame, flat, then round surfaces, then casters]
    cams: wp.array2d[wp.vec4],
    seen: wp.array3d[wp.uint64],  # out [frame, tile, word] bit k of word j: surface 64 j + k; those of triangles are 0
    shades: wp.array3d[wp.uint64],  # out [frame, tile, word] bit k: caster k, for what word j holds
):
    """A surface is in if its bounds overlap the tile and none of its sides keeps it out; shadows on the ground
    likewise, with word 0, to which the ground belongs; shadows on a solid if the solid is in."""
    frame, tile, word = wp.tid()
    env = frame / cameras
    x = float(tile % tiles_x * TILE_WIDTH) + REACH_X
    y = float(tile / tiles_x * TILE_HEIGHT) + REACH_Y
    flats, all_surfaces = planes.shape[1], planes.shape[1] + round_geom.shape[0]
    mask, shade = wp.uint64(0), wp.uint64(0)
    for k in range(64 * word, wp.min(64 * word + 64, all_surfaces)):
        if overlaps(rects[frame, k], x, y):
            bit = wp.uint64(1) << wp.uint64(k - 64 * word)
            if k < flats:
                plane = planes[frame, k]
                if may_hold(plane, plane, 1, x, y) and may_hold(plane, plane, 2, x, y):
                    mask |= bit
                    shade |= casts[env, flat_geom[k]]
            else:
                mask |= bit
                shade |= casts[env, round_geom[k - flats]]
    if word == 0:
        ground = planes[frame, 0]
        for k in range(edges.shape[1]):
            if overlaps(rects[frame, all_surfaces + k], x, y):
                e = edges[frame, k]
                if may_hold(ground, e, 0, x, y) and may_hold(ground, e, 1, x, y) and may_hold(ground, e, 2, x, y):
                    shade |= wp.uint64(1) << wp.uint64(k)
    if cams[frame, EYE][3] == 0.0:
        shade = wp.uint64(0)
    seen[frame, tile, word] = mask
    if word < shades.shape[2]:
        shades[frame, tile, word] = shade
