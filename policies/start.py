"""Where an episode starts for a model: its start pose beside the joint angles that it was trained on.

A model answers to states that it never saw with anything. The task's own home was chosen for the scripted plans; a
checkpoint's data may begin elsewhere, and then `--home checkpoint` starts episodes in the middle of its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.kinematics import ArmKinematics
from mjx_so101.scene import JOINTS, SceneConfig, load_model

if TYPE_CHECKING:
    from policies.groot.processor import Range
    from policies.joints import JointMap

MARGIN = 0.10
"""Share of a joint's range in the training data by which it may start beyond the range."""
STILL = 1e-3
"""A joint whose training data span less than this (rad) never moved ..."""
STILL_MARGIN = 0.1
"""... and may start this far (rad) from there."""
CLEARANCE = 0.010
"""Least height (m) of the fingertips over the table where a checkpoint gives the start pose: starts vary around it."""


def outside_training(home: Sequence[float], state_range: tuple[np.ndarray, np.ndarray] | None) -> list[str]:
    """The joints of start pose `home` [6] (rad) that lie outside the training data's states, with numbers.

    state_range: lowest and highest angle [6] in the data (rad), None if it is not known.
    """
    if state_range is None:
        return []
    low, high = (np.asarray(end, float) for end in state_range)
    span = high - low
    margin = np.where(span > STILL, MARGIN * span, STILL_MARGIN)
    beyond = np.maximum(low - np.asarray(home), np.asarray(home) - high)
    return [
        f"{JOINTS[i]} starts at {home[i]:.3f} rad, its states were {low[i]:.3f} to {high[i]:.3f}"
        + (f" (normalised {2 * (home[i] - low[i]) / span[i] - 1:+.1f}, not within -1 and 1)" if span[i] > STILL else "")
        for i in np.flatnonzero(beyond > margin + 1e-6)
    ]


def require_start(home: Sequence[float], state_range: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Raise ConfigError if `outside_training` finds a joint."""
    strange = outside_training(home, state_range)
    if strange:
        raise ConfigError(
            f"The start pose is unlike what the checkpoint was trained on: {'; '.join(strange)}. Give --home "
            "checkpoint (the middle of its states) or --home with six angles in rad, gripper last; --joint-sign and "
            "--joint-offset if its data has another calibration; or --any-start to run it all the same."
        )


def middle_of(states: Range, joint_map: JointMap, kinematics: ArmKinematics) -> tuple[float, ...]:
    """The start pose [6] (rad, the simulation's convention) in the middle of a checkpoint's states.

    The mean of each joint where the statistics tell it, else, or where that would put a finger too near to the table,
    the middle of its range; clipped to the joint limits.

    Raises:
        ConfigError: if neither is clear of the table, or the limits of a joint lie outside its states.
    """
    low, high = np.asarray(states.low), np.asarray(states.high)
    poses: dict[str, np.ndarray] = {}
    if states.mean is not None and np.all((low <= states.mean) & (states.mean <= high)):
        poses["mean"] = np.asarray(states.mean)
    poses["middle of the range"] = (low + high) / 2
    found = {}
    for name, pose in poses.items():
        pose = np.clip(joint_map.to_simulation(pose), kinematics.lower, kinematics.upper)
        clear = kinematics.clearance(pose)
        if clear >= CLEARANCE:
            home = tuple(round(float(angle), 4) for angle in pose)
            _require_reachable(home, in_simulation(states, joint_map))
            return home
        found[name] = (
            f"the {name} of its states, {np.round(pose, 3).tolist()}, puts a fingertip at {1000 * clear:.0f} mm"
        )
    raise ConfigError(
        f"--home checkpoint finds no start pose that is {1000 * CLEARANCE:.0f} mm clear of the table: "
        f"{'; '.join(found.values())}. Give --home with six angles in rad, gripper last, or --joint-sign and "
        "--joint-offset if the data has another calibration."
    )


def _require_reachable(home: Sequence[float], states: tuple[np.ndarray, np.ndarray]) -> None:
    strange = outside_training(home, states)
    if strange:
        raise ConfigError(
            f"--home checkpoint: within the joint limits of this arm {'; '.join(strange)}. Give --joint-sign and "
            "--joint-offset if the data has another calibration."
        )


def in_simulation(states: Range, joint_map: JointMap) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest angle [6] of a range of the data, in the simulation's convention (rad)."""
    ends = np.sort([joint_map.to_simulation(np.asarray(end)) for end in (states.low, states.high)], axis=0)
    return ends[0], ends[1]


def home_of_checkpoint(
    checkpoint: str, revision: str = "", embodiment: str = "new_embodiment", joint_map: JointMap | None = None
) -> tuple[float, ...]:
    """`middle_of` the states in a checkpoint's metadata.json; no weights are loaded.

    Raises ConfigError or CheckpointError for what is no checkpoint, or as `middle_of`.
    """
    from policies.groot import require_torch
    from policies.joints import JointMap as Joints

    require_torch()
    from policies.groot.loader import METADATA, read_json, resolve_folder
    from policies.groot.processor import Metadata

    document: Mapping = read_json(resolve_folder(checkpoint, revision) / METADATA)
    states = Metadata.from_json(document, embodiment).state
    kinematics = ArmKinematics.from_model(load_model(SceneConfig(visual=False)))
    return middle_of(states, joint_map or Joints(), kinematics)
