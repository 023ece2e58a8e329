"""The renderer `quad`: NVIDIA Warp kernels made for this scene, called from JAX inside jit, on a GPU or on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import warp as wp

from mjx_so101.render import base
from mjx_so101.render.base import Array, Frames, check_fits, check_pictures, check_request, select, traced
from mjx_so101.render.looks import MAIN_LIGHT, Looks
from mjx_so101.render.poses import SceneKinematics
from mjx_so101.render.quad.draw import Picture, make_draw
from mjx_so101.render.quad.maths import CAMERA_ROWS, mat34, mat44
from mjx_so101.render.quad.project import place_cameras, project_flat, project_round
from mjx_so101.render.quad.shadows import find_shaded, place_casters, project_shadows
from mjx_so101.render.quad.surfaces import RECTANGLE, Surfaces, surfaces_of
from mjx_so101.render.quad.textures import Textures, load_textures
from mjx_so101.render.quad.tiles import mark_tiles
from mjx_so101.scene import SceneConfig, load_visual_model
from mjx_so101.task import State

_BLOCK = 64  # threads of a block of the drawing kernel: two tiles


class QuadRenderer:
    """Pictures of flat and round surfaces with shadows, textures and looks of each environment.

    Every surface is tried by formula, in the tiles of the picture that it can touch, see `maths`, `tiles` and `draw`.
    See `render.Renderer`.
    """

    name = "quad"
    jittable = True

    def __init__(
        self,
        scene: SceneConfig,
        cameras: Sequence[str],
        width: int,
        height: int,
        num_envs: int,
        *,
        rgb: bool = True,
        depth: bool = False,
        segmentation: bool = False,
        shadows: bool = True,
        textures: bool = True,
        specular: bool = True,
        fixed_looks: bool = False,
        strict: bool = False,
    ):
        """specular: materials with highlights are refused; False leaves the highlights out.
        fixed_looks: draw all environments with the nominal looks, whatever their parameters say.
        strict: a picture of one colour raises HealthError when `render` is called from the host.

        Raises ConfigError for an unknown camera, a size < 1, pictures that do not fit into memory, or a scene that
        holds something without a formula here.
        """
        self.cameras = check_request(scene, cameras, width, height, num_envs)
        self.width, self.height, self.num_envs, self.strict = width, height, num_envs, strict
        self.model = model = load_visual_model(scene)
        self._surfaces = surfaces = surfaces_of(model, specular)
        self._looks, self._kinematics = Looks(model), SceneKinematics(model)
        self._camera_ids = np.array([model.camera(name).id for name in self.cameras])
        self._lamp = model.light(MAIN_LIGHT).id
        self._fixed = jax.tree.map(jnp.asarray, self._looks.nominal) if fixed_looks else None
        sky = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
        self._picture = Picture(
            width=width, height=height, cameras=len(self.cameras), flats=len(surfaces.flat.geom),
            ground=surfaces.ground_flat, rounds=len(surfaces.round.geom), casters=len(surfaces.casters.geom),
            shaped=bool((surfaces.flat.outline != RECTANGLE).any()), shadows=shadows, textures=textures,
            sky=int(sky[0]) if len(sky) else -1, rgb=rgb, depth=depth, segmentation=segmentation,
        )  # fmt: skip
        bytes_per_pixel = math.ceil(self._picture.bytes_per_frame / (width * height))
        check_fits(len(self.cameras), width, height, num_envs, bytes_per_pixel, base.available_memory())
        self._textures = load_textures(model, _device())  # must live as long as compiled code that uses them
        self._call = _callable(self._picture, surfaces, model, num_envs, self._textures)
        self._frames = jax.jit(self._draw)

    def render(self, state: State, envs: jax.Array | None = None) -> Array:
        """See `Renderer.render`."""
        return self.frames(state, envs).rgb

    def frames(self, state: State, envs: jax.Array | None = None) -> Frames:
        """See `Renderer.frames`."""
        qpos, params = select(state, envs, self.num_envs, self.name)
        if traced(qpos, params):
            return self._draw(qpos, params)
        frames = self._frames(qpos, params)
        if self.strict:
            check_pictures(frames.rgb, self.cameras)
        return frames

    def close(self) -> None:
        """Nothing to do: the buffers are JAX's."""

    def _draw(self, qpos: jax.Array, params) -> Frames:
        if self._fixed is None:
            fields = jax.vmap(self._looks)(params)
            poses = jax.vmap(self._kinematics)(qpos, fields)
        else:
            poses = jax.vmap(self._kinematics, in_axes=(0, None))(qpos, self._fixed)
            fields = jax.tree.map(lambda field: field[None], self._fixed)
        geoms, cams, lamp = self._surfaces.geoms, self._camera_ids, self._lamp
        sun = -poses.light_xdir[:, lamp]
        ambient = jnp.asarray(_head_ambient(self.model)) + fields["light_ambient"][:, lamp]
        drawn = self._call(
            poses.geom_xpos[:, geoms],
            poses.geom_xmat[:, geoms],
            poses.cam_xpos[:, cams],
            poses.cam_xmat[:, cams],
            fields["cam_fovy"][:, cams],
            sun / jnp.linalg.norm(sun, axis=-1, keepdims=True),
            fields["light_castshadow"][:, lamp],
            ambient,
            fields["light_diffuse"][:, lamp],
            fields["mat_rgba"][..., :3],
            fields["mat_texid"][..., int(mujoco.mjtTextureRole.mjTEXROLE_RGB)],
        )
        rgb, depth, segmentation = drawn[:3]
        shape = (self.num_envs, len(self.cameras), self.height, self.width)
        return Frames(
            rgb.reshape(*shape, 3) if self._picture.rgb else None,
            depth.reshape(shape) if self._picture.depth else None,
            segmentation.reshape(shape) if self._picture.segmentation else None,
        )


