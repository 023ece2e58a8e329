"""Shadows of solids along one directional lamp.

A ray of light that ends in p meets a solid if p, moved along the light, lies in the solid's outline; with the solid's
own three linear functions of p this is a few products. On the ground it is enough. Elsewhere the light must also leave
the solid beyond p: by more than a tenth of a millimetre, or the solid would shade itself. A stand-in, which is not
drawn, shades only what lies outside it: light must enter it beyond p.
"""

from __future__ import annotations

import warp as wp

from mjx_so101.render.quad.maths import EYE, RAY, RAY_X, RAY_Y, empty_rect, mat34
from mjx_so101.render.quad.project import around_axes
from mjx_so101.render.quad.surfaces import BOX, ELLIPSOID

_BOX, _ELLIPSOID = wp.constant(BOX), wp.constant(ELLIPSOID)  # and a stand-in's kind is below BOX
_STEEP = wp.constant(1.0e-5)
_GROWN = wp.constant(0.9)
"""Tiles take shadows of the ground a tenth larger: the sheet lies 1 mm above it."""


@wp.func
def not_zero(x: float) -> float:
    """x, or a small number of its sign."""
    return wp.where(x < 0.0, wp.min(x, -_STEEP), wp.max(x, _STEEP))


@wp.func
def light_axes(sun: wp.vec3) -> wp.mat33:
    """Rows: two axes across the light, then towards the lamp."""
    other = wp.vec3(1.0, 0.0, 0.0)
    if wp.abs(sun[0]) > 0.7:
        other = wp.vec3(0.0, 1.0, 0.0)
    across = wp.normalize(wp.cross(sun, other))
    return wp.matrix_from_rows(across, wp.cross(sun, across), sun)


@wp.func
def about(direction: wp.vec3, middle: wp.vec3) -> wp.vec4:
    """direction . (p - middle) as a row [x, y, z, 1] over p."""
    return wp.vec4(direction[0], direction[1], direction[2], -wp.dot(direction, middle))


