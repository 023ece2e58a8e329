"""Physics backends behind one protocol: `native` (MuJoCo C threads), `warp` and `jax` (MJX)."""

from __future__ import annotations

from typing import Protocol

import jax
import mujoco

from mjx_so101.errors import ConfigError, require_choice
from mjx_so101.task import PhysicsState

BACKENDS = ("native", "warp", "jax")


class Physics(Protocol):
    """One control step of physics for a batch of environments."""

    name: str
    jittable: bool
    """True if `step` may be traced inside jit; False if it must be called from the host."""

    def step(self, state: PhysicsState, fields: dict[str, jax.Array], ctrl: jax.Array) -> PhysicsState:
        """Advance all environments.

        state: batched [env, ...]; fields: model fields by name, each [env, ...] (see `physics.fields`);
        ctrl: [env, substeps, 6] motor targets in rad.
        """
        ...


def default_backend() -> str:
    """'warp' where JAX has a GPU, else 'native'."""
    return "warp" if jax.default_backend() == "gpu" else "native"


def make_physics(name: str, model: mujoco.MjModel, num_envs: int, **options) -> Physics:
    """Build a backend by name ('auto', 'native', 'warp' or 'jax') for a model made by `load_model`.

    Raises ConfigError for an unknown name or num_envs < 1.
    """
    require_choice("physics", name, ("auto", *BACKENDS))
    if num_envs < 1:
        raise ConfigError(f"num_envs is {num_envs}; it must be at least 1.")
    if name == "auto":
        name = default_backend()
    if name == "native":
        from mjx_so101.physics.native import NativePhysics

        return NativePhysics(model, num_envs, **options)
    from mjx_so101.physics.mjx_backend import MjxPhysics

    return MjxPhysics(model, num_envs, impl=name, **options)
