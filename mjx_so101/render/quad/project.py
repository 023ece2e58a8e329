"""From poses to linear functions of the pixel: cameras, flat surfaces, round surfaces. One thread each.

Frame = environment * cameras + camera. Fields that looks set have a first axis of 1 or of all environments.
"""

from __future__ import annotations

import warp as wp

from mjx_so101.render.quad.maths import (
    AHEAD,
    BRIGHT,
    DIM,
    DOWN,
    EYE,
    RAY,
    RAY_X,
    RAY_Y,
    RIGHT,
    U,
    V,
    empty_rect,
    grown,
    mat34,
    mat44,
    row4,
    seen_along,
    xyz,
)  # fmt: skip
from mjx_so101.render.quad.surfaces import CYLINDER

_CYLINDER = wp.constant(CYLINDER)


@wp.kernel(enable_backward=False)
def place_cameras(
    width: int,
    height: int,
    cam_xpos: wp.array2d[wp.vec3],  # [env, camera] m
    cam_xmat: wp.array2d[wp.mat33],  # [env, camera] columns right, up, back
    fovy: wp.array2d[float],  # [1 | env, camera] degrees, vertical
    sun: wp.array[wp.vec3],  # [env] unit, towards the lamp
    castshadow: wp.array[bool],  # [1 | env]
    cams: wp.array2d[wp.vec4],  # out [frame, CAMERA_ROWS]
):
    """A pinhole camera's rays, and what its lamp does: shadows on or off, and the way of light over the ground.

    With k = 2 tan(fovy / 2) / height: dx = k right, dy = -k up, and d0 belongs to the middle of the first pixel.
    """
    env, cam = wp.tid()
    frame = env * cam_xpos.shape[1] + cam
    m = cam_xmat[env, cam]
    right = wp.vec3(m[0, 0], m[1, 0], m[2, 0])
    down = wp.vec3(-m[0, 1], -m[1, 1], -m[2, 1])
    ahead = wp.vec3(-m[0, 2], -m[1, 2], -m[2, 2])
    k = 2.0 * wp.tan(0.5 * wp.radians(fovy[env % fovy.shape[0], cam])) / float(height)
    middle_x, middle_y = 0.5 * float(width - 1), 0.5 * float(height - 1)
    ray = ahead - right * (k * middle_x) - down * (k * middle_y)
    s = sun[env]
    on = 0.0
    if castshadow[env % castshadow.shape[0]] and s[2] > 0.0:
        on = 1.0
    cams[frame, EYE] = row4(cam_xpos[env, cam], on)
    cams[frame, RAY] = row4(ray, s[0] / wp.max(s[2], 1.0e-3))
    cams[frame, RAY_X] = row4(right * k, s[1] / wp.max(s[2], 1.0e-3))
    cams[frame, RAY_Y] = row4(down * k, 0.0)
    cams[frame, RIGHT] = row4(right / k, middle_x)
    cams[frame, DOWN] = row4(down / k, middle_y)
    cams[frame, AHEAD] = row4(ahead, 0.0)