@wp.kernel(enable_backward=False)
def place_casters(
    geom: wp.array[int],
    kind: wp.array[int],
    size: wp.array[wp.vec3],
    geom_xpos: wp.array2d[wp.vec3],
    geom_xmat: wp.array2d[wp.mat33],
    sun: wp.array[wp.vec3],
    outlines: wp.array2d[mat34],  # out [env, caster], rows over (x, y, 1) of p moved along the light to z = 0
    leaves: wp.array2d[mat34],  # out [env, caster], rows over (x, y, z, 1) of p
    low: wp.array2d[wp.vec3],  # out [env, caster, then what is only shaded] bounds in the light's axes (m)
    high: wp.array2d[wp.vec3],
):
    """Where light meets a solid and how far on it leaves it. l is the light in the solid's own axes, x = Mt (p - c).

    Box, half sizes s. Outline: |x_i l_j - x_j l_i| <= s_i |l_j| + s_j |l_i| for the three pairs; the rows are divided
    by the right side. The light leaves side i after s_i / |l_i| - x_i / l_i, 2 s_i / |l_i|, the fourth number of the
    outline's row, after it has entered between it and the opposite side.

    Cylinder, radius r, half height h, e across light and axis, y along the light across the axis,
    l_h = hypot(l_x, l_y). Outline: |a| <= 1 with a = e . x / r, and |b| <= h l_h + r |l_z| sqrt(1 - a2) with
    b = l_h z - l_z y. The light leaves the side after (r sqrt(1 - a2) - y) / l_h, the end after h / |l_z| - z / l_z.

    Ellipsoid, in axes where it is the unit sphere: |a| <= 1, |b| <= sqrt(1 - a2) across the light, whose own coordinate
    t tells that it is left after (sqrt(1 - a2 - b2) - t) / |l / s|.
    """
    env, k = wp.tid()
    m = geom_xmat[env, geom[k]]
    c = geom_xpos[env, geom[k]]
    s = size[k]
    light = wp.transpose(m) @ sun[env]
    outline, leave = mat34(), mat34()
    if kind[k] <= _BOX:
        for i in range(3):
            j = (i + 1) % 3
            mi, mj = wp.vec3(m[0, i], m[1, i], m[2, i]), wp.vec3(m[0, j], m[1, j], m[2, j])
            across = (mi * light[j] - mj * light[i]) / wp.max(s[i] * wp.abs(light[j]) + s[j] * wp.abs(light[i]), 1.0e-9)
            half = s[i] / wp.abs(not_zero(light[i]))
            outline[i] = wp.vec4(across[0], across[1], -wp.dot(across, c), 2.0 * half)
            out = about(mi / -not_zero(light[i]), c)
            leave[i] = wp.vec4(out[0], out[1], out[2], out[3] + half)
    elif kind[k] == _ELLIPSOID:
        to_unit = wp.diag(wp.vec3(1.0 / s[0], 1.0 / s[1], 1.0 / s[2])) @ wp.transpose(m)
        stretched = to_unit @ sun[env]
        length = wp.length(stretched)
        back = wp.transpose(to_unit) @ wp.transpose(light_axes(stretched / length))  # columns over p
        a, b = wp.vec3(back[0, 0], back[1, 0], back[2, 0]), wp.vec3(back[0, 1], back[1, 1], back[2, 1])
        t = wp.vec3(back[0, 2], back[1, 2], back[2, 2]) / length
        outline[0] = wp.vec4(a[0], a[1], -wp.dot(a, c), 0.0)
        outline[1] = wp.vec4(b[0], b[1], -wp.dot(b, c), 0.0)
        outline[2] = wp.vec4(0.0, 1.0, 1.0, 0.0)
        leave[0] = about(t, c)
        leave[1] = wp.vec4(0.0, 0.0, 0.0, 0.0)
        leave[2] = wp.vec4(1.0 / length, 1.0e9, 0.0, 0.0)
    else:
        flat = wp.max(wp.sqrt(light[0] * light[0] + light[1] * light[1]), _STEEP)
        along, across = wp.vec3(light[0], light[1], 0.0) / flat, wp.vec3(-light[1], light[0], 0.0) / flat
        if flat == _STEEP:
            along, across = wp.vec3(1.0, 0.0, 0.0), wp.vec3(0.0, 1.0, 0.0)
        world_along, axis = m @ along, wp.vec3(m[0, 2], m[1, 2], m[2, 2])
        a, b = m @ across / s[0], axis * flat - world_along * light[2]
        outline[0] = wp.vec4(a[0], a[1], -wp.dot(a, c), 0.0)
        outline[1] = wp.vec4(b[0], b[1], -wp.dot(b, c), 0.0)
        outline[2] = wp.vec4(s[2] * flat, s[0] * wp.abs(light[2]), 0.0, 0.0)
        leave[0] = about(world_along / flat, c)
        leave[1] = about(axis / not_zero(light[2]), c)
        leave[2] = wp.vec4(s[0] / flat, s[2] / wp.abs(not_zero(light[2])), 0.0, 0.0)
    if k < outlines.shape[1]:
        outlines[env, k] = outline
        leaves[env, k] = leave
    axes = light_axes(sun[env])
    middle, turned = axes @ c, axes @ m
    reach = wp.vec3(0.0, 0.0, 0.0)
    for i in range(3):
        reach[i] = wp.abs(turned[i, 0]) * s[0] + wp.abs(turned[i, 1]) * s[1] + wp.abs(turned[i, 2]) * s[2]
    low[env, k] = middle - reach
    high[env, k] = middle + reach


@wp.kernel(enable_backward=False)
def find_shaded(
    casters: int,
    own: wp.array[int],  # [geom] the geom's place in low and high, -1 if no shadow falls on it from above the ground
    low: wp.array2d[wp.vec3],
    high: wp.array2d[wp.vec3],
    casts: wp.array2d[wp.uint64],  # out [env, geom] casters that may lie between the geom and the lamp
):
    """By bounds in the light's axes. Drawn solids are convex: none shades itself."""
    env, g = wp.tid()
    mask, me = wp.uint64(0), own[g]
    if me >= 0:
        mine_low, mine_high = low[env, me], high[env, me]
        for k in range(casters):
            a, b = low[env, k], high[env, k]
            across = a[0] < mine_high[0] and b[0] > mine_low[0] and a[1] < mine_high[1] and b[1] > mine_low[1]
            if k != me and across and b[2] > mine_low[2]:
                mask |= wp.uint64(1) << wp.uint64(k)
    casts[env, g] = mask


