"""The kernel that makes pixels: what each sees, whether it lies in the light, its colour; packed and written."""

from __future__ import annotations

from typing import NamedTuple

import warp as wp

from mjx_so101.render.quad.maths import (
    BRIGHT,
    CAMERA_ROWS,
    DIM,
    EYE,
    PAINT_ROWS,
    RAY,
    RAY_X,
    RAY_Y,
    RUN,
    TILE_HEIGHT,
    TILE_WIDTH,
    U,
    V,
    linear,
    lowest_bit,
    mat34,
    mat44,
    read4,
    read34,
    read44,
    write_pixels,
    xyz,
)  # fmt: skip
from mjx_so101.render.quad.shadows import enters_beyond, in_outline, leaves_beyond
from mjx_so101.render.quad.surfaces import BOX, CYLINDER, DISK, STAND_IN
from mjx_so101.render.quad.textures import interpolated, sampled

_CYLINDER = wp.constant(CYLINDER)
_DISK = wp.constant(float(DISK))
colors4 = wp.types.matrix(shape=(RUN, 3), dtype=wp.float32)
_FAR = wp.constant(1.0e-6)  # 1/m: smallest w that is divided by


class Picture(NamedTuple):
    """What one kernel is made for; everything here is a constant in it."""

    width: int
    height: int
    cameras: int
    flats: int
    ground: int  # flat surfaces that lie on the ground
    rounds: int
    triangles: int  # of meshes
    casters: int
    shaded: int  # meshes
    shaped: bool  # some flat surfaces are no rectangles
    shadows: bool
    textures: bool
    sky: int  # texture of the sky, -1 for black
    depth: bool
    segmentation: bool

    @property
    def tiles_x(self) -> int:
        """Tiles in a row."""
        return -(-self.width // TILE_WIDTH)

    @property
    def tiles(self) -> int:
        """Tiles of a picture."""
        return self.tiles_x * -(-self.height // TILE_HEIGHT)

    @property
    def surfaces(self) -> int:
        """Flat and round surfaces."""
        return self.flats + self.rounds

    @property
    def words(self) -> int:
        """Words of a mask of surfaces and triangles."""
        return -(-(self.surfaces + self.triangles) // 64)

    @property
    def shade_words(self) -> int:
        """Words of which each holds shadows on 64 of the surfaces; those on triangles are in the first."""
        return -(-self.surfaces // 64)

    @property
    def bytes_per_frame(self) -> int:
        """Memory of one picture: its pixels, the records of its surfaces and casters, the masks of its tiles."""
        pixels = self.width * self.height * (3 + 4 * self.depth + 4 * self.segmentation)
        records = 48 * (self.flats + self.triangles) + 64 * self.rounds + 80 * self.surfaces
        records += 184 * self.casters + 24 * self.shaded
        return pixels + records + 8 * self.tiles * (self.words + self.shade_words)


@wp.func
def meets(plane: mat34, f: float, a: float, b: float) -> bool:
    """Whether a pixel lies in the outline, given f, a f and b f."""
    inside = wp.max(wp.abs(a), wp.abs(b)) <= f
    if plane[0, 3] == _DISK:
        inside = f > 0.0 and a * a + b * b <= f * f
    return inside


@wp.func
def nearest_root(r: mat44, x: float, y: float) -> float:
    """w at which a pixel's ray enters a round surface, 0 if it does not. See `project.project_round`."""
    dx, dy = x - r[3, 2], y - r[3, 3]
    q = r[1, 0] + dx * (r[1, 1] + r[1, 3] * dx + r[2, 0] * dy) + dy * (r[1, 2] + r[2, 1] * dy)
    if q < 0.0:
        return 0.0
    w = r[0, 0] + r[0, 1] * dx + r[0, 2] * dy + wp.sqrt(q)
    if r[3, 1] == float(_CYLINDER) and wp.abs(r[0, 3] * w + r[2, 2] + r[2, 3] * dx + r[3, 0] * dy) > w:
        return 0.0
    return w


@wp.func
def facing(p: wp.vec3, middle: wp.vec3, m: wp.mat33, size: wp.vec3, kind: int, sun: wp.vec3) -> float:
    """max(n . sun, 0) at a point of a round surface, whose normal goes as M (x / size2)."""
    x = wp.transpose(m) @ (p - middle)
    n = wp.vec3(x[0] / (size[0] * size[0]), x[1] / (size[1] * size[1]), x[2] / (size[2] * size[2]))
    if kind == _CYLINDER:
        n[2] = 0.0
    return wp.max(wp.dot(wp.normalize(m @ n), sun), 0.0)


@wp.func
def sky_place(d: wp.vec3) -> wp.vec2:
    """Where a cube texture of six faces, one above the other in OpenGL's order, is seen along d. MuJoCo's sky has its
    own axes: s = x, t = z, r = -y. The linear filter must not mix neighbours: half a texel of 64 is kept at the seams.
    """
    s, t, r = d[0], d[2], -d[1]
    face, u, v, size = 5.0, -s, -t, wp.abs(r)
    if wp.abs(s) >= wp.abs(t) and wp.abs(s) >= wp.abs(r):
        size = wp.abs(s)
        if s > 0.0:
            face, u = 0.0, -r
        else:
            face, u = 1.0, r
    elif wp.abs(t) >= wp.abs(r):
        size = wp.abs(t)
        u = s
        if t > 0.0:
            face, v = 2.0, r
        else:
            face, v = 3.0, -r
    elif r > 0.0:
        face, u = 4.0, s
    half = 0.5 / 64.0
    return wp.vec2(0.5 + 0.5 * u / size, (face + wp.clamp(0.5 + 0.5 * v / size, half, 1.0 - half)) / 6.0)


@wp.func
def byte(value: float) -> wp.uint8:
    """A colour in [0, 1] as `write_pixels` writes it."""
    return wp.uint8(wp.uint32(wp.clamp(value, 0.0, 1.0) * 255.0))


def make_draw(picture: Picture, hardware: bool) -> wp.Kernel:
    """The kernel for one kind of picture: 32 threads a tile, RUN pixels of a row each. hardware: a GPU's textures."""
    width, height, cameras = picture.width, picture.height, picture.cameras
    flats, rounds, ground, casters = picture.flats, picture.rounds, picture.ground, picture.casters
    tiles, tiles_x, words, shade_words = picture.tiles, picture.tiles_x, picture.words, picture.shade_words
    surfaces, whole_words, row_words = picture.surfaces, width % RUN == 0, 3 * width // RUN
    triangles, stand_ins = picture.triangles, picture.shaded > 0
    aligned = width % TILE_WIDTH == 0 and height % TILE_HEIGHT == 0
    shaped, shadows, textures, sky = picture.shaped, picture.shadows, picture.textures, picture.sky
    depth, segmentation = picture.depth, picture.segmentation
    # a loop over the pixels of a run is unrolled, one over the many words of a mask of triangles is not
    options = {"fast_math": True, "enable_backward": False, "max_unroll": RUN}

    @wp.kernel(module="unique", grid_stride=False, enable_backward=False, module_options=options)
    def draw(
        cams: wp.array[wp.vec4],  # [frame * CAMERA_ROWS]
        planes: wp.array[mat34],  # [frame * flats]
        rounded: wp.array[mat44],  # [frame * rounds]
        paint: wp.array[wp.vec4],  # [frame * surfaces * PAINT_ROWS]
        triangle: wp.array[mat34],  # [frame * triangles]
        seen: wp.array[wp.uint64],  # [frame * tiles * words]
        shades: wp.array[wp.uint64],  # [frame * tiles * shade_words]
        outlines: wp.array[mat34],  # [env * casters]
        leaves: wp.array[mat34],
        caster_kind: wp.array[int],
        round_geom: wp.array[int],
        round_kind: wp.array[int],
        round_size: wp.array[wp.vec3],
        geom_xpos: wp.array2d[wp.vec3],
        geom_xmat: wp.array2d[wp.mat33],
        sun: wp.array[wp.vec3],
        triangle_material: wp.array[int],
        rgb: wp.array2d[wp.vec3],  # [1 | env, material]
        ambient: wp.array[wp.vec3],  # [1 | env]
        diffuse: wp.array[wp.vec3],
        ids: wp.array[int],  # [surface, then triangle] geom id in the model
        images: wp.array[wp.uint64],
        texels: wp.array[wp.uint32],
        image_shape: wp.array[wp.vec4i],
        words_out: wp.array[wp.uint32],  # [frame * y * words of a row], where a row is whole words
        bytes_out: wp.array3d[wp.uint8],  # [frame, y, bytes of a row], else
        depth_out: wp.array3d[float],  # [frame, y, x] m
        segmentation_out: wp.array3d[int],  # [frame, y, x]
    ):
        i = wp.tid()
        frame = i // wp.static(32 * tiles)
        rest = i - frame * wp.static(32 * tiles)
        tile, lane = rest // 32, rest % 32
        px = tile % wp.static(tiles_x) * TILE_WIDTH + lane % wp.static(TILE_WIDTH // RUN) * RUN
        py = tile // wp.static(tiles_x) * TILE_HEIGHT + lane // wp.static(TILE_WIDTH // RUN)
        if wp.static(not aligned) and (px >= width or py >= height):
            return
        x, y = float(px), float(py)
        env = frame // wp.static(cameras)
        tile_at = frame * wp.static(tiles) + tile

        # what each pixel sees: the surface with the largest w
        w, hit = wp.vec4(), wp.vec4i(-1, -1, -1, -1)
        for word in range(wp.static(words)):
            mask = seen[tile_at * wp.static(words) + word]
            while mask != wp.uint64(0):
                k = lowest_bit(mask) + 64 * word
                mask &= mask - wp.uint64(1)
                if wp.static(triangles > 0) and k >= wp.static(surfaces):
                    plane = read34(triangle, frame * wp.static(triangles) + k - wp.static(surfaces))
                    f, a, b = linear(plane, 0, x, y), linear(plane, 1, x, y), linear(plane, 2, x, y)
                    for n in range(wp.static(RUN)):
                        inside = wp.min(a, b) >= -f and a + b <= 0.0 and f > w[n]
                        hit[n] = wp.where(inside, k, hit[n])
                        w[n] = wp.where(inside, f, w[n])
                        f += plane[0, 1]
                        a += plane[1, 1]
                        b += plane[2, 1]
                elif wp.static(rounds == 0) or k < wp.static(flats):
                    plane = read34(planes, frame * wp.static(flats) + k)
                    f, a, b = linear(plane, 0, x, y), linear(plane, 1, x, y), linear(plane, 2, x, y)
                    for n in range(wp.static(RUN)):
                        if wp.static(shaped):  # noqa: SIM108 - Warp decides it when the kernel is made
                            inside = meets(plane, f, a, b)
                        else:
                            inside = wp.max(wp.abs(a), wp.abs(b)) <= f
                        inside = inside and f > w[n]
                        hit[n] = wp.where(inside, k, hit[n])
                        w[n] = wp.where(inside, f, w[n])
                        f += plane[0, 1]
                        a += plane[1, 1]
                        b += plane[2, 1]
                else:
                    record = read44(rounded, frame * wp.static(rounds) + k - wp.static(flats))
                    for n in range(wp.static(RUN)):
                        near = nearest_root(record, x + float(n), y)
                        hit[n] = wp.where(near > w[n], k, hit[n])
                        w[n] = wp.max(w[n], near)

        depths = wp.vec4()
        for n in range(wp.static(RUN)):
            depths[n] = 1.0 / wp.max(w[n], _FAR)
        if wp.static(segmentation or depth):
            for n in range(wp.static(RUN)):
                if wp.static(whole_words) or px + n < wp.static(width):
                    if wp.static(segmentation):
                        geom = -1
                        if hit[n] >= 0:
                            geom = ids[hit[n]]
                        segmentation_out[frame, py, px + n] = geom
                    if wp.static(depth):
                        depth_out[frame, py, px + n] = wp.where(hit[n] >= 0, depths[n], 0.0)
        cam_at = frame * wp.static(CAMERA_ROWS)
        eye, ray = read4(cams, cam_at + wp.static(EYE)), read4(cams, cam_at + wp.static(RAY))
        ray_x, ray_y = read4(cams, cam_at + wp.static(RAY_X)), read4(cams, cam_at + wp.static(RAY_Y))
        first = xyz(ray) + xyz(ray_x) * x + xyz(ray_y) * y
        lit = wp.vec4(1.0, 1.0, 1.0, 1.0)
        if wp.static(shadows):
            shade = wp.uint64(0)
            for word in range(wp.static(shade_words)):
                shade |= shades[tile_at * wp.static(shade_words) + word]
            if shade != wp.uint64(0):
                # where that is: its height, and its x, y once moved along the light to the ground
                sx, sy, z = wp.vec4(), wp.vec4(), wp.vec4()
                d = first
                for n in range(wp.static(RUN)):
                    z[n] = eye[2] + depths[n] * d[2]
                    sx[n] = eye[0] + depths[n] * d[0] - z[n] * ray[3]
                    sy[n] = eye[1] + depths[n] * d[1] - z[n] * ray_x[3]
                    d += xyz(ray_x)
                while shade != wp.uint64(0):
                    k = lowest_bit(shade)
                    shade &= shade - wp.uint64(1)
                    outline, kind = read34(outlines, env * wp.static(casters) + k), wp.static(BOX)
                    if wp.static(rounds > 0 or stand_ins):
                        kind = caster_kind[k]
                    shaded = wp.vec4i()  # 1: on a solid
                    for n in range(wp.static(RUN)):
                        dark = in_outline(kind, outline, sx[n], sy[n])
                        lit[n] = wp.where(dark and hit[n] < wp.static(ground), 0.0, lit[n])
                        shaded[n] = wp.where(dark and hit[n] >= wp.static(ground), 1, 0)
                    if wp.max(shaded) == 1:
                        leave = read34(leaves, env * wp.static(casters) + k)
                        for n in range(wp.static(RUN)):
                            p = wp.vec3(sx[n] + z[n] * ray[3], sy[n] + z[n] * ray_x[3], z[n])
                            if wp.static(stand_ins) and kind == wp.static(STAND_IN):
                                dark = shaded[n] == 1 and enters_beyond(outline, leave, p)
                            else:
                                dark = shaded[n] == 1 and leaves_beyond(kind, outline, leave, p, sx[n], sy[n])
                            lit[n] = wp.where(dark, 0.0, lit[n])
        pixels = colors4()
        d = first
        for n in range(wp.static(RUN)):
            k = hit[n]
            color = wp.vec3(0.0, 0.0, 0.0)
            if wp.static(triangles > 0) and k >= wp.static(surfaces):
                j = k - wp.static(surfaces)
                straight = triangle[frame * wp.static(triangles) + j][0, 3]
                falls = ambient[env % ambient.shape[0]] + diffuse[env % diffuse.shape[0]] * (straight * lit[n])
                color = wp.cw_mul(rgb[env % rgb.shape[0], triangle_material[j]], falls)
            elif k >= 0:
                at = (frame * wp.static(surfaces) + k) * wp.static(PAINT_ROWS)
                dim, bright = read4(paint, at + wp.static(DIM)), read4(paint, at + wp.static(BRIGHT))
                light = lit[n]
                if wp.static(rounds > 0):  # noqa: SIM102 - likewise
                    if k >= wp.static(flats) and light > 0.0:
                        r = k - wp.static(flats)
                        g = round_geom[r]
                        p = xyz(eye) + d * depths[n]
                        light = facing(p, geom_xpos[env, g], geom_xmat[env, g], round_size[r], round_kind[r], sun[env])
                color = xyz(dim) + xyz(bright) * light
                if wp.static(textures):  # noqa: SIM102
                    if dim[3] >= 0.0:
                        image, u_at, v_at = (
                            int(dim[3]),
                            read4(paint, at + wp.static(U)),
                            read4(paint, at + wp.static(V)),
                        )
                        u = depths[n] * (u_at[0] + u_at[1] * (x + float(n)) + u_at[2] * y)
                        v = depths[n] * (v_at[0] + v_at[1] * (x + float(n)) + v_at[2] * y)
                        if wp.static(hardware):
                            color = wp.cw_mul(color, sampled(images[image], u, v))
                        else:
                            color = wp.cw_mul(color, interpolated(texels, image_shape[image], wp.vec2(u, v)))
            elif wp.static(sky >= 0):
                place = sky_place(d)
                if wp.static(hardware):
                    color = sampled(images[wp.static(sky)], place[0], place[1])
                else:
                    color = interpolated(texels, image_shape[wp.static(sky)], place)
            for channel in range(3):
                pixels[n, channel] = color[channel]
            d += xyz(ray_x)
        if wp.static(whole_words):
            row = frame * wp.static(height) + py
            write_pixels(
                words_out, row, wp.static(row_words), px // RUN * 3, pixels[0], pixels[1], pixels[2], pixels[3]
            )
        else:
            for n in range(wp.static(RUN)):
                if px + n < wp.static(width):
                    for channel in range(3):
                        bytes_out[frame, py, 3 * (px + n) + channel] = byte(pixels[n, channel])

    return draw