@wp.kernel(enable_backward=False)
def project_flat(
    cameras: int,
    ground: int,  # surfaces that lie on the ground
    geom: wp.array[int],
    outline: wp.array[int],
    mirrored: wp.array[int],
    center: wp.array[wp.vec3],
    normal: wp.array[wp.vec3],
    half_a: wp.array[wp.vec3],
    half_b: wp.array[wp.vec3],
    to_a: wp.array[wp.vec3],
    to_b: wp.array[wp.vec3],
    material: wp.array[int],  # [geom]
    geom_xpos: wp.array2d[wp.vec3],  # [env, geom] m
    geom_xmat: wp.array2d[wp.mat33],
    rgb: wp.array2d[wp.vec3],  # [1 | env, material]
    ambient: wp.array[wp.vec3],  # [1 | env] all ambient light
    diffuse: wp.array[wp.vec3],  # [1 | env] the lamp's
    sun: wp.array[wp.vec3],  # [env]
    repeat: wp.array[wp.vec2],  # [material] times that a texture repeats
    texture_of: wp.array2d[int],  # [1 | env, material] -1 for none
    cams: wp.array2d[wp.vec4],
    planes: wp.array2d[mat34],  # out [frame, surface] rows f, a f, b f; the outline in the corner
    paint: wp.array3d[wp.vec4],  # out [frame, surface, PAINT_ROWS]; rows U, V where there is a texture
    rects: wp.array2d[wp.vec4],  # out [frame, surface + ...] pixels; empty if the camera is behind it
):
    """f = w on the plane n . (p - c) = 0, which is n . d / (n . (c - o)); its own coordinate a at a pixel is
    to_a . (p - c), and a f = f to_a . (o - c) + to_a . d is linear too. The same for b.

    Lambert's law: colour = material (ambient + diffuse max(n . sun, 0)). Textures, which lie on the ground alone, see
    `surfaces.check_drawable`: u = repeat (1 + a) / 2, v = repeat (1 - b) / 2.
    """
    env, cam, k = wp.tid()
    frame = env * cameras + cam
    g = geom[k]
    m = geom_xmat[env, g]
    eye = xyz(cams[frame, EYE])
    local_eye = wp.transpose(m) @ (eye - geom_xpos[env, g])
    side = 1.0
    if mirrored[k] == 1 and wp.dot(normal[k], local_eye) < 0.0:
        side = -1.0
    n, c = normal[k] * side, center[k] * side
    from_center = local_eye - c
    height = wp.dot(n, from_center)
    rect = empty_rect()
    if height > 1.0e-6:
        world_n = m @ n
        f = seen_along(world_n, cams, frame) / -height
        a = f * wp.dot(to_a[k], from_center) + seen_along(m @ to_a[k], cams, frame)
        b = f * wp.dot(to_b[k], from_center) + seen_along(m @ to_b[k], cams, frame)
        planes[frame, k] = mat34(
            f[0], f[1], f[2], float(outline[k]), a[0], a[1], a[2], 0.0, b[0], b[1], b[2], 0.0
        )  # fmt: skip
        base = rgb[env % rgb.shape[0], material[g]]
        dim = wp.cw_mul(base, ambient[env % ambient.shape[0]])
        add = wp.cw_mul(base, diffuse[env % diffuse.shape[0]]) * wp.max(wp.dot(world_n, sun[env]), 0.0)
        image = -1
        if k < ground:
            image = texture_of[env % texture_of.shape[0], material[g]]
            half = repeat[material[g]] * 0.5
            paint[frame, k, U] = row4((f + a) * half[0], 0.0)
            paint[frame, k, V] = row4((f - b) * half[1], 0.0)
        paint[frame, k, DIM] = row4(dim, float(image))
        paint[frame, k, BRIGHT] = row4(add, 0.0)
        middle = geom_xpos[env, g] + m @ c
        to_a_end, to_b_end = m @ half_a[k], m @ half_b[k]
        rect = grown(rect, middle - to_a_end - to_b_end, cams, frame)
        rect = grown(rect, middle - to_a_end + to_b_end, cams, frame)
        rect = grown(rect, middle + to_a_end - to_b_end, cams, frame)
        rect = grown(rect, middle + to_a_end + to_b_end, cams, frame)
    rects[frame, k] = rect


