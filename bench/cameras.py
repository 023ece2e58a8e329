"""Throughput with pictures, over sizes and numbers of cameras: bench.fps for each, in one record with contact sheets.

python -m bench.cameras --prefix h100 --out bench/results/h100_rgb.json
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tyro

from bench import fps
from bench.record import figure, write_record
from mjx_so101 import ConfigError, SO101Error
from mjx_so101.render import RenderConfig


@dataclasses.dataclass(frozen=True)
class CamerasConfig:
    """What to measure."""

    prefix: str = "cpu"
    """First part of the headline names."""
    physics: str = "auto"
    renderer: str = "warp"
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
    steps: int = 20
    blocks: int = 3
    pictures: Path | None = None
    """Folder for the contact sheets."""
    out: Path = Path("rgb.json")

    def __post_init__(self) -> None:
        if len(self.num_envs) != len(self.size):
            raise ConfigError(f"{len(self.num_envs)} num_envs for {len(self.size)} sizes; give one for each size.")
        for size in self.size:
            if not (size.count("x") == 1 and all(part.isdigit() for part in size.split("x"))):
                raise ConfigError(f"size {size!r} is not WIDTHxHEIGHT, such as 64x64.")
        if not set(self.cameras) <= {1, 2}:
            raise ConfigError(f"cameras is {self.cameras}; each must be 1 (top) or 2 (top and wrist).")


def main(config: CamerasConfig) -> None:
    """Measure each combination; the record is written after each, so one that fails loses nothing."""
    rows, headline = [], []
    for size, num_envs in zip(config.size, config.num_envs, strict=True):
        width, height = map(int, size.split("x"))
        for count in config.cameras:
            name = f"{size if width != height else width}x{count}"
            render = RenderConfig(
                config.renderer, ("top", "wrist")[:count], width, height, config.shadows, config.textures, config.detail
            )
            picture = config.pictures / f"{config.prefix}_{config.renderer}_{name}.png" if config.pictures else None
            one = fps.FpsConfig(
                num_envs=(max(1, num_envs // count),), obs="rgb", render=render, meshes=config.meshes,
                steps=config.steps, blocks=config.blocks, picture=picture,
            )  # fmt: skip
            row = fps.measure(one, config.physics, one.num_envs[0])
            print(fps.table([row]).splitlines()[-1], flush=True)
            rows.append(row)
            headline.append(
                figure(f"{config.prefix}_rgb{name}_env_steps_per_s", row["env_steps_per_s"], "control steps/s")
            )
            headline.append(
                figure(f"{config.prefix}_rgb{name}_render_frames_per_s", row["render_only_frames_per_s"], "frames/s")
            )
            write_record(config.out, headline, sheet_friction="dry", randomization="plain", rows=rows)


if __name__ == "__main__":
    try:
        main(tyro.cli(CamerasConfig))
    except SO101Error as error:
        sys.exit(f"error: {error}")
