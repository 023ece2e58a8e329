"""The gate that a base policy passes before `so101 train` trains on it, and the alpha that it suggests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mjx_so101.errors import ConfigError
from policies.base import SCRIPTED
from train.config import TrainConfig
from train.gate import GateSettings, require_gate, run_gate
from train.policy import base_alone

AUTO = "auto"


def check_alpha(alpha: str | None, resume: str | None, gate_episodes: int) -> None:
    """Raise ConfigError unless --alpha is left out, a number, or 'auto' for a new run with a gate."""
    if alpha == AUTO and resume:
        raise ConfigError("--alpha auto with --resume: a run goes on with the alpha it began with; leave --alpha out.")
    if alpha == AUTO and gate_episodes == 0:
        raise ConfigError("--alpha auto asks the gate, which --gate-episodes 0 leaves out: give one of them a number.")
    try:
        float(alpha if alpha not in (None, AUTO) else 0)
    except ValueError:
        raise ConfigError(
            f"alpha is {alpha!r}; give a number of at least 0, or auto: what the gate suggests."
        ) from None


def pass_gate(config: TrainConfig, folder: Path, episodes: int, force: bool, alpha: str | None) -> TrainConfig:
    """Measure the base policy alone, if it runs a model or alpha is 'auto'; gives the configuration to train with.

    Raises ConfigError if training on it makes no sense and is not forced.
    """
    if config.base in SCRIPTED and alpha != AUTO:
        return config
    if episodes == 0:
        if not force:
            raise ConfigError("--gate-episodes 0 leaves out the gate; it needs --force.")
        print("No gate: --gate-episodes 0 --force")
        return config
    settings = GateSettings(
        episodes=episodes, most_episodes=max(episodes, GateSettings.most_episodes), strict=config.strict,
        video=config.video, video_episodes=config.video_episodes,
    )  # fmt: skip
    result = run_gate(base_alone(config), settings, folder / "gate")
    print(f"Gate: {result.line}")
    require_gate(result, force)
    if alpha != AUTO:
        return config
    suggested = result.verdict.suggested_alpha
    print(f"Training with --alpha {suggested}, which the gate suggests")
    return dataclasses.replace(config, residual=dataclasses.replace(config.residual, alpha=suggested))