@wp.kernel(enable_backward=False)
def project_round(
    cameras: int,
    first: int,  # column of the first round surface in `rects` and `paint`
    geom: wp.array[int],
    kind: wp.array[int],
    size: wp.array[wp.vec3],
    material: wp.array[int],
    geom_xpos: wp.array2d[wp.vec3],
    geom_xmat: wp.array2d[wp.mat33],
    rgb: wp.array2d[wp.vec3],
    ambient: wp.array[wp.vec3],
    diffuse: wp.array[wp.vec3],
    cams: wp.array2d[wp.vec4],
    rounds: wp.array2d[mat44],  # out [frame, surface], see below
    paint: wp.array3d[wp.vec4],  # out; BRIGHT: of light that falls straight on it
    rects: wp.array2d[wp.vec4],  # out
):
    """The nearer root for a ray and a surface of second order.

    In coordinates where the surface has radius 1: O = S Mt (o - c), D = S Mt d, S = diag(1 / size), for a cylinder
    without the part along its axis. |O + t D| = 1 has the nearer root

        w = 1 / t = (sqrt(q) - O . D) / C,  C = |O|2 - 1,  q = (O . D)2 - |D|2 C = |D|2 - |O x D|2 (Lagrange),

    so w = L + sqrt(Q) with L linear and Q quadratic in the pixel. They are written about the pixel x0, y0 of the
    surface's middle, where they do not cancel. The end of a cylinder, |z| <= 1, is |z0 w + Z| <= w with Z linear.

    Record: [L, z0], [Q: 1, x, y, xx], [Q: xy, yy; Z: 1, x], [Z: y, kind, x0, y0].
    """
    env, cam, k = wp.tid()
    frame = env * cameras + cam
    g = geom[k]
    m = geom_xmat[env, g]
    s = size[k]
    to_unit = wp.diag(wp.vec3(1.0 / s[0], 1.0 / s[1], 1.0 / s[2])) @ wp.transpose(m)
    middle = geom_xpos[env, g]
    o = to_unit @ (xyz(cams[frame, EYE]) - middle)
    z0 = o[2]
    flat = wp.vec3(1.0, 1.0, 1.0)
    if kind[k] == _CYLINDER:
        flat = wp.vec3(1.0, 1.0, 0.0)
    o = wp.cw_mul(o, flat)
    c = wp.dot(o, o) - 1.0
    rect = empty_rect()
    if c > 1.0e-6:
        at = grown(empty_rect(), middle, cams, frame)
        x0, y0 = 0.0, 0.0
        if wp.abs(at[0]) < 1.0e6:
            x0, y0 = at[0], at[1]
        ray = xyz(cams[frame, RAY]) + xyz(cams[frame, RAY_X]) * x0 + xyz(cams[frame, RAY_Y]) * y0
        full, full_x, full_y = to_unit @ ray, to_unit @ xyz(cams[frame, RAY_X]), to_unit @ xyz(cams[frame, RAY_Y])
        d, dx, dy = wp.cw_mul(full, flat), wp.cw_mul(full_x, flat), wp.cw_mul(full_y, flat)
        e, ex, ey = wp.cross(o, d), wp.cross(o, dx), wp.cross(o, dy)
        over = 1.0 / (c * c)
        rounds[frame, k] = mat44(
            -wp.dot(o, d) / c, -wp.dot(o, dx) / c, -wp.dot(o, dy) / c, z0,
            (wp.dot(d, d) - wp.dot(e, e)) * over, 2.0 * (wp.dot(d, dx) - wp.dot(e, ex)) * over,
            2.0 * (wp.dot(d, dy) - wp.dot(e, ey)) * over, (wp.dot(dx, dx) - wp.dot(ex, ex)) * over,
            2.0 * (wp.dot(dx, dy) - wp.dot(ex, ey)) * over, (wp.dot(dy, dy) - wp.dot(ey, ey)) * over,
            full[2], full_x[2],
            full_y[2], float(kind[k]), x0, y0,
        )  # fmt: skip
        base = rgb[env % rgb.shape[0], material[g]]
        dim = wp.cw_mul(base, ambient[env % ambient.shape[0]])
        add = wp.cw_mul(base, diffuse[env % diffuse.shape[0]])
        paint[frame, first + k, DIM] = row4(dim, -1.0)
        paint[frame, first + k, BRIGHT] = row4(add, 0.0)
        rect = around_box(rect, middle, m, s, cams, frame)
    rects[frame, first + k] = rect


@wp.func
def around_box(
    rect: wp.vec4, middle: wp.vec3, m: wp.mat33, s: wp.vec3, cams: wp.array2d[wp.vec4], frame: int
) -> wp.vec4:
    """rect grown by the eight corners of a box with axes m and half sizes s."""
    x, y, z = m @ wp.vec3(s[0], 0.0, 0.0), m @ wp.vec3(0.0, s[1], 0.0), m @ wp.vec3(0.0, 0.0, s[2])
    return around_axes(rect, middle, x, y, z, cams, frame)


@wp.func
def around_axes(
    rect: wp.vec4, middle: wp.vec3, x: wp.vec3, y: wp.vec3, z: wp.vec3, cams: wp.array2d[wp.vec4], frame: int
) -> wp.vec4:
    """rect grown by the eight corners middle +- x +- y +- z."""
    for corner in range(8):
        point = middle
        point += x * (1.0 - 2.0 * float(corner & 1))
        point += y * (1.0 - float(corner & 2))
        point += z * (1.0 - 0.5 * float(corner & 4))
        rect = grown(rect, point, cams, frame)
    return rect
