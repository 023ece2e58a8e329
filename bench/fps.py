"""Throughput that cannot lie: full environment steps per second with the finger on the sheet.

    python -m bench.fps --physics native --num-envs 64 256 --out bench/results/NAME.json

A step here is everything that training needs of the simulation: action, randomized physics (8 substeps), sensing,
observation, reward terms, success test and automatic reset. Actions are random targets around poses in which a
fingertip presses on the table, because an arm in the air makes physics look cheap; MuJoCo C counts the contacts of
sampled states, and a run with fewer than 0.5 per environment fails. So does one with a NaN or a full buffer.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from train.hardware import set_caches

set_caches()

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro

from bench.record import figure, write_record
from mjx_so101 import ConfigError, HealthError, PaperReturnEnv, SceneConfig, SO101Error, TaskConfig
from mjx_so101.errors import require_choice
from mjx_so101.physics import BACKENDS, default_backend
from policies.hand import HandConfig, approach_direction
from policies.ik import reach_point
from train.report import peak_memory, provenance

MIN_CONTACTS = 0.5


@dataclasses.dataclass(frozen=True)
class FpsConfig:
    """What to measure."""

    num_envs: tuple[int, ...] = (64, 256)
    """Environment counts; each is measured, the best makes the headline."""
    physics: tuple[str, ...] = ("auto",)
    """Backends: native, warp, jax."""
    randomization: str = "plain"
    sheet_friction: str = "dry"
    steps: int = 50
    """Control steps in one timed block."""
    blocks: int = 5
    """Timed blocks; the median counts."""
    seed: int = 0
    headline: str = ""
    """Name of the headline figure; default <device>_state_env_steps_per_s."""
    out: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        if not self.physics:
            raise ConfigError("physics is empty; name at least one backend: auto, native, warp or jax.")
        for name in self.physics:
            require_choice("physics", name, ("auto", *BACKENDS))
        if not self.num_envs or min(self.num_envs) < 1:
            raise ConfigError(f"num_envs is {self.num_envs}; every count must be at least 1.")
        if self.steps < 1 or self.blocks < 1:
            raise ConfigError(f"steps is {self.steps} and blocks {self.blocks}; both must be at least 1.")


def pressed_poses(env: PaperReturnEnv, count: int = 256, depth: float = 0.003) -> jax.Array:
    """[count, 6] joint targets that press the fixed fingertip `depth` (m) into points around the goal."""
    kinematics, hand = env.task.kinematics, HandConfig()
    rng = np.random.default_rng(0)
    points = np.asarray(env.task.geometry.goal) + rng.uniform(-0.05, 0.05, (count, 2))
    height = 0.001 + kinematics.fingertip_radius - depth
    start = jnp.array([0.0, 0.0, 0.35, 1.25, 1.6])

    def solve(point):
        approach = approach_direction(kinematics, point, hand)
        position = jnp.append(point, height)
        joints = reach_point(kinematics, start, kinematics.fixed_fingertip, position, approach, None, iterations=50)
        return jnp.append(joints, -0.1745)

    return jax.jit(jax.vmap(solve))(jnp.asarray(points, jnp.float32))


class Loop:
    """Steps an environment with random pressed targets; everything computed ends up in `carry`, so nothing is
    optimized away."""

    def __init__(self, env: PaperReturnEnv, seed: int):
        self.env = env
        self.poses = pressed_poses(env)
        self._act, self._settle = jax.jit(self._act_traced), jax.jit(self._settle_traced)
        self._scan = jax.jit(self._scan_traced, static_argnames="steps")
        key, key_reset, key_age = jax.random.split(jax.random.PRNGKey(seed), 3)
        state = env.reset(key_reset)
        age = jax.random.randint(key_age, (env.num_envs,), 0, env.task.config.episode_steps)
        zero = jnp.zeros(())
        self.carry = {
            "state": state.replace(step=age.astype(jnp.int32)),
            "key": key,
            "sums": {"observation": zero, "reward": zero, "resets": zero, "overflow": zero, "nonfinite": zero},
        }

    def _act_traced(self, carry):
        key, key_pose, key_noise = jax.random.split(carry["key"], 3)
        n = self.env.num_envs
        which = jax.random.randint(key_pose, (n,), 0, len(self.poses))
        # an environment keeps its own pose for a while, so that the finger drags and does not fly
        own = (jnp.arange(n) + carry["state"].step // 40) % len(self.poses)
        pose = self.poses[jnp.where(carry["state"].step % 40 == 0, which, own)]
        target = pose + jax.random.uniform(key_noise, (n, 6), minval=-0.02, maxval=0.02)
        state, fields, ctrl = self.env.begin_step(carry["state"], target)
        return {**carry, "state": state, "key": key}, fields, ctrl

    def _settle_traced(self, carry, physics):
        state, result = self.env.finish_step(carry["state"], physics)
        observation = jax.vmap(self.env.task.observe)(state)
        seen = sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(observation))
        new = {
            "observation": seen,
            "reward": jnp.sum(result.reward),
            "resets": jnp.sum(result.done),
            "overflow": jnp.sum(result.last.physics.overflow != 0),
            "nonfinite": jnp.sum(result.last.nonfinite),
        }
        sums = {name: carry["sums"][name] + value for name, value in new.items()}
        return {**carry, "state": state, "sums": sums}

    def _scan_traced(self, carry, steps):
        def step(carry, _):
            carry, fields, ctrl = self._act_traced(carry)
            return self._settle_traced(carry, self.env.physics.step(carry["state"].physics, fields, ctrl)), None

        return jax.lax.scan(step, carry, None, length=steps)[0]

    def run(self, steps: int) -> float:
        """Do `steps` control steps; returns the seconds they took, results on the device included."""
        begin = time.perf_counter()
        if self.env.jittable:
            self.carry = self._scan(self.carry, steps=steps)
        else:
            for _ in range(steps):
                carry, fields, ctrl = self._act(self.carry)
                self.carry = self._settle(carry, self.env.physics.step(carry["state"].physics, fields, ctrl))
        jax.block_until_ready(self.carry)
        return time.perf_counter() - begin

    def contacts(self, most: int = 256) -> float:
        """Mean contacts per environment, counted by MuJoCo C in the states reached."""
        data = mujoco.MjData(self.env.model)
        total = 0
        qpos = np.asarray(self.carry["state"].physics.qpos)[:most]
        for row in qpos:
            data.qpos[:] = row
            mujoco.mj_fwdPosition(self.env.model, data)
            total += data.ncon
        return total / len(qpos)


def measure(config: FpsConfig, backend: str, num_envs: int) -> dict[str, Any]:
    """One row of the table. Raises HealthError if the run was not honest work."""
    scene = SceneConfig(sheet_friction=config.sheet_friction, visual=False)
    env = PaperReturnEnv(num_envs, backend, config.randomization, scene, TaskConfig())
    loop = Loop(env, config.seed)
    first = loop.run(config.steps)  # compiles
    loop.run(config.steps)  # reaches steady contact
    seconds, contacts = [], []
    for _ in range(config.blocks):
        seconds.append(loop.run(config.steps))
        contacts.append(loop.contacts())
    median = float(np.median(seconds))
    sums = {name: float(value) for name, value in loop.carry["sums"].items()}
    row = {
        "physics": env.physics.name,
        "num_envs": num_envs,
        "env_steps_per_s": num_envs * config.steps / median,
        "physics_steps_per_s": num_envs * config.steps * scene.substeps / median,
        "spread": float((max(seconds) - min(seconds)) / median),
        "compile_s": max(0.0, first - median),
        "contacts_per_env": float(np.mean(contacts)),
        "resets": sums["resets"],
        "overflows": sums["overflow"],
        "nonfinite": sums["nonfinite"],
        "peak_memory_bytes": peak_memory(),
    }
    if sums["overflow"] or sums["nonfinite"] or not np.isfinite(sums["observation"] + sums["reward"]):
        raise HealthError(f"{backend}, {num_envs} envs: not a valid measurement: {row}")
    if row["contacts_per_env"] < MIN_CONTACTS:
        raise HealthError(f"{backend}, {num_envs} envs: only {row['contacts_per_env']:.2f} contacts per env: {row}")
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [f"{'physics':8} {'envs':>7} {'env steps/s':>13} {'physics steps/s':>16} {'contacts':>9} {'compile s':>10}"]
    for r in rows:
        lines.append(
            f"{r['physics']:8} {r['num_envs']:>7} {r['env_steps_per_s']:>13,.0f} {r['physics_steps_per_s']:>16,.0f} "
            f"{r['contacts_per_env']:>9.2f} {r['compile_s']:>10.1f}"
        )
    return "\n".join(lines)


def main(config: FpsConfig) -> dict[str, Any]:
    """Measure, print the table and write the JSON; gives the record."""
    rows = []
    for name in config.physics:
        backend = default_backend() if name == "auto" else name
        rows += [measure(config, backend, n) for n in config.num_envs]
    best = max(rows, key=lambda r: r["env_steps_per_s"])
    kind = "cpu" if jax.default_backend() == "cpu" else "gpu"
    name = config.headline or f"{kind}_state_env_steps_per_s"
    headline = [figure(name, best["env_steps_per_s"], "control steps/s")]
    details = {
        "sheet_friction": config.sheet_friction,
        "randomization": config.randomization,
        "best": {"physics": best["physics"], "num_envs": best["num_envs"]},
        "rows": rows,
    }
    print(table(rows))
    if config.out:
        return write_record(config.out, headline, **details)
    return {"headline": headline, **provenance(), **details}


if __name__ == "__main__":
    try:
        main(tyro.cli(FpsConfig))
    except SO101Error as error:
        sys.exit(f"error: {error}")