@wp.kernel(enable_backward=False)
def project_shadows(
    cameras: int,
    first: int,  # column of the first caster in `rects`
    geom: wp.array[int],
    kind: wp.array[int],
    size: wp.array[wp.vec3],
    geom_xpos: wp.array2d[wp.vec3],
    geom_xmat: wp.array2d[wp.mat33],
    sun: wp.array[wp.vec3],
    outlines: wp.array2d[mat34],
    cams: wp.array2d[wp.vec4],
    edges: wp.array2d[mat34],  # out [frame, caster] rows e f, linear in the pixel on the ground: |e f| <= f inside
    rects: wp.array2d[wp.vec4],  # out
):
    """Of each solid's shadow on z = 0: what tiles need to know. A round outline counts as the rectangle around it."""
    env, cam, k = wp.tid()
    frame = env * cameras + cam
    m = geom_xmat[env, geom[k]]
    c = geom_xpos[env, geom[k]]
    s = size[k]
    down = sun[env] / -wp.max(sun[env][2], 1.0e-3)  # one metre down
    middle = c + down * c[2]
    x, y, z = m @ wp.vec3(s[0], 0.0, 0.0), m @ wp.vec3(0.0, s[1], 0.0), m @ wp.vec3(0.0, 0.0, s[2])
    rects[frame, first + k] = around_axes(
        empty_rect(), middle, x + down * x[2], y + down * y[2], z + down * z[2], cams, frame
    )
    outline = outlines[env, k]
    if kind[k] > _BOX:
        over = 1.0 / (outline[2, 0] + outline[2, 1])
        outline[1] = outline[1] * over
        outline[2] = outline[1]
    eye, ray, ray_x, ray_y = cams[frame, EYE], cams[frame, RAY], cams[frame, RAY_X], cams[frame, RAY_Y]
    f = wp.vec3(ray[2], ray_x[2], ray_y[2]) * (-1.0 / wp.max(eye[2], 1.0e-6))  # w on z = 0
    edge = mat34()
    for i in range(3):
        e0, e1, e2 = _GROWN * outline[i, 0], _GROWN * outline[i, 1], _GROWN * outline[i, 2]
        at_eye = e0 * eye[0] + e1 * eye[1] + e2
        edge[i] = wp.vec4(
            f[0] * at_eye + e0 * ray[0] + e1 * ray[1],
            f[1] * at_eye + e0 * ray_x[0] + e1 * ray_x[1],
            f[2] * at_eye + e0 * ray_y[0] + e1 * ray_y[1],
            0.0,
        )
    edges[frame, k] = edge


@wp.func
def in_outline(kind: int, outline: mat34, x: float, y: float) -> bool:
    """Whether the light that would fall on x, y of z = 0 meets the solid."""
    a = outline[0, 0] * x + outline[0, 1] * y + outline[0, 2]
    b = outline[1, 0] * x + outline[1, 1] * y + outline[1, 2]
    if kind <= _BOX:
        c = outline[2, 0] * x + outline[2, 1] * y + outline[2, 2]
        return wp.max(wp.max(wp.abs(a), wp.abs(b)), wp.abs(c)) <= 1.0
    rest = 1.0 - a * a
    return rest >= 0.0 and wp.abs(b) <= outline[2, 0] + outline[2, 1] * wp.sqrt(wp.max(rest, 0.0))


@wp.func
def leaves_beyond(kind: int, outline: mat34, leave: mat34, p: wp.vec3, x: float, y: float) -> bool:
    """Whether light in the outline, on its way to p, would leave the solid only beyond p. x, y: p moved along the
    light to z = 0."""
    out = leave @ wp.vec4(p[0], p[1], p[2], 1.0)
    if kind == _BOX:
        return wp.min(wp.min(out[0], out[1]), out[2]) > 1.0e-4
    a = outline[0, 0] * x + outline[0, 1] * y + outline[0, 2]
    rest = 1.0 - a * a
    if kind == _ELLIPSOID:
        b = outline[1, 0] * x + outline[1, 1] * y + outline[1, 2]
        rest -= b * b
    rest = wp.max(rest, 0.0)
    return wp.min(leave[2, 0] * wp.sqrt(rest) - out[0], leave[2, 1] - out[1]) > 1.0e-4


@wp.func
def enters_beyond(outline: mat34, leave: mat34, p: wp.vec3) -> bool:
    """Whether light in the outline of a box, on its way to p, would enter it only beyond p, as seen from p."""
    out = leave @ wp.vec4(p[0], p[1], p[2], 1.0)
    return wp.max(wp.max(out[0] - outline[0, 3], out[1] - outline[1, 3]), out[2] - outline[2, 3]) > 1.0e-4
