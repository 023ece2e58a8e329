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

# Rows of a surface's paint, wp.vec4 each: its colour in the shadow and the number of its texture, -1 for none; what
# light that falls on it adds; where its texture is read, times w.
DIM, BRIGHT, U, V = range(4)
PAINT_ROWS = 4

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


# A record is read 16 bytes at a time: Warp's own indexing multiplies 64-bit strides and reads number by number,
# hundreds of instructions more in the drawing kernel. Arrays must be contiguous, which JAX's are.
def _reader(kind: str, rows: int) -> str:
    """C++ that gives record i, of `rows` times four numbers, as the type `kind`."""
    places = [(row, name) for row in range(rows) for name in "xyzw"]
    target = "value.c[{1}]" if rows == 1 else "value.data[{0}][{1}]"
    fill = " ".join(f"{target.format(row, 'xyzw'.index(name))} = row{row}.{name};" for row, name in places)
    loads = " ".join(f"const float4 row{row} = __ldg(rows + {row});" for row in range(rows))
    return f"""
#if defined(__CUDA_ARCH__)
    const float4* rows = (const float4*)(records.data + i);
    {loads}
    {kind} value;
    {fill}
    return value;
#else
    return records.data[i];
#endif
"""


@wp.func_native(_reader("wp::vec_t<4, wp::float32>", 1))
def read4(records: wp.array[wp.vec4], i: int) -> wp.vec4:
    """Element i."""
    ...


@wp.func_native(_reader("wp::mat_t<3, 4, wp::float32>", 3))
def read34(records: wp.array[mat34], i: int) -> mat34:
    """Element i."""
    ...


@wp.func_native(_reader("wp::mat_t<4, 4, wp::float32>", 4))
def read44(records: wp.array[mat44], i: int) -> mat44:
    """Element i."""
    ...


@wp.func_native("""
    wp::uint32* to = words.data + (wp::int64)row * length + at;
#if defined(__CUDA_ARCH__)
    // 2^23 + v, cut off, has the whole part of v in its lowest byte: faster than a conversion
    #define BYTE(v) __float_as_uint(__fadd_rz(__fmul_rn(__saturatef(v), 255.0f), 8388608.0f))
    #define PAIR(a, b) __byte_perm(BYTE(a), BYTE(b), 0x0040)
    to[0] = __byte_perm(PAIR(p[0], p[1]), PAIR(p[2], q[0]), 0x5410);
    to[1] = __byte_perm(PAIR(q[1], q[2]), PAIR(r[0], r[1]), 0x5410);
    to[2] = __byte_perm(PAIR(r[2], s[0]), PAIR(s[1], s[2]), 0x5410);
#else
    #define BYTE(v) ((wp::uint32)(wp::clamp(v, 0.0f, 1.0f) * 255.0f))
    to[0] = BYTE(p[0]) | BYTE(p[1]) << 8 | BYTE(p[2]) << 16 | BYTE(q[0]) << 24;
    to[1] = BYTE(q[1]) | BYTE(q[2]) << 8 | BYTE(r[0]) << 16 | BYTE(r[1]) << 24;
    to[2] = BYTE(r[2]) | BYTE(s[0]) << 8 | BYTE(s[1]) << 16 | BYTE(s[2]) << 24;
#endif
    #undef BYTE
    #undef PAIR
""")
def write_pixels(
    words: wp.array[wp.uint32], row: int, length: int, at: int, p: wp.vec3, q: wp.vec3, r: wp.vec3, s: wp.vec3
):
    """Four colours in [0, 1] as bytes R, G, B, at word `at` of a row of `length` words. Fractions are cut off, as MJX's
    ray tracer does."""
    ...
