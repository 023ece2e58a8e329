"""MuJoCo C through `mujoco.rollout`: the fast path on a CPU, driven from the host, bitwise repeatable."""

from __future__ import annotations

import copy
import os

import jax
import mujoco
import numpy as np
from mujoco import rollout

from mjx_so101.errors import ConfigError
from mjx_so101.scene import ARM_BODIES
from mjx_so101.task import PhysicsState

_FULL = {int(mujoco.mjtWarning.mjWARN_CONTACTFULL), int(mujoco.mjtWarning.mjWARN_CNSTRFULL)}


class NativePhysics:
    """A pool of threads over one MjModel per environment (each may have its own fields)."""

    name = "native"
    jittable = False

    def __init__(self, model: mujoco.MjModel, num_envs: int, threads: int | None = None):
        """threads: size of the pool; default one per CPU core."""
        try:
            self._axis_sensors = [model.sensor(f"axis_{name}").adr[0] for name in ARM_BODIES]
        except KeyError:
            raise ConfigError("the native backend needs load_model(SceneConfig(acceleration_sensors=True)).") from None
        self._spin_sensors = [model.sensor(f"spin_{name}").adr[0] for name in (*ARM_BODIES, "paper")]
        self._slide_sensor = model.sensor("slide_paper").adr[0]
        if threads is None:
            threads = len(os.sched_getaffinity(0))
        if threads < 1:
            raise ConfigError(f"threads is {threads}; it must be at least 1 (default: one per CPU core).")
        threads = min(threads, num_envs)
        self.num_envs = num_envs
        model = copy.copy(model)
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET  # a NaN must be seen, not silently reset
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND  # as in MJX; a third faster for this small model
        self._models = [copy.copy(model) for _ in range(num_envs)]
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._pool = rollout.Rollout(nthread=threads)
        self._written: dict[str, np.ndarray] = {}
        size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        self._initial = np.zeros((num_envs, size))
        self._nq = model.nq
        self._timestep = model.opt.timestep

    def step(self, state: PhysicsState, fields: dict[str, jax.Array], ctrl: jax.Array) -> PhysicsState:
        """See `Physics.step`. Runs on the host; arrays may be JAX or NumPy.

        An environment that MuJoCo stopped for another reason than a full buffer comes out as NaN.
        """
        self._write_fields(fields)
        nq = self._nq
        self._initial[:, 1 : 1 + nq] = state.qpos
        self._initial[:, 1 + nq : 1 + 2 * nq] = state.qvel
        warmstart = np.asarray(state.warmstart, np.float64)
        ctrl = np.asarray(ctrl, np.float64)
        states, sensors = self._pool.rollout(self._models, self._data, self._initial, ctrl, initial_warmstart=warmstart)
        last = states[:, -1].astype(np.float32)
        # rollout stops an environment at a warning, so its clock stands still; a warning in the very last substep
        # shows in the next control step
        stopped = states[:, -1, 0] < (ctrl.shape[1] - 0.5) * self._timestep
        overflow = np.zeros(self.num_envs, np.int32)
        for env in np.flatnonzero(stopped & np.isfinite(last).all(1)):
            full, other = self._why_stopped(env, warmstart[env], ctrl[env])
            overflow[env] = full
            if other or not full:
                last[env] = np.nan
        return PhysicsState(
            qpos=last[:, 1 : 1 + nq],
            qvel=last[:, 1 + nq : 1 + 2 * nq],
            warmstart=self._joint_acceleration(sensors[:, -1]).astype(np.float32),
            overflow=overflow,
        )

    def _why_stopped(self, env: int, warmstart: np.ndarray, ctrl: np.ndarray) -> tuple[int, bool]:
        """Which buffers were full (bits 1 << mjtWarning), and whether MuJoCo gave another warning (NaN, inf or a number
        above 1e10). Repeats the control step up to the first warning: `rollout` keeps none per environment."""
        model, data = self._models[env], self._data[0]
        mujoco.mj_resetData(model, data)
        mujoco.mj_setState(model, data, self._initial[env], mujoco.mjtState.mjSTATE_FULLPHYSICS)
        data.qacc_warmstart = warmstart
        for target in ctrl:
            data.ctrl = target
            mujoco.mj_step(model, data)
            warned = {int(i) for i in np.flatnonzero(data.warning.number)}
            if warned:
                return sum(1 << i for i in warned & _FULL), bool(warned - _FULL)
        return 0, False

    def _write_fields(self, fields: dict[str, jax.Array]) -> None:
        """Copy the rows of `fields` that differ from what each model already holds."""
        for name, value in fields.items():
            value = np.asarray(value)
            old = self._written.get(name)
            axes = tuple(range(1, value.ndim))
            rows = range(self.num_envs) if old is None else np.flatnonzero((value != old).any(axis=axes))
            for i in rows:
                getattr(self._models[i], name)[:] = value[i]
            self._written[name] = value

    def _joint_acceleration(self, sensors: np.ndarray) -> np.ndarray:
        """[env, 9] qacc of the last substep, which is MuJoCo's next warm start. `rollout` does not return it,
        but the sensors do: a hinge's acceleration is the difference of its bodies' angular accelerations along
        its axis."""
        spin = np.stack([sensors[:, a : a + 3] for a in self._spin_sensors], 1)  # [env, 7, 3]
        axis = np.stack([sensors[:, a : a + 3] for a in self._axis_sensors], 1)  # [env, 6, 3]
        arm = spin[:, :6]
        relative = np.diff(arm, axis=1, prepend=0.0)
        slide = sensors[:, self._slide_sensor : self._slide_sensor + 2]
        return np.concatenate([(relative * axis).sum(-1), slide, spin[:, 6, 2:]], axis=1)
