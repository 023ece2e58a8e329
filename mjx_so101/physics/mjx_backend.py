"""MJX: impl 'warp' (GPU, runs on CPU too) and 'jax'. The whole control step is traced inside jit."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx
from mujoco.mjx._src import derivative

from mjx_so101.errors import ConfigError
from mjx_so101.graphs import graph_mode
from mjx_so101.task import PhysicsState

_CONTACTS_PER_ENV = 8  # two fingertips on sheet and table make 4
_CONSTRAINTS_PER_ENV = 48  # 9 dry frictions, 6 joint limits, 4 contacts of 4 rows: 31

_LIMITS_REACHED = 1 << 9 | 1 << 10
"""mujoco_warp's OverflowType.ITERATIONS | LS_ITERATIONS: the solver stopped at its limit. By design here, harmless."""


class MjxPhysics:
    """MJX physics. Each control step starts from `PhysicsState` alone; MJX's own Data lives only inside the step."""

    jittable = True

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        impl: str = "warp",
        contacts_per_env: int = _CONTACTS_PER_ENV,
        constraints_per_env: int = _CONSTRAINTS_PER_ENV,
        host_stepped: bool = False,
    ):
        """contacts_per_env and constraints_per_env size the shared contact and per-env constraint buffers (warp).
        host_stepped: see `graphs.graph_mode`."""
        for what, size in (("contacts_per_env", contacts_per_env), ("constraints_per_env", constraints_per_env)):
            if size < 1:
                raise ConfigError(
                    f"{what} is {size}; it must be at least 1 ({_CONTACTS_PER_ENV} contacts and "
                    f"{_CONSTRAINTS_PER_ENV} constraints are enough for this scene)."
                )
        self.name = impl
        self.num_envs = num_envs
        self._model = mjx.put_model(model, impl=impl, graph_mode=graph_mode(host_stepped))
        self._sizes: dict[str, int] = {}
        if impl == "warp":
            # printing every solver limit from the device would cost up to half the speed
            self._model = self._model.tree_replace({"opt._impl.warn_overflow": 0})
            self._sizes = {"naconmax": num_envs * contacts_per_env, "njmax": constraints_per_env}
        self._mj_model = model

    def step(self, state: PhysicsState, fields: dict[str, jax.Array], ctrl: jax.Array) -> PhysicsState:
        """See `Physics.step`; jittable."""
        axes = jax.tree.map(lambda _: None, self._model)
        axes = axes.tree_replace(dict.fromkeys(fields, 0))
        model = self._model.tree_replace(fields)
        empty = mjx.make_data(self._mj_model, impl=self.name, **self._sizes)

        def begin(qpos, qvel, warmstart):
            return empty.replace(qpos=qpos, qvel=qvel, qacc_warmstart=warmstart)

        def substep(i, carry):
            data, overflow = carry
            # A slice across environments is copied, so that every substep gives MJX the same buffer: Warp records a
            # CUDA graph for each set of them. A slice [substep] of a transposed ctrl would be passed as it lies.
            data = jax.vmap(mjx.step, in_axes=(axes, 0))(model, data.replace(ctrl=ctrl[:, i]))
            return data, overflow | self._overflow(data)

        data = jax.vmap(begin)(state.qpos, state.qvel, state.warmstart)
        start = (data, jnp.zeros(ctrl.shape[0], jnp.int32))
        with _clamped_motor_damping() if self.name == "jax" else contextlib.nullcontext():
            data, overflow = jax.lax.fori_loop(0, ctrl.shape[1], substep, start)
        return PhysicsState(qpos=data.qpos, qvel=data.qvel, warmstart=data.qacc_warmstart, overflow=overflow)

    def _overflow(self, data: mjx.Data) -> jax.Array:
        if self.name != "warp":
            return jnp.zeros(data.qpos.shape[0], jnp.int32)
        return (data._impl.overflow & ~_LIMITS_REACHED).reshape(-1).astype(jnp.int32)


@contextlib.contextmanager
def _clamped_motor_damping():
    """While impl='jax' is traced, leave the damping of motors at their force limit out of the implicit derivative.

    MJX keeps it (mujoco/mjx/_src/derivative.py, 3.17), MuJoCo C and mujoco_warp (PR #1149) do not; these stiff motors
    are at their limit most of the time, and the arm would end up to 0.1 rad off.
    """
    original = derivative.deriv_smooth_vel

    def deriv_smooth_vel(model, data):
        limits = model.actuator_forcerange
        free = (data.actuator_force > limits[:, 0]) & (data.actuator_force < limits[:, 1])
        moment = data._impl.actuator_moment
        damping = model.actuator_biasprm[:, 2] * free
        return moment.T @ (moment * damping[:, None]) - jnp.diag(model.dof_damping)

    derivative.deriv_smooth_vel = deriv_smooth_vel
    try:
        yield
    finally:
        derivative.deriv_smooth_vel = original
