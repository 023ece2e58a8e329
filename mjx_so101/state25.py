"""The published observation "state25": 25 numbers in SI units, built from what the robot can know."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mjx_so101.geometry import SheetGeometry, wrap
from mjx_so101.task import Observation

STATE25_LAYOUT: tuple[tuple[str, int, str], ...] = (
    ("joint_pos", 6, "measured joint positions in the order of scene.JOINTS, rad"),
    ("joint_vel", 6, "joint velocities, rad/s"),
    ("sheet_position", 3, "seen centre of the sheet in the world, m; z is that of the table, 0"),
    ("sheet_quaternion", 4, "seen orientation of the sheet, w x y z of unit length, w >= 0"),
    ("goal_vector", 3, "from the seen centre of the sheet to the centre of the tape rectangle, m"),
    ("end_effector", 3, "site gripperframe in the world for the measured joints, m"),
)
"""Name, size and meaning of the parts, in order."""


def state25(seen: Observation, geometry: SheetGeometry) -> jax.Array:
    """[25] float32 of one environment, laid out as `STATE25_LAYOUT`; vmap for more.

    Units are SI and nothing is scaled. Bias, delay and noise of the observation are in it. The sheet lies flat, so
    its quaternion is (cos(yaw/2), 0, 0, sin(yaw/2)) for yaw in [-pi, pi): z changes sign where yaw passes +-pi,
    because q and -q are the same orientation and the one with w >= 0 is taken.
    """
    half = wrap(seen.sheet[2]) / 2
    parts = {
        "joint_pos": seen.joint_pos,
        "joint_vel": seen.joint_vel,
        "sheet_position": jnp.append(seen.sheet[:2], 0.0),
        # cos of half a turn rounds to a hair below zero in float32
        "sheet_quaternion": jnp.stack([jnp.maximum(jnp.cos(half), 0.0), *jnp.zeros(2), jnp.sin(half)]),
        "goal_vector": jnp.append(geometry.translation_left(seen.sheet), 0.0),
        "end_effector": seen.end_effector,
    }
    return jnp.concatenate([parts[name] for name, _, _ in STATE25_LAYOUT])
