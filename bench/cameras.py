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
        if not self.size:
            raise ConfigError("size is empty; give at least one WIDTHxHEIGHT, such as 64x64.")
        for size in self.size:
            if not (size.count("x") == 1 and all(part.isdigit() for part in size.split("x"))):
                raise ConfigError(f"size {size!r} is not WIDTHxHEIGHT, such as 64x64.")
        if not self.cameras or not set(self.cameras) <= {1, 2}:
            raise ConfigError(f"cameras is {self.cameras}; give 1 (top), 2 (top and wrist) or both.")
        self.measurements()  # raises for anything that one of them refuses

    def measurements(self) -> list[tuple[str, fps.FpsConfig]]:
        """Each combination by name; a second camera halves the environments."""
        made = []
        for size, num_envs in zip(self.size, self.num_envs, strict=True):
            width, height = map(int, size.split("x"))
            for count in self.cameras:
                render = RenderConfig(
                    self.renderer, ("top", "wrist")[:count], width, height, self.shadows, self.textures, self.detail
                )
                name = f"{size if width != height else width}x{count}"
                picture = self.pictures / f"{self.prefix}_{self.renderer}_{name}.png" if self.pictures else None
                one = fps.FpsConfig(
                    num_envs=(-(-num_envs // count),), physics=(self.physics,), obs="rgb", render=render,
                    meshes=self.meshes, steps=self.steps, blocks=self.blocks, picture=picture,
                )  # fmt: skip
                made.append((name, one))
        return made


def main(config: CamerasConfig) -> None:
    """Measure each combination; the record is written after each, so one that fails loses nothing."""
    rows, headline = [], []
    for name, one in config.measurements():
        row = fps.measure(one, config.physics, one.num_envs[0])
        print(fps.table([row]).splitlines()[-1], flush=True)
        rows.append(row)
        prefix = f"{config.prefix}_rgb{name}"
        headline.append(figure(f"{prefix}_env_steps_per_s", row["env_steps_per_s"], "control steps/s"))
        headline.append(figure(f"{prefix}_render_frames_per_s", row["render_only_frames_per_s"], "frames/s"))
        write_record(config.out, headline, sheet_friction="dry", randomization="plain", rows=rows)


if __name__ == "__main__":
    try:
        main(tyro.cli(CamerasConfig))
    except SO101Error as error:
        sys.exit(f"error: {error}")
