"""Flags of `so101 eval` and `so101 play`, and what they replace.

Apart from train.cli, which must import nothing that imports JAX.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from mjx_so101.errors import ConfigError
from policies.model import ModelOptions


@dataclasses.dataclass(frozen=True)
class EvalFlags:
    """Flags of `so101 eval`."""

    run: Path | None = None
    """Run folder whose best checkpoint is evaluated."""
    base: str | None = None
    """Base policy to evaluate alone, instead of a run."""
    episodes: int = 512
    seed: int = 0
    tolerance_mm: tuple[float, ...] = (5.0, 10.0, 20.0)
    """Success tolerances in mm."""
    randomization: str | None = None
    """Preset or file; default is the run's own, or plain."""
    physics: str | None = None
    """Backend; default auto: a run may be evaluated on another machine than it was trained on."""
    sheet_friction: str | None = None
    """'dry' or 'viscous'; default is the run's own, or dry."""
    home: tuple[float, ...] | str | None = None
    """Start pose: 'task', 'checkpoint' or six angles in rad, gripper last; default is the run's own, or task."""
    action: str = "mean"
    """'mean' or 'sample'."""
    eval_batch: int | None = None
    """Episodes simulated at once; default the run's own, with which the figures of its report repeat."""
    renderer: str | None = None
    """Draws what residual or pose network see; default is the run's own."""
    pose_network: str | None = None
    """With --base: folder of `so101 teach-pose`, through which it sees the sheet instead of being told."""
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = dataclasses.field(default_factory=ModelOptions)
    json: str | None = None
    """File for the JSON, or - for standard output."""
    video: Path | None = None
    """Folder for episode.mp4, grid.mp4 and failures.mp4, all of episodes that were counted."""
    video_episodes: int = 9
    """Episodes in each grid."""

    def __post_init__(self) -> None:
        require_tiles(self.video_episodes)


@dataclasses.dataclass(frozen=True)
class PlayFlags:
    """Flags of `so101 play`."""

    run: Path | None = None
    """Run folder whose best checkpoint plays."""
    base: str | None = None
    """Base policy to watch alone; default oracle if no run is given."""
    randomization: str | None = None
    physics: str | None = None
    sheet_friction: str | None = None
    home: tuple[float, ...] | str | None = None
    """Start pose: 'task', 'checkpoint' or six angles in rad, gripper last; default is the run's own, or task."""
    renderer: str | None = None
    """Draws what residual or pose network see; default is the run's own."""
    pose_network: str | None = None
    """With --base: folder of `so101 teach-pose`, through which it sees the sheet instead of being told."""
    seed: int = 0
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = dataclasses.field(default_factory=ModelOptions)
    out: Path = Path("play")
    """Folder for the videos where there is no display."""
    video_episodes: int = 9
    """Episodes in the grid."""

    def __post_init__(self) -> None:
        require_tiles(self.video_episodes)


def require_tiles(video_episodes: int) -> None:
    """Raise ConfigError unless a grid of that many episodes can be drawn."""
    if not 1 <= video_episodes <= 100:
        raise ConfigError(f"video_episodes is {video_episodes}; give 1 to 100 (train and gate: --no-video for none).")


def overrides(flags: Any) -> dict[str, Any]:
    """Fields of a run's configuration that flags of `eval`, `play` or `gate` replace."""
    names = (
        "randomization", "physics", "sheet_friction", "home", "model", "eval_batch", "renderer", "pose_network",
    )  # fmt: skip
    return {name: getattr(flags, name) for name in names if getattr(flags, name, None) is not None}
