"""All kernels in their order, as one function that JAX calls inside jit."""

from __future__ import annotations

from collections.abc import Callable

import jax
import mujoco
import numpy as np
import warp as wp

from mjx_so101.render.quad.draw import Picture, make_draw
from mjx_so101.render.quad.maths import CAMERA_ROWS, PAINT_ROWS, mat34, mat44
from mjx_so101.render.quad.project import place_cameras, project_flat, project_round
from mjx_so101.render.quad.shadows import find_shaded, place_casters, project_shadows
from mjx_so101.render.quad.surfaces import Round, Surfaces
from mjx_so101.render.quad.textures import Textures
from mjx_so101.render.quad.tiles import mark_tiles
from mjx_so101.render.quad.triangles import project_triangles

BLOCK = 64
"""Threads of a block of the drawing kernel: two tiles."""


def device_of_jax() -> wp.Device:
    """Where JAX works, for Warp."""
    return wp.get_device("cuda:0" if jax.default_backend() == "gpu" else "cpu")


def make_program(
    picture: Picture, surfaces: Surfaces, model: mujoco.MjModel, num_envs: int, textures: Textures
) -> Callable:
    """What JAX calls: the kernels one after the other. Their results between are outputs too, so that JAX owns all
    memory; the first three are pictures."""
    device = device_of_jax()

    def on_device(values, kind):
        return wp.array(np.ascontiguousarray(values), dtype=kind, device=device)

    def table(rows) -> list[wp.array]:
        kinds = {1: wp.int32, 2: wp.vec3}
        return [on_device(column, kinds[np.ndim(column)]) for column in vars(rows).values()]

    pairs = zip(vars(surfaces.casters).values(), vars(surfaces.shaded).values(), strict=True)
    solids = Round(*(np.concatenate(pair) for pair in pairs))
    flat, rounds, triangle, bounded = map(table, (surfaces.flat, surfaces.round, surfaces.triangles, solids))
    casters = table(surfaces.casters)
    material = on_device(surfaces.material, wp.int32)
    triangle_material = on_device(surfaces.material[surfaces.triangles.geom], wp.int32)
    own = np.full(len(surfaces.geoms), -1, np.int32)
    own[solids.geom] = np.arange(len(solids.geom))
    own = on_device(own, wp.int32)
    surface_geom = np.concatenate([surfaces.flat.geom, surfaces.round.geom, surfaces.triangles.geom])
    ids = on_device(surfaces.geoms[surface_geom], wp.int32)
    repeat = on_device(np.asarray(model.mat_texrepeat, np.float32), wp.vec2)
    kernel = make_draw(picture, hardware=device.is_cuda)
    n, cams, frames, geoms = num_envs, picture.cameras, num_envs * picture.cameras, len(surfaces.geoms)
    surfaces_count, row_bytes, solid_count = picture.surfaces, 3 * picture.width, picture.casters + picture.shaded
    outputs = {
        "rgb": (frames, picture.height, row_bytes),
        "depth": (frames, picture.height, picture.width) if picture.depth else (1, 1, 1),
        "segmentation": (frames, picture.height, picture.width) if picture.segmentation else (1, 1, 1),
        "cameras": (frames, CAMERA_ROWS),
        "planes": (frames, picture.flats),
        "rounded": (frames, max(picture.rounds, 1)),
        "paint": (frames, surfaces_count, PAINT_ROWS),
        "rects": (frames, surfaces_count + picture.casters),
        "outlines": (n, picture.casters),
        "leaves": (n, picture.casters),
        "low": (n, solid_count),
        "high": (n, solid_count),
        "casts": (n, geoms),
        "edges": (frames, picture.casters),
        "seen": (frames, picture.tiles, picture.words),
        "shades": (frames, picture.tiles, picture.shade_words),
        "triangles": (frames, max(picture.triangles, 1)),
    }

    def draw(
        geom_xpos: wp.array2d[wp.vec3],
        geom_xmat: wp.array2d[wp.mat33],
        cam_xpos: wp.array2d[wp.vec3],
        cam_xmat: wp.array2d[wp.mat33],
        fovy: wp.array2d[wp.float32],
        sun: wp.array[wp.vec3],
        castshadow: wp.array[wp.bool],
        ambient: wp.array[wp.vec3],
        diffuse: wp.array[wp.vec3],
        rgba: wp.array2d[wp.vec3],
        texture_of: wp.array2d[wp.int32],
        rgb: wp.array3d[wp.uint8],
        depth: wp.array3d[wp.float32],
        segmentation: wp.array3d[wp.int32],
        cameras: wp.array2d[wp.vec4],
        planes: wp.array2d[mat34],
        rounded: wp.array2d[mat44],
        paint: wp.array3d[wp.vec4],
        rects: wp.array2d[wp.vec4],
        outlines: wp.array2d[mat34],
        leaves: wp.array2d[mat34],
        low: wp.array2d[wp.vec3],
        high: wp.array2d[wp.vec3],
        casts: wp.array2d[wp.uint64],
        edges: wp.array2d[mat34],
        seen: wp.array3d[wp.uint64],
        shades: wp.array3d[wp.uint64],
        triangles: wp.array2d[mat34],
    ):
        poses, looks = [geom_xpos, geom_xmat], [rgba, ambient, diffuse]
        size = [picture.width, picture.height]
        wp.launch(place_cameras, (n, cams), [*size, cam_xpos, cam_xmat, fovy, sun, castshadow, cameras])
        wp.launch(
            project_flat, (n, cams, picture.flats),
            [
                cams, picture.ground, *flat, material, *poses, *looks, sun, repeat, texture_of,
                cameras, planes, paint, rects,
            ],
        )  # fmt: skip
        if picture.rounds:
            wp.launch(
                project_round, (n, cams, picture.rounds),
                [cams, picture.flats, *rounds, material, *poses, *looks, cameras, rounded, paint, rects],
            )  # fmt: skip
        wp.launch(place_casters, (n, solid_count), [*bounded, *poses, sun, outlines, leaves, low, high])
        wp.launch(find_shaded, (n, geoms), [picture.casters, own, low, high, casts])
        wp.launch(
            project_shadows, (n, cams, picture.casters),
            [cams, surfaces_count, *casters, *poses, sun, outlines, cameras, edges, rects],
        )  # fmt: skip
        wp.launch(
            mark_tiles, (frames, picture.tiles, picture.words),
            [cams, picture.tiles_x, flat[0], rounds[0], casts, planes, edges, rects, cameras, seen, shades],
        )  # fmt: skip
        if picture.triangles:
            wp.launch(
                project_triangles, (n, cams, picture.triangles),
                [
                    cams, *size, picture.tiles_x, surfaces_count, *triangle, *poses, sun, casts, cameras,
                    triangles, seen, shades,
                ],
            )  # fmt: skip
        words = wp.array(ptr=rgb.ptr, dtype=wp.uint32, shape=rgb.size // 4, device=rgb.device)
        wp.launch(
            kernel, frames * picture.tiles * 32,
            [
                *(records.flatten() for records in (cameras, planes, rounded, paint, triangles, seen, shades)),
                outlines.flatten(), leaves.flatten(), casters[1], *rounds, *poses, sun, triangle_material, *looks, ids,
                *textures[1:], words, rgb, depth, segmentation,
            ],
            block_dim=BLOCK,
        )  # fmt: skip

    # the annotations are text here, which Warp does not read
    draw.__annotations__ = {name: eval(kind, globals()) for name, kind in draw.__annotations__.items()}
    return wp.jax_callable(
        draw, num_outputs=len(outputs), output_dims=outputs, graph_mode=wp.JaxCallableGraphMode.JAX
    )  # fmt: skip
