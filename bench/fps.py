"""Throughput of full environment steps with a fingertip on the sheet.

    python -m bench.fps --physics native --num-envs 64 256 --out bench/results/NAME.json
    python -m bench.fps --targets random jacobian --out bench/results/NAME.json
    python -m bench.fps --obs rgb --cameras top --width 64 --height 64 --num-envs 16384

A step here is everything that training needs of the simulation: action, randomized physics (8 substeps), sensing,
observation, reward terms, success test and automatic reset. With `--targets random` a fingertip presses each
environment's own sheet and drags it about, because an arm in the air makes physics look cheap: MuJoCo C looks at
sampled states, and a run in which a fingertip is on the sheet in fewer than half of the environments fails. With
`--targets jacobian` that base policy drives, computed in every step; its contacts are only reported. A run with a NaN
or a full buffer fails.

With `--obs rgb` every step also draws the pictures of every environment, and a picture of one colour fails the run.
Frames per second are those of all cameras together.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.hardware import set_caches

set_caches()

import numpy as np
import tyro

from bench.fps_loop import Contacts, Loop
from bench.record import figure, make_record, write_record
from bench.targets import MODES
from mjx_so101 import ConfigError, HealthError, PaperReturnEnv, SceneConfig, SO101Error, TaskConfig, load_randomization
from mjx_so101.errors import require_choice
from mjx_so101.physics import BACKENDS, default_backend
from mjx_so101.render import RenderConfig, check_pictures, make_renderer
from mjx_so101.render.sheet import contact_sheet, save_png
from train.provenance import device, prefix_of
from train.report import peak_memory

MIN_TOUCHING = 0.5
"""Share of the environments that must have a fingertip on the sheet after every timed block of `random` targets."""
MOST_CONSTANT = 0.001
"""Share of pictures that may show one colour: among thousands of arms that random targets drive, some cover their own
wrist camera."""
WARM_UP = 3
"""Untimed blocks after compilation. On a GPU Warp records CUDA graphs in each of the first three calls."""


@dataclasses.dataclass(frozen=True)
class FpsConfig:
    """What to measure."""

    num_envs: tuple[int, ...] = (64, 256)
    """Environment counts; each is measured, the best makes the headline."""
    targets: tuple[str, ...] = ("random",)
    """What drives the arm: 'random' presses and drags the sheets, 'jacobian' is the base policy; each is measured."""
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
    out: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        if not self.physics:
            raise ConfigError("physics is empty; name at least one backend: auto, native, warp or jax.")
        for name in self.physics:
            require_choice("physics", name, ("auto", *BACKENDS))
        if not self.targets:
            raise ConfigError("targets is empty; name at least one: random or jacobian.")
        for name in self.targets:
            require_choice("targets", name, MODES)
        require_choice("obs", self.obs, ("state", "rgb"))
        runs = len(self.num_envs) * len(self.physics) * len(self.targets)
        if self.obs == "rgb" and self.render.renderer == "madrona" and runs > 1:
            raise ConfigError("madrona is built once, before JAX: give one num_envs, physics and targets per run.")
        if not self.num_envs or min(self.num_envs) < 1:
            raise ConfigError(f"num_envs is {self.num_envs}; every count must be at least 1.")
        if self.steps < 1 or self.blocks < 1:
            raise ConfigError(f"steps is {self.steps} and blocks {self.blocks}; both must be at least 1.")


def measure(config: FpsConfig, backend: str, num_envs: int, mode: str = "random") -> dict[str, Any]:
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
    loop = Loop(env, config.seed, renderer, mode)
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
        "targets": mode,
        "randomization": config.randomization,
        "physics": env.physics.name,
        "num_envs": num_envs,
        "env_steps_per_s": num_envs * config.steps / median,
        "physics_steps_per_s": num_envs * config.steps * scene.substeps / median,
        "spread": float((max(seconds) - min(seconds)) / median),
        "setup_s": setup,
        "compile_s": max(0.0, first - median),
        **_touch(contacts),
        "resets": sums["resets"],
        "overflows": sums["overflow"],
        "nonfinite": sums["nonfinite"],
        **_pictures(config, loop),
        "peak_memory_bytes": peak_memory(),
    }
    if sums["overflow"] or sums["nonfinite"] or not np.isfinite(sums["observation"] + sums["reward"]):
        raise HealthError(f"{backend}, {num_envs} envs: not a valid measurement: {row}")
    if mode == "random" and row["touching_sheet_least"] < MIN_TOUCHING:
        raise HealthError(
            f"{backend}, {num_envs} envs: a fingertip is on the sheet in only {row['touching_sheet_least']:.0%} of the "
            f"environments after a block; at least {MIN_TOUCHING:.0%} are needed: {row}"
        )
    return row


def _touch(contacts: Sequence[Contacts]) -> dict[str, float]:
    """What a row says of the contacts after each timed block."""
    mean = Contacts(*np.mean(contacts, axis=0).tolist())
    return {
        "sheet_contacts_per_env": mean.sheet_contacts,
        "table_contacts_per_env": mean.table_contacts,
        "touching_sheet": mean.touching,
        "touching_sheet_least": min(c.touching for c in contacts),
        "sheet_moving": mean.moving,
    }


def _pictures(config: FpsConfig, loop: Loop) -> dict[str, Any]:
    """What a row says of pictures. Raises HealthError if more than MOST_CONSTANT of them are constant."""
    renderer = loop.renderer
    if renderer is None:
        return {}
    drawn = renderer.render(loop.carry["state"])
    constant = check_pictures(drawn, renderer.cameras, MOST_CONSTANT)
    if config.picture:
        save_png(config.picture, contact_sheet(np.asarray(drawn[:16])))
    cameras = len(renderer.cameras)
    return {
        "renderer": renderer.name,
        "cameras": list(renderer.cameras),
        "width": renderer.width,
        "height": renderer.height,
        "shadows": config.render.shadows,
        "textures": config.render.textures and renderer.name != "madrona",  # it tints by their mean colour
        "detail": config.render.detail,
        "meshes": config.meshes,
        "constant_pictures": constant,
        "sensor": loop.sensing,
        "render_only_frames_per_s": loop.env.num_envs * cameras * config.steps / loop.draw(config.steps),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'physics':8} {'targets':9} {'envs':>7} {'env steps/s':>13} {'physics steps/s':>16} {'on sheet':>9} "
        f"{'on table':>9} {'compile s':>10}"
    ]
    for r in rows:
        seen = ""
        if "renderer" in r:
            seen = (
                f"  {r['renderer']} {'+'.join(r['cameras'])} {r['width']}x{r['height']}, "
                f"{r['render_only_frames_per_s']:,.0f} frames/s when only drawing"
            )
        lines.append(
            f"{r['physics']:8} {r['targets']:9} {r['num_envs']:>7} {r['env_steps_per_s']:>13,.0f} "
            f"{r['physics_steps_per_s']:>16,.0f} {r['sheet_contacts_per_env']:>9.2f} "
            f"{r['table_contacts_per_env']:>9.2f} {r['compile_s']:>10.1f}{seen}"
        )
    return "\n".join(lines)


def headline_name(config: FpsConfig, mode: str, on: str, renderer: str = "quad") -> str:
    """<device>_<what>_env_steps_per_s: 'state' or 'rgb<size>x<cameras>', with whatever is not the default.

    renderer: what drew, whatever the configuration left open.
    """
    render = config.render
    size = f"{render.width}" if render.width == render.height else f"{render.width}x{render.height}"
    parts = [prefix_of(on)]
    if config.obs == "rgb":
        parts += ["meshes"] if config.meshes else ["fine"] if render.detail == "fine" else []
        parts += [f"rgb{size}x{len(render.cameras)}"]
        parts += [renderer] if renderer != "quad" else []
    else:
        parts += ["state"]
    parts += [config.randomization.replace("+", "_")] if config.randomization != "plain" else []
    parts += [config.sheet_friction] if config.sheet_friction != "dry" else []
    parts += [mode] if mode != "random" else []
    return "_".join([*parts, "env_steps_per_s"])


def figures(config: FpsConfig, mode: str, row: dict[str, Any], on: str) -> list[dict[str, Any]]:
    """The headline of a row."""
    name = headline_name(config, mode, on, row.get("renderer", "quad"))
    found = [figure(name, row["env_steps_per_s"], "control steps/s")]
    if config.obs == "rgb":
        frames = row["render_only_frames_per_s"]
        found.append(figure(f"{name.removesuffix('_env_steps_per_s')}_render_frames_per_s", frames, "frames/s"))
    return found


def conditions(config: FpsConfig) -> dict[str, Any]:
    """What a reader of the headline must know."""
    return {
        "randomization": config.randomization,
        "sheet_friction": config.sheet_friction,
        "obs": config.obs,
        "steps": config.steps,
        "blocks": config.blocks,
    }


def main(config: FpsConfig) -> dict[str, Any]:
    """Measure, print the table and write the JSON; gives the record."""
    best, rows, headline = {}, [], []
    for mode in config.targets:
        mine = [measure(config, name, n, mode) for name in config.physics for n in config.num_envs]
        rows += mine
        fastest = max(mine, key=lambda r: r["env_steps_per_s"])
        best[mode] = {"physics": fastest["physics"], "num_envs": fastest["num_envs"]}
        headline += figures(config, mode, fastest, device())
    print(table(rows))
    rest = {"seeds": [config.seed], "num_envs": config.num_envs, "conditions": conditions(config)}
    if config.out:
        return write_record(config.out, headline, **rest, best=best, rows=rows)
    return make_record(headline, **rest, best=best, rows=rows)


if __name__ == "__main__":
    try:
        main(tyro.cli(FpsConfig))
    except SO101Error as error:
        sys.exit(f"error: {error}")
