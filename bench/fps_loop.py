"""The loop that bench.fps times: targets, whole environment steps, pictures, and what happened in them."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from bench.targets import make_targets
from mjx_so101 import PaperReturnEnv
from mjx_so101.render import Renderer
from mjx_so101.render.sensor import sense, sensor_varies
from mjx_so101.task import State


class Contacts(NamedTuple):
    """What the fingertips touch in the states reached, counted by MuJoCo C; means over environments."""

    sheet_contacts: float
    """Contacts between a fingertip and the sheet, per environment."""
    table_contacts: float
    """Contacts between a fingertip and the bare table, per environment."""
    touching: float
    """Share of the environments in which a fingertip is on the sheet."""
    moving: float
    """Share of the environments whose sheet moves faster than 5 mm/s."""


def count_contacts(model: mujoco.MjModel, qpos: np.ndarray, qvel: np.ndarray) -> Contacts:
    """Count the contacts of states [env, 9] by the name of the pair: those with 'paper' in it are on the sheet."""
    on_sheet = {
        frozenset((int(model.pair_geom1[i]), int(model.pair_geom2[i]))): "paper" in model.pair(i).name
        for i in range(model.npair)
    }
    data = mujoco.MjData(model)
    sheet, table = np.zeros(len(qpos)), np.zeros(len(qpos))
    for env, row in enumerate(qpos):
        data.qpos[:] = row
        mujoco.mj_fwdPosition(model, data)
        for i in range(data.ncon):
            geoms = frozenset(map(int, data.contact.geom[i]))
            (sheet if on_sheet[geoms] else table)[env] += 1
    moving = np.linalg.norm(qvel[:, 6:8], axis=1) > 0.005
    return Contacts(float(sheet.mean()), float(table.mean()), float((sheet > 0).mean()), float(moving.mean()))


class Loop:
    """Steps an environment with targets of a mode of `bench.targets`; everything computed ends up in `carry`, so
    nothing is optimized away."""

    def __init__(self, env: PaperReturnEnv, seed: int, renderer: Renderer | None = None, mode: str = "random"):
        self.env, self.renderer = env, renderer
        self._fused = env.jittable and (renderer is None or renderer.jittable)
        self.targets = make_targets(mode, env)
        self._act, self._settle = jax.jit(self._act_traced), jax.jit(self._settle_traced)
        self._scan = jax.jit(self._scan_traced, static_argnames="steps")
        self.sensing = renderer is not None and sensor_varies(env.task.randomization)
        self._see = jax.jit(self._seen)
        key_targets, key_reset, key_age, key_sensor = jax.random.split(jax.random.PRNGKey(seed), 4)
        state = env.reset(key_reset)
        age = jax.random.randint(key_age, (env.num_envs,), 0, env.task.config.episode_steps)
        zero = jnp.zeros(())
        self.carry = {
            "state": state.replace(step=age.astype(jnp.int32)),
            "targets": self.targets.init(key_targets),
            "seen": env.observe(state),
            "sums": {"observation": zero, "reward": zero, "resets": zero, "overflow": zero, "nonfinite": zero},
            "pixels": zero,
            "sensor": key_sensor,
        }

    def _act_traced(self, carry):
        targets, target = self.targets.act(carry["targets"], carry["state"], carry["seen"])
        state, fields, ctrl = self.env.begin_step(carry["state"], target)
        return {**carry, "state": state, "targets": targets}, fields, ctrl

    def _settle_traced(self, carry, physics):
        state, result = self.env.finish_step(carry["state"], physics)
        seen = jax.vmap(self.env.task.observe)(state)
        new = {
            "observation": sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(seen)),
            "reward": jnp.sum(result.reward),
            "resets": jnp.sum(result.done),
            "overflow": jnp.sum(result.last.physics.overflow != 0),
            "nonfinite": jnp.sum(result.last.nonfinite),
        }
        sums = {name: carry["sums"][name] + value for name, value in new.items()}
        carry = {**carry, "state": state, "seen": seen, "sums": sums}
        if self.renderer and self.renderer.jittable:
            carry |= self._seen(self.renderer.render(state), state, carry["sensor"])
        return carry

    def _seen(self, rgb, state: State, key: jax.Array) -> dict[str, jax.Array]:
        """What pictures leave in the carry: one number that needs every pixel, after the sensor if it varies."""
        key, now = jax.random.split(key)
        if self.sensing:
            rgb = sense(rgb, state.params, jax.random.split(now, rgb.shape[0]))
        return {"pixels": self._mean(rgb), "sensor": key}

    @staticmethod
    def _mean(rgb) -> jax.Array:
        return jnp.mean(jnp.asarray(rgb).astype(jnp.float32))

    def _scan_traced(self, carry, steps):
        def step(carry, _):
            carry, fields, ctrl = self._act_traced(carry)
            return self._settle_traced(carry, self.env.physics.step(carry["state"].physics, fields, ctrl)), None

        return jax.lax.scan(step, carry, None, length=steps)[0]

    def run(self, steps: int) -> float:
        """Do `steps` control steps; returns the seconds they took, results on the device included."""
        begin = time.perf_counter()
        if self._fused:
            self.carry = self._scan(self.carry, steps=steps)
        else:
            for _ in range(steps):
                self._step_from_host()
        jax.block_until_ready(self.carry)
        return time.perf_counter() - begin

    def _step_from_host(self) -> None:
        if self.env.jittable:
            self.carry = self._scan(self.carry, steps=1)
        else:
            carry, fields, ctrl = self._act(self.carry)
            self.carry = self._settle(carry, self.env.physics.step(carry["state"].physics, fields, ctrl))
        if self.renderer and not self.renderer.jittable:
            state = self.carry["state"]
            self.carry |= self._see(jnp.asarray(self.renderer.render(state)), state, self.carry["sensor"])

    def draw(self, times: int) -> float:
        """Seconds for drawing the state reached `times` times, no sensor; the arm moves a little in between."""
        assert self.renderer is not None
        state = self.carry["state"]

        def moved(i):
            physics = state.physics.replace(qpos=state.physics.qpos + 1e-4 * i)
            return state.replace(physics=physics)

        def all_traced():
            def draw(total, i):
                return total + self._mean(self.renderer.render(moved(i))), None

            return jax.lax.scan(draw, jnp.zeros(()), jnp.arange(times, dtype=jnp.float32))[0]

        def all_from_host():
            for i in range(times):
                pixels = self._mean(self.renderer.render(moved(float(i))))
            return pixels

        draw = jax.jit(all_traced) if self.renderer.jittable else all_from_host
        jax.block_until_ready(draw())
        begin = time.perf_counter()
        jax.block_until_ready(draw())
        return time.perf_counter() - begin

    def contacts(self, most: int = 256) -> Contacts:
        """What the first `most` environments touch now."""
        physics = self.carry["state"].physics
        return count_contacts(self.env.model, np.asarray(physics.qpos)[:most], np.asarray(physics.qvel)[:most])
