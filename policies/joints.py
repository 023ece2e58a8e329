"""Joint conventions: where the zero of a joint lies and which way it turns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.scene import JOINTS

NUM_JOINTS = len(JOINTS)


@dataclass(frozen=True)
class JointMap:
    """How the simulation's joint angles become those of the training data: data = sign * simulation + offset.

    Another calibration of the same arm (so-100, phosphobot) puts zero elsewhere or turns a joint the other way.
    """

    sign: tuple[float, ...] = (1.0,) * NUM_JOINTS
    offset: tuple[float, ...] = (0.0,) * NUM_JOINTS

    def __post_init__(self) -> None:
        """Refuse signs other than 1 and -1, and offsets that are not finite."""
        if len(self.sign) != NUM_JOINTS or any(s not in (1, -1) for s in self.sign):
            raise ConfigError(f"joint_map.sign is {self.sign!r}; give {NUM_JOINTS} values of 1 or -1, gripper last.")
        if len(self.offset) != NUM_JOINTS or not all(map(math.isfinite, self.offset)):
            raise ConfigError(f"joint_map.offset is {self.offset!r}; give {NUM_JOINTS} angles in rad, gripper last.")

    def to_data(self, joints: np.ndarray) -> np.ndarray:
        """Angles [..., 6] of the simulation as those of the training data, float32 (rad)."""
        return (np.asarray(self.sign) * joints + np.asarray(self.offset)).astype(np.float32)

    def to_simulation(self, joints: np.ndarray) -> np.ndarray:
        """Inverse of `to_data`."""
        return (np.asarray(self.sign) * (joints - np.asarray(self.offset))).astype(np.float32)
