"""Throughput that cannot lie: full environment steps per second with the finger on the sheet.

    python -m bench.fps --physics native --num-envs 64 256 --out bench/results/NAME.json
    python -m bench.fps --obs rgb --cameras top --width 64 --height 64 --num-envs 16384

A step here is everything that training needs of the simulation: action, randomized physics (8 substeps), sensing,
observation, reward terms, success test and automatic reset. Actions are random targets around poses in which a
fingertip presses on the table, because an arm in the air makes physics look cheap; MuJoCo C counts the contacts of
sampled states, and a run with fewer than 0.5 per environment fails. So does one with a NaN or a full buffer.

With `--obs rgb` every step also draws the pictures of every environment, and a picture of one colour fails the run.
Frames per second are those of all cameras together.
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
from mjx_so101 import ConfigError, HealthError, PaperReturnEnv, SceneConfig, SO101Error, TaskConfig, load_randomization
from mjx_so101.errors import require_choice
from mjx_so101.physics import BACKENDS, default_backend
from mjx_so101.render import RenderConfig, Renderer, check_pictures, make_renderer
from mjx_so101.render.sheet import contact_sheet, save_png
from policies.hand import HandConfig, approach_direction
from policies.ik import reach_point
from train.report import peak_memory, provenance

MIN_CONTACTS = 0.5
WARM_UP = 3
"""Untimed blocks after compilation. On a GPU Warp records CUDA graphs in each of the first three calls."""


@dataclasses.dataclass(frozen=True)
class FpsConfig:
    """What to measure."""

    num_envs: tuple[int, ...] = (64, 256)
    """Environment counts; each is measured, the best makes the headline."""
    physics: tuple[str, ...] = ("auto",)
    """Backends: native, warp, jax."""
    randomization: str = "plain"
    sheet_friction: str = "dry"
    meshes: str = ""
    """Draw the robot from these meshes (see SceneConfig.meshes) instead of primitives."""
    obs: str = "state"
    """'state', or 'rgb' to draw every environment in every step."""
    render: tyro.conf.OmitArgPrefixes[RenderConfig] = dataclasses.field(default_factory=RenderConfig)
    picture: Path | None = None
    """PNG of the first 16 environments as drawn at the end."""
    steps: int = 50
    """Control steps in one timed block."""
    blocks: int = 5
    """Timed blocks; the median counts."""
    seed: int = 0
    headline: str = ""
    """Name of the headline figure; default <device>_state_env_steps_per_s. With pictures a second figure is added,
    whose name ends in _frames_per_s."""
    out: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        if not self.physics:
            raise ConfigError("physics is empty; name at least one backend: auto, native, warp or jax.")
        for name in self.physics:
            require_choice("physics", name, ("auto", *BACKENDS))
        require_choice("obs", self.obs, ("state", "rgb"))
        if self.obs == "rgb" and self.render.renderer == "madrona" and len(self.num_envs) * len(self.physics) > 1:
            raise ConfigError("madrona is built once, before JAX: give one num_envs and one physics per run.")
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

    def __init__(self, env: PaperReturnEnv, seed: int, renderer: Renderer | None = None):
        self.env, self.renderer = env, renderer
        self._fused = env.jittable and (renderer is None or renderer.jittable)
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
            "pixels": zero,
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
        pixels = carry["pixels"]
        if self.renderer and self.renderer.jittable:
            pixels = self._seen(self.renderer.render(state))
        return {**carry, "state": state, "sums": sums, "pixels": pixels}

    @staticmethod
    def _seen(rgb) -> jax.Array:
        """One number that needs every pixel."""
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
            self.carry["pixels"] = self._seen(self.renderer.render(self.carry["state"]))

    def draw(self, times: int) -> float:
        """Seconds for drawing the state reached `times` times, nothing else; the arm moves a little in between."""
        assert self.renderer is not None
        state = self.carry["state"]

        def moved(i):
            physics = state.physics.replace(qpos=state.physics.qpos + 1e-4 * i)
            return state.replace(physics=physics)

        def all_traced():
            def draw(total, i):
                return total + self._seen(self.renderer.render(moved(i))), None

            return jax.lax.scan(draw, jnp.zeros(()), jnp.arange(times, dtype=jnp.float32))[0]

        def all_from_host():
            for i in range(times):
                pixels = self._seen(self.renderer.render(moved(float(i))))
            return pixels

        draw = jax.jit(all_traced) if self.renderer.jittable else all_from_host
        jax.block_until_ready(draw())
        begin = time.perf_counter()
        jax.block_until_ready(draw())
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
    scene = SceneConfig(sheet_friction=config.sheet_friction, visual=False, meshes=config.meshes)
    # madrona must have drawn before JAX touches the GPU
    renderer = (
        make_renderer(config.render, scene, num_envs, load_randomization(config.randomization))
        if config.obs == "rgb"
        else None
    )
    backend = default_backend() if backend == "auto" else backend
    host_stepped = renderer is not None and not renderer.jittable
    env = PaperReturnEnv(num_envs, backend, config.randomization, scene, TaskConfig(), host_stepped=host_stepped)
    begin = time.perf_counter()
    loop = Loop(env, config.seed, renderer)
    setup = time.perf_counter() - begin
    first = loop.run(config.steps)  # compiles
    for _ in range(WARM_UP):
        loop.run(config.steps)  # reaches steady contact; Warp records its graphs
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
        "setup_s": setup,
        "compile_s": max(0.0, first - median),
        "contacts_per_env": float(np.mean(contacts)),
        "resets": sums["resets"],
        "overflows": sums["overflow"],
        "nonfinite": sums["nonfinite"],
        **_pictures(config, loop),
        "peak_memory_bytes": peak_memory(),
    }
    if sums["overflow"] or sums["nonfinite"] or not np.isfinite(sums["observation"] + sums["reward"]):
        raise HealthError(f"{backend}, {num_envs} envs: not a valid measurement: {row}")
    if row["contacts_per_env"] < MIN_CONTACTS:
        raise HealthError(f"{backend}, {num_envs} envs: only {row['contacts_per_env']:.2f} contacts per env: {row}")
    return row


def _pictures(config: FpsConfig, loop: Loop) -> dict[str, Any]:
    """What a row says of pictures. Raises HealthError if one of them is constant."""
    renderer = loop.renderer
    if renderer is None:
        return {}
    drawn = renderer.render(loop.carry["state"])
    check_pictures(drawn, renderer.cameras)
    if config.picture:
        save_png(config.picture, contact_sheet(np.asarray(drawn[:16])))
    cameras = len(renderer.cameras)
    return {
        "renderer": renderer.name,
        "cameras": list(renderer.cameras),
        "width": renderer.width,
        "height": renderer.height,
        "shadows": config.render.shadows,
        "textures": config.render.textures,
        "detail": config.render.detail,
        "meshes": config.meshes,
        "render_only_frames_per_s": loop.env.num_envs * cameras * config.steps / loop.draw(config.steps),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [f"{'physics':8} {'envs':>7} {'env steps/s':>13} {'physics steps/s':>16} {'contacts':>9} {'compile s':>10}"]
    for r in rows:
        seen = ""
        if "renderer" in r:
            seen = (
                f"  {r['renderer']} {'+'.join(r['cameras'])} {r['width']}x{r['height']}, "
                f"{r['render_only_frames_per_s']:,.0f} frames/s when only drawing"
            )
        lines.append(
            f"{r['physics']:8} {r['num_envs']:>7} {r['env_steps_per_s']:>13,.0f} {r['physics_steps_per_s']:>16,.0f} "
            f"{r['contacts_per_env']:>9.2f} {r['compile_s']:>10.1f}{seen}"
        )
    return "\n".join(lines)


def headline_name(config: FpsConfig) -> str:
    """<device>_state_env_steps_per_s or <device>_rgb<size>x<cameras>_env_steps_per_s."""
    kind = "cpu" if jax.default_backend() == "cpu" else "gpu"
    render = config.render
    size = f"{render.width}" if render.width == render.height else f"{render.width}x{render.height}"
    what = "state" if config.obs == "state" else f"rgb{size}x{len(render.cameras)}"
    return config.headline or f"{kind}_{what}_env_steps_per_s"


def main(config: FpsConfig) -> dict[str, Any]:
    """Measure, print the table and write the JSON; gives the record."""
    rows = [measure(config, name, n) for name in config.physics for n in config.num_envs]
    best = max(rows, key=lambda r: r["env_steps_per_s"])
    name = headline_name(config)
    headline = [figure(name, best["env_steps_per_s"], "control steps/s")]
    if config.obs == "rgb":
        frames = best["render_only_frames_per_s"]
        headline.append(figure(f"{name.removesuffix('_env_steps_per_s')}_frames_per_s", frames, "frames/s"))
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
