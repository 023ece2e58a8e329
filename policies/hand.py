"""What both scripted plans share: how the hand is held, how far a fingertip reaches, and how a target is made."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mjx_so101.geometry import SheetGeometry
from mjx_so101.kinematics import ArmKinematics
from policies.ik import reach_point, scaled_to

HOVER, PRESS, DRAG, LIFT, REST = range(5)
"""Phases of a plan: move over the grab point, go down, drag, go up, and stay clear when the sheet is home."""
NUM_PHASES = 5
MOTOR_KP = 998.22
"""Nominal position gain of the motors (N m/rad); a plan does not know the randomized one."""


@dataclasses.dataclass(frozen=True)
class HandConfig:
    """Heights, speeds and reach of the scripted plans. m, rad; speeds per control step."""

    hover: float = 0.020
    hover_speed: float = 0.012
    drag_speed: float = 0.006
    max_joint_step: float = 0.08
    min_reach: float = 0.11
    max_reach: float = 0.30
    tilt_from: float = 0.27
    """Beyond this reach the hand tilts outwards ..."""
    tilt_to: float = 0.35
    max_tilt: float = 0.8
    """... up to this angle at `tilt_to`, because wrist_flex saturates at far points."""


def grab_candidates(geometry: SheetGeometry, fraction: float = 0.8, per_side: int = 7) -> jax.Array:
    """[per_side**2, 2] points of the sheet, in its own frame, that a finger may press on."""
    line = jnp.linspace(-fraction, fraction, per_side)
    grid = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    return grid * jnp.asarray(geometry.sheet_half)


def reach_penalty(kinematics: ArmKinematics, points: jax.Array, config: HandConfig) -> jax.Array:
    """How far (m) points [..., 2] lie outside the ring that a fingertip reaches at table height."""
    radius = jnp.linalg.norm(points - jnp.asarray(kinematics.pan_axis), axis=-1)
    return jnp.maximum(radius - config.max_reach, 0.0) + jnp.maximum(config.min_reach - radius, 0.0)


def approach_direction(kinematics: ArmKinematics, point: jax.Array, config: HandConfig) -> jax.Array:
    """Unit vector [3] along which the hand points at `point` [2]: down, tilted outwards far from the base."""
    offset = point - jnp.asarray(kinematics.pan_axis)
    radius = jnp.linalg.norm(offset) + 1e-6
    share = jnp.clip((radius - config.tilt_from) / (config.tilt_to - config.tilt_from), 0.0, 1.0)
    tilt = share * config.max_tilt
    return jnp.append(offset / radius * jnp.sin(tilt), -jnp.cos(tilt))


def target_towards(
    kinematics: ArmKinematics,
    joints: jax.Array,
    local,
    position: jax.Array,
    heading: jax.Array | None,
    grip: float,
    config: HandConfig,
    force: float | jax.Array = 0.0,
) -> jax.Array:
    """Joint target [6]: measured joints plus a limited step towards the IK solution for `position` [3].

    A step from the measured joints, not the solution itself, keeps the motors from racing ahead of the arm. A
    downward `force` (N) is asked for by the joint offsets J^T f / kp that balance it without moving the tip sideways.
    """
    approach = approach_direction(kinematics, position[:2], config)
    solution = reach_point(kinematics, joints[:5], local, position, approach, heading)
    step = scaled_to(solution - joints[:5], config.max_joint_step)
    _, _, linear, _ = kinematics.gripper_point(joints[:5], local)
    return jnp.append(joints[:5] + step - force / MOTOR_KP * linear[2], grip)


def limited(vector: jax.Array, length: float | jax.Array) -> jax.Array:
    """The vector, shortened to `length` if it is longer."""
    norm = jnp.linalg.norm(vector) + 1e-9
    return vector / norm * jnp.minimum(norm, length)
