"""How well the pose network finds the sheet, and what a base policy does with it.

    python -m bench.pose --out bench/results/h100_pose.json

Teaches under each randomization with `so101 teach-pose`, in a process each. The first also says how often the base
policy succeeds that sees nothing but pictures and joints.
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

from bench.record import figure, word_of, write_record
from mjx_so101 import ConfigError, SO101Error
from train.provenance import prefix_of


@dataclasses.dataclass(frozen=True)
class PoseBenchConfig:
    """What to teach."""

    randomization: tuple[str, ...] = ("plain", "real+looks")
    base: str = "oracle"
    """Base policy in whose episodes the network learns and is measured."""
    width: int = 128
    height: int = 128
    episodes: int = 1024
    seed: int = 0
    blind: bool = False
    """Blank pictures, the control."""
    flags: tuple[str, ...] = ()
    """More for `so101 teach-pose`, such as --flags=--updates=100."""
    out: Path = Path("pose.json")

    def __post_init__(self) -> None:
        if not self.randomization:
            raise ConfigError("randomization is empty; give at least one preset or file.")


def teach(config: PoseBenchConfig, randomization: str) -> dict[str, Any]:
    """teach.json of one network. Raises ConfigError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["teach-pose", "--base", config.base, "--randomization", randomization, "--out", folder]
        words += ["--width", str(config.width), "--height", str(config.height), "--episodes", str(config.episodes)]
        words += ["--seed", str(config.seed), *(["--blind"] if config.blind else []), *config.flags]
        done = subprocess.run([sys.executable, "-m", "train.cli", *words])
        path = Path(folder) / "teach.json"
        if done.returncode or not path.exists():
            raise ConfigError(f"so101 {' '.join(words)} failed ({done.returncode}); what it says stands above.")
        return json.loads(path.read_text())


def figures(config: PoseBenchConfig, taught: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The headline, from teach.json of each randomization."""
    device = prefix_of(next(iter(taught.values()))["device"])
    kind = f"{device}_pose{'_blind' if config.blind else ''}"
    found = []
    for name, one in taught.items():
        for key, unit in (("median_mm", "mm"), ("p95_mm", "mm"), ("median_mrad", "mrad"), ("p95_mrad", "mrad")):
            found.append(figure(f"{kind}_error_{word_of(name)}_{key}", one["all"][key], unit))
    found.append(figure(f"{kind}_teach_seconds", max(one["seconds"] for one in taught.values()), "s"))
    first = next(iter(taught.values()))["success"]["5"]
    shown = "blind" if config.blind else "camera"
    interval = {"low": first["low"], "high": first["high"]}
    return [*found, figure(f"{device}_{config.base}_{shown}_success_5mm", first["rate"], "fraction", **interval)]


def main(config: PoseBenchConfig) -> None:
    """Teach one network after the other; the record is written after each."""
    taught: dict[str, dict[str, Any]] = {}
    for name in config.randomization:
        taught[name] = teach(config, name)
        first = next(iter(taught.values()))
        write_record(
            config.out, figures(config, taught), seeds=[config.seed], num_envs=[first["config"]["num_envs"]],
            conditions={"picture": [config.width, config.height], "base": config.base, "blind": config.blind},
            device=first["device"], rows=[{"randomization": name, **one} for name, one in taught.items()],
        )  # fmt: skip


if __name__ == "__main__":
    try:
        main(tyro.cli(PoseBenchConfig))
    except SO101Error as error:
        sys.exit(f"error: {error}")
