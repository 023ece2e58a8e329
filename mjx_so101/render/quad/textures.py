"""Textures: hardware samples them on a GPU; on a CPU, where Warp's own sampling takes most of the time, this does."""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np
import warp as wp


class Textures(NamedTuple):
    """All textures of a model on one device. Kernels hold `images` by address: keep them as long as compiled code."""

    images: list[wp.Texture2D]
    handles: wp.array  # uint64 [texture] of `images`, on a GPU
    texels: wp.array  # uint32, bytes R, G, B, one texture after the other, each row by row from v = 0
    shape: wp.array  # vec4i [texture]: first texel, width, height, 1 if it ends at its edges and does not repeat


def load_textures(model: mujoco.MjModel, device: wp.Device) -> Textures:
    """The sky's faces end at their edges, other textures repeat; all are filtered linearly."""
    images, texels, shape, first = [], [], [], 0
    for i in range(model.ntex):
        width, height, channels = int(model.tex_width[i]), int(model.tex_height[i]), int(model.tex_nchannel[i])
        start = int(model.tex_adr[i])
        rgba = np.full((height, width, 4), 255, np.uint8)
        rgba[..., :channels] = model.tex_data[start : start + width * height * channels].reshape(height, width, -1)
        sky = model.tex_type[i] == mujoco.mjtTexture.mjTEXTURE_SKYBOX
        mode = wp.TextureAddressMode.CLAMP if sky else wp.TextureAddressMode.WRAP
        if device.is_cuda:
            linear = wp.TextureFilterMode.LINEAR
            images.append(wp.Texture2D(rgba, filter_mode=linear, address_mode=mode, device=device))
        texels.append(rgba.reshape(-1).view(np.uint32))
        shape.append((first, width, height, int(sky)))
        first += width * height
    return Textures(
        images,
        wp.array([image.id for image in images], dtype=wp.uint64, device=device),
        wp.array(np.concatenate(texels), dtype=wp.uint32, device=device),
        wp.array(np.array(shape, np.int32), dtype=wp.vec4i, device=device),
    )


@wp.func_native("""
#if defined(__CUDA_ARCH__)
    const float4 texel = tex2D<float4>(handle, u, v);
    return {texel.x, texel.y, texel.z};
#else
    return {};
#endif
""")
def sampled(handle: wp.uint64, u: float, v: float) -> wp.vec3:
    """RGB in [0, 1] by the filter of a GPU, without the checks of `wp.texture_sample`, which call printf."""
    ...


@wp.func
def inside(i: int, count: int, ends: int) -> int:
    """Texel i of a row of `count`, which repeats, or ends at its edges."""
    if ends == 1:
        return wp.clamp(i, 0, count - 1)
    return ((i % count) + count) % count


@wp.func
def rgb_of(texel: wp.uint32) -> wp.vec3:
    """Three numbers up to 255."""
    mask = wp.uint32(255)
    return wp.vec3(float(texel & mask), float((texel >> wp.uint32(8)) & mask), float((texel >> wp.uint32(16)) & mask))


@wp.func
def interpolated(texels: wp.array[wp.uint32], shape: wp.vec4i, uv: wp.vec2) -> wp.vec3:
    """RGB in [0, 1] between the four nearest texels, whose middles are at (i + 1/2) / width."""
    x, y = uv[0] * float(shape[1]) - 0.5, uv[1] * float(shape[2]) - 0.5
    left, top = wp.floor(x), wp.floor(y)
    fx, fy = x - left, y - top
    x0, x1 = inside(int(left), shape[1], shape[3]), inside(int(left) + 1, shape[1], shape[3])
    y0, y1 = inside(int(top), shape[2], shape[3]), inside(int(top) + 1, shape[2], shape[3])
    row0, row1 = shape[0] + y0 * shape[1], shape[0] + y1 * shape[1]
    upper = rgb_of(texels[row0 + x0]) * (1.0 - fx) + rgb_of(texels[row0 + x1]) * fx
    lower = rgb_of(texels[row1 + x0]) * (1.0 - fx) + rgb_of(texels[row1 + x1]) * fx
    return (upper * (1.0 - fy) + lower * fy) / 255.0
