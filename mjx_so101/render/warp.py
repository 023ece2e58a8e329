"""MJX's Warp ray tracer: all environments in one call, inside jit, on a GPU or on a CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from mujoco import mjx

from mjx_so101.graphs import graph_mode
from mjx_so101.render.base import Frames
from mjx_so101.render.in_jit import InJit
from mjx_so101.scene import SceneConfig

TILE = (4, 8)
"""Rows and columns of pixels that the 32 threads of a GPU's warp draw together: close rays meet the same shapes."""


class WarpRenderer(InJit):
    """Ray-traced pictures with shadows, textures and looks of each environment. See `render.Renderer`."""

    name = "warp"

    def __init__(
        self,
        scene: SceneConfig,
        cameras: Sequence[str],
        width: int,
        height: int,
        num_envs: int,
        *,
        depth: bool = False,
        segmentation: bool = False,
        shadows: bool = True,
        textures: bool = True,
        specular: bool = True,
        fixed_looks: bool = False,
        host_stepped: bool = False,
        strict: bool = False,
    ):
        """fixed_looks: draw all environments with the nominal looks, whatever their parameters say; faster.
        host_stepped: `render` is called from the host for each step, see `graphs.graph_mode`.
        strict: a picture of one colour raises HealthError when `render` is called from the host.

        Raises ConfigError for an unknown camera, a size < 1 or pictures that do not fit into memory.
        """
        super().__init__(scene, cameras, width, height, num_envs, fixed_looks, strict)
        model = self.model
        self._depth, self._segmentation = depth, segmentation
        active = sorted(model.camera(name).id for name in self.cameras)
        self._order = np.array([active.index(model.camera(name).id) for name in self.cameras])
        # the context owns the buffers: it must live as long as compiled code that uses it
        self._context = mjx.create_render_context(
            model, nworld=num_envs, cam_res=(width, height), cam_active=active,
            render_rgb=True, render_depth=depth, render_seg=segmentation,
            use_shadows=shadows, use_textures=textures, enable_emission=False,
            enable_specular=specular and bool(model.mat_specular.any()),
            shadow_light_fraction=0.0, render_skybox=True,
            use_precomputed_rays=fixed_looks,  # they freeze the field of view
        )  # fmt: skip
        self._tiled = fixed_looks and self._tile_rays()
        sizes = {} if fixed_looks else {"mat_texid": num_envs}
        mode = graph_mode(host_stepped)
        self._model = _with_large_blocks(mjx.put_model(model, impl="warp", batch_sizes=sizes, graph_mode=mode))

    def close(self) -> None:
        """Nothing to do: the buffers go with the object."""

    def _draw(self, qpos: jax.Array, params) -> Frames:
        axes, model = jax.tree.map(lambda _: None, self._model), self._model
        fields, poses = self._posed(qpos, params)
        if self._fixed is None:
            axes, model = axes.tree_replace(dict.fromkeys(fields, 0)), model.tree_replace(fields)
        empty = mjx.make_data(self.model, impl="warp", naconmax=1, njmax=1)

        def placed(poses):
            light = {"_impl.light_xpos": poses.light_xpos, "_impl.light_xdir": poses.light_xdir}
            data = empty.replace(**{k: v for k, v in poses._asdict().items() if not k.startswith("light")})
            return data.tree_replace(light)

        data = jax.vmap(placed)(poses)
        context = self._context.pytree()
        data = jax.vmap(mjx.refit_bvh, in_axes=(axes, 0, None))(model, data, context)
        if not self._segmentation:
            packed, depth, _ = jax.vmap(mjx.render, in_axes=(axes, 0, None))(model, data, context)
            return Frames(self._rgb(packed), self._images(depth) if self._depth else None)
        draw = jax.vmap(mjx.render_with_segmentation, in_axes=(axes, 0, None))
        packed, depth, segmentation, _ = draw(model, data, context)
        return Frames(
            self._rgb(packed), self._images(depth) if self._depth else None, self._images(segmentation[..., 0])
        )

    def _rgb(self, packed: jax.Array) -> jax.Array:
        """uint32 [env, pixels] of bytes B, G, R, A to uint8 [env, camera, height, width, 3]."""
        bgra = jax.lax.bitcast_convert_type(self._images(packed), jnp.uint8)
        return bgra[..., 2::-1]

    def _tile_rays(self) -> bool:
        """Put the context's rays in the order of tiles, if the pictures divide into them; says whether they do."""
        (tall, wide), rays = TILE, self._context.ray
        if self.height % tall or self.width % wide:
            return False
        grid = rays.numpy().reshape(-1, self.height // tall, tall, self.width // wide, wide, 3)
        rays.assign(grid.swapaxes(2, 3).reshape(-1, 3))
        return True

    def _images(self, flat: jax.Array) -> jax.Array:
        """[env, pixels] as the context has them to [env, camera, height, width]."""
        images = flat.reshape(self.num_envs, len(self.cameras), self.height, self.width)
        if self._tiled:
            tall, wide = TILE
            tiles = flat.reshape(*images.shape[:2], self.height // tall, self.width // wide, tall, wide)
            images = tiles.swapaxes(3, 4).reshape(images.shape)
        return images if (self._order == np.arange(len(self._order))).all() else images[:, self._order]


def _with_large_blocks(model: mjx.Model) -> mjx.Model:
    """The render kernel with 128 threads a block in place of 64: measured a sixth faster on an H100."""
    blocks = dataclasses.replace(model._impl.block_dim, render=128)
    return model.tree_replace({"_impl.block_dim": blocks})
