"""What renderers that draw inside jit share: the scene, its poses and looks, and being called from the host as well."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mjx_so101.params import EnvParams
from mjx_so101.render.base import Array, Frames, check_pictures, check_request, select, traced
from mjx_so101.render.looks import Looks
from mjx_so101.render.poses import Poses, SceneKinematics
from mjx_so101.scene import SceneConfig, load_visual_model
from mjx_so101.task import State


class InJit:
    """A renderer whose `_draw` may be traced. See `render.Renderer`."""

    name: str
    jittable = True

    def __init__(
        self, scene: SceneConfig, cameras: Sequence[str], width: int, height: int, num_envs: int, fixed_looks: bool,
        strict: bool,
    ):  # fmt: skip
        """See the renderers. Raises ConfigError for an unknown camera, a size < 1 or pictures that do not fit."""
        self.cameras = check_request(scene, cameras, width, height, num_envs)
        self.width, self.height, self.num_envs, self.strict = width, height, num_envs, strict
        self.model = load_visual_model(scene)
        self._looks, self._kinematics = Looks(self.model), SceneKinematics(self.model)
        self._fixed = jax.tree.map(jnp.asarray, self._looks.nominal) if fixed_looks else None
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

    def _draw(self, qpos: jax.Array, params: EnvParams) -> Frames:
        raise NotImplementedError

    def _posed(self, qpos: jax.Array, params: EnvParams) -> tuple[dict[str, jax.Array], Poses]:
        """Fields of the model [env, ...], or without that axis where looks are fixed, and poses [env, ...]."""
        if self._fixed is not None:
            return self._fixed, jax.vmap(self._kinematics, in_axes=(0, None))(qpos, self._fixed)
        fields = jax.vmap(self._looks)(params)
        return fields, jax.vmap(self._kinematics)(qpos, fields)
