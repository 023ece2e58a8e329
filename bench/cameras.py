"""Throughput with pictures, over renderers, sizes and numbers of cameras: bench.fps for each, in one record.

    python -m bench.cameras --size 64x64 --num-envs 16384 --out bench/results/h100_rgb64.json
    python -m bench.cameras --renderer warp madrona --no-textures --size 64x64 --num-envs 8192 --cameras 1

Renderers that are measured together draw the same number of environments. Each measurement has a process of its own:
Madrona is built once in a process, before JAX.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tyro

from bench.fps import FpsConfig, conditions, table
from bench.record import figure, write_record
from mjx_so101 import ConfigError, SO101Error
from mjx_so101.render import RenderConfig


@dataclasses.dataclass(frozen=True)
class CamerasConfig:
    """What to measure."""

    physics: str = "auto"
    renderer: tuple[str, ...] = ("quad", "warp")
    """Each is measured with the same sizes and numbers of environments. Madrona draws no textures: compare it with
    --no-textures."""
    size: tuple[str, ...] = ("64x64", "128x128", "224x224", "320x240")
    """Width x height."""
    cameras: tuple[int, ...] = (1, 2)
    """1: top; 2: top and wrist."""
    num_envs: tuple[int, ...] = (16384, 8192, 4096, 2048)
    """For each size in turn; the second number of cameras halves it."""
    shadows: bool = True
    textures: bool = True
    detail: str = "coarse"
    """Shapes of the robot: 'fine' or 'coarse'."""
    meshes: str = ""
    ratios: bool = False
    """Of the first renderer, also: env steps/s over those of the same environments without pictures, and with looks and
    sensor effects of each environment (`real+looks`) over those with fixed ones (`real`)."""
    steps: int = 20
    blocks: int = 3
    seed: int = 0
    pictures: Path | None = None
    """Folder for the contact sheets."""
    out: Path = Path("rgb.json")

    def __post_init__(self) -> None:
        if len(self.num_envs) != len(self.size):
            raise ConfigError(f"{len(self.num_envs)} num_envs for {len(self.size)} sizes; give one for each size.")
        if not self.size or not self.renderer:
            raise ConfigError("size or renderer is empty; give at least one WIDTHxHEIGHT, such as 64x64, and warp.")
        for size in self.size:
            if not (size.count("x") == 1 and all(part.isdigit() for part in size.split("x"))):
                raise ConfigError(f"size {size!r} is not WIDTHxHEIGHT, such as 64x64.")
        if not self.cameras or not set(self.cameras) <= {1, 2}:
            raise ConfigError(f"cameras is {self.cameras}; give 1 (top), 2 (top and wrist) or both.")
        self.measurements()  # raises for anything that one of them refuses

    def measurements(self) -> list[FpsConfig]:
        """Each combination; a second camera halves the environments."""
        made = []
        for size, num_envs in zip(self.size, self.num_envs, strict=True):
            width, height = map(int, size.split("x"))
            for count in self.cameras:
                for renderer in self.renderer:
                    render = RenderConfig(
                        renderer, ("top", "wrist")[:count], width, height, self.shadows, self.textures, self.detail
                    )
                    made.append(
                        FpsConfig(
                            num_envs=(-(-num_envs // count),), physics=(self.physics,), obs="rgb", render=render,
                            meshes=self.meshes, steps=self.steps, blocks=self.blocks, seed=self.seed,
                            picture=self._picture(renderer, size, count),
                        )
                    )  # fmt: skip
        return made

    def _picture(self, renderer: str, size: str, count: int) -> Path | None:
        kind = "meshes" if self.meshes else self.detail
        return self.pictures / f"{renderer}_{kind}_{size}x{count}.png" if self.pictures else None


def arguments(config: FpsConfig, out: Path) -> list[str]:
    """Command line of bench.fps for one measurement."""
    r = config.render
    words = ["--obs", config.obs, "--renderer", r.renderer, "--cameras", *r.cameras, "--detail", r.detail]
    words += ["--width", str(r.width), "--height", str(r.height), "--num-envs", str(config.num_envs[0])]
    words += ["--shadows" if r.shadows else "--no-shadows", "--textures" if r.textures else "--no-textures"]
    words += ["--physics", config.physics[0], "--steps", str(config.steps), "--blocks", str(config.blocks)]
    words += ["--seed", str(config.seed), "--randomization", config.randomization, "--out", str(out)]
    words += ["--meshes", config.meshes] if config.meshes else []
    return words + (["--picture", str(config.picture)] if config.picture else [])


def measure(config: FpsConfig) -> dict[str, Any]:
    """Record of one measurement, made in a process of its own. Raises ConfigError if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fps.json"
        done = subprocess.run([sys.executable, "-m", "bench.fps", *arguments(config, out)], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise ConfigError(f"bench.fps {' '.join(arguments(config, out))} failed; what it says stands above.")
        return json.loads(out.read_text())


def ratios(one: FpsConfig, record: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Headline and rows of `CamerasConfig.ratios`, for a measurement and its record."""
    state, fixed, looks = (
        measure(dataclasses.replace(one, obs=obs, randomization=name, picture=None))["rows"][0]
        for obs, name in (("state", one.randomization), ("rgb", "real"), ("rgb", "real+looks"))
    )
    name = record["headline"][0]["name"].removesuffix("_env_steps_per_s")
    found = [
        figure(f"{name}_{kind}_ratio", above["env_steps_per_s"] / below["env_steps_per_s"], "ratio")
        for kind, above, below in (("state", record["rows"][0], state), ("looks", looks, fixed))
    ]
    return found, [state, fixed, looks]


def main(config: CamerasConfig) -> None:
    """Measure each combination; the record is written after each, so one that fails loses nothing."""
    rows, headline = [], []
    for one in config.measurements():
        record = measure(one)
        rows += record["rows"]
        headline += record["headline"]
        if config.ratios and one.render.renderer == config.renderer[0]:
            more, others = ratios(one, record)
            headline, rows = headline + more, rows + others
        print(table(rows).splitlines()[-1], flush=True)
        write_record(
            config.out, headline, seeds=[config.seed], num_envs=sorted({row["num_envs"] for row in rows}),
            conditions=conditions(one), device=record["device"], rows=rows,
        )  # fmt: skip


if __name__ == "__main__":
    try:
        main(tyro.cli(CamerasConfig))
    except SO101Error as error:
        sys.exit(f"error: {error}")