def _head_ambient(model: mujoco.MjModel) -> np.ndarray:
    head = model.vis.headlight
    return np.asarray(head.ambient if head.active else np.zeros(3), np.float32)


def _device() -> wp.Device:
    return wp.get_device("cuda:0" if jax.default_backend() == "gpu" else "cpu")


def _callable(
    picture: Picture, surfaces: Surfaces, model: mujoco.MjModel, num_envs: int, textures: Textures
) -> Callable:
    """What JAX calls: the kernels one after the other. Their results between are outputs too, so that JAX owns all
    memory; the first three are pictures."""
    device = _device()

    def on_device(values, kind):
        return wp.array(np.ascontiguousarray(values), dtype=kind, device=device)

    def table(rows) -> list[wp.array]:
        kinds = {1: wp.int32, 2: wp.vec3}
        return [on_device(column, kinds[np.ndim(column)]) for column in vars(rows).values()]

    flat, rounds, casters = table(surfaces.flat), table(surfaces.round), table(surfaces.casters)
    material = on_device(surfaces.material, wp.int32)
    own = np.full(len(surfaces.geoms), -1, np.int32)
    own[surfaces.casters.geom] = np.arange(picture.casters)
    own = on_device(own, wp.int32)
    surface_geom = np.concatenate([surfaces.flat.geom, surfaces.round.geom])
    ids = on_device(surfaces.geoms[surface_geom], wp.int32)
    # textures lie on the ground alone, see `surfaces.check_drawable`
    shown = np.where(np.arange(len(surface_geom)) < picture.ground, surfaces.material[surface_geom], -1)
    surface_material = on_device(shown.astype(np.int32), wp.int32)
    repeat = on_device(np.asarray(model.mat_texrepeat, np.float32), wp.vec2)
    kernel = make_draw(picture, hardware=device.is_cuda)
    n, cams, frames, geoms = num_envs, picture.cameras, num_envs * picture.cameras, len(surfaces.geoms)
    surfaces_count, row_bytes = picture.flats + picture.rounds, 3 * picture.width
    outputs = {
        "rgb": (frames, picture.height, row_bytes) if picture.rgb else (1, 1, 4),
        "depth": (frames, picture.height, picture.width) if picture.depth else (1, 1, 1),
        "segmentation": (frames, picture.height, picture.width) if picture.segmentation else (1, 1, 1),
        "cameras": (frames, CAMERA_ROWS),
        "planes": (frames, picture.flats),
        "rounded": (frames, max(picture.rounds, 1)),
        "colors": (frames, surfaces_count, 2),
        "rects": (frames, surfaces_count + picture.casters),
        "outlines": (n, picture.casters),
        "leaves": (n, picture.casters),
        "low": (n, picture.casters),
        "high": (n, picture.casters),
        "casts": (n, geoms),
        "edges": (frames, picture.casters),
        "seen": (frames, picture.tiles, picture.words),
        "shades": (frames, picture.tiles, picture.words),
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
        colors: wp.array3d[wp.vec3],
        rects: wp.array2d[wp.vec4],
        outlines: wp.array2d[mat34],
        leaves: wp.array2d[mat34],
        low: wp.array2d[wp.vec3],
        high: wp.array2d[wp.vec3],
        casts: wp.array2d[wp.uint64],
        edges: wp.array2d[mat34],
        seen: wp.array3d[wp.uint64],
        shades: wp.array3d[wp.uint64],
    ):
        poses, paint = [geom_xpos, geom_xmat], [rgba, ambient, diffuse]
        size = [picture.width, picture.height]
        wp.launch(place_cameras, (n, cams), [*size, cam_xpos, cam_xmat, fovy, sun, castshadow, cameras])
        wp.launch(
            project_flat, (n, cams, picture.flats),
            [cams, *flat, material, *poses, *paint, sun, cameras, planes, colors, rects],
        )  # fmt: skip
        if picture.rounds:
            wp.launch(
                project_round, (n, cams, picture.rounds),
                [cams, picture.flats, *rounds, material, *poses, *paint, cameras, rounded, colors, rects],
            )  # fmt: skip
        wp.launch(place_casters, (n, picture.casters), [*casters, *poses, sun, outlines, leaves, low, high])
        wp.launch(find_shaded, (n, geoms), [own, low, high, casts])
        wp.launch(
            project_shadows, (n, cams, picture.casters),
            [cams, surfaces_count, *casters, *poses, sun, outlines, cameras, edges, rects],
        )  # fmt: skip
        wp.launch(
            mark_tiles, (frames, picture.tiles, picture.words),
            [cams, picture.tiles_x, flat[0], rounds[0], casts, planes, edges, rects, cameras, seen, shades],
        )  # fmt: skip
        words = wp.array(
            ptr=rgb.ptr, dtype=wp.uint32, shape=(rgb.shape[0], rgb.shape[1], rgb.shape[2] // 4), device=rgb.device
        )
        wp.launch(
            kernel, frames * picture.tiles * 32,
            [
                cameras, planes.flatten(), rounded.flatten(), colors.flatten(), seen.flatten(), shades.flatten(),
                outlines.flatten(), leaves.flatten(), casters[1], *rounds, *poses, sun, ids, surface_material, repeat,
                texture_of, *textures[1:], words, rgb, depth, segmentation,
            ],
            block_dim=_BLOCK,
        )  # fmt: skip

    # the annotations are text here, which Warp does not read
    draw.__annotations__ = {name: eval(kind, globals()) for name, kind in draw.__annotations__.items()}
    return wp.jax_callable(
        draw, num_outputs=len(outputs), output_dims=outputs, graph_mode=wp.JaxCallableGraphMode.JAX
    )  # fmt: skip
