"""`oracle`: the best scripted plan here. Two level fingertips grip the sheet and turn it; a filter knows when to look."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from mjx_so101.geometry import SheetGeometry, rotate, wrap_half_turn
from mjx_so101.kinematics import ArmKinematics
from mjx_so101.task import Observation
from policies.base import ScriptedPolicy
from policies.hand import (
    DRAG, HOVER, LIFT, NUM_PHASES, PRESS, REST, HandConfig, grab_candidates, limited, reach_penalty, target_towards,
)  # fmt: skip
from policies.ik import heading_of

GRIP_LEVEL = -0.07
"""Gripper angle (rad) at which both fingertips are at the same height: the sheet is then held in two points."""


@flax.struct.dataclass
class OracleCarry:
    """Where the plan stands and what it believes."""

    phase: jax.Array  # int32
    count: jax.Array  # int32, control steps since the phase began
    sheet: jax.Array  # [3] believed pose: seen poses averaged at rest, carried along with the fingers in a drag
    looks: jax.Array  # int32, control steps since the fingers left the sheet
    tip: jax.Array  # [3] middle of the fingertips one control step ago, m
    heading: jax.Array  # direction of the line through the fingertips one control step ago, rad
    goal: jax.Array  # [3] where that middle (x, y) and direction have to get in this drag


@dataclasses.dataclass(frozen=True)
class OracleConfig(HandConfig):
    """Settings of the oracle beside those of the hand."""

    settle: int = 4
    """Control steps after a lift in which seen poses may still be old ones."""
    min_looks: int = 8
    """Seen poses averaged before the next press."""
    descent: float = 0.005
    contact_slowdown: float = 0.0012
    """The fingers have landed once they descend by less than this in a control step."""
    press_depth: float = 0.0015
    max_press_steps: int = 25
    max_drag_steps: int = 70
    max_turn_step: float = 0.06
    home_overshoot: float = 0.001


class OraclePolicy(ScriptedPolicy):
    """Hover, descend until the fingers land, drag and turn the gripped sheet to the goal, lift, look again.

    While the sheet rests, the seen poses are averaged, so that noise fades; while it is gripped, it is believed to
    move with the fingers, so that old poses do no harm. Heights are never assumed: a miscalibrated arm lands too.
    """

    name = "oracle"
    num_features = NUM_PHASES + 5

    def __init__(self, kinematics: ArmKinematics, geometry: SheetGeometry, config: OracleConfig | None = None):
        super().__init__(kinematics, geometry)
        self.config = config or OracleConfig()
        moving = kinematics.jaw_point_in_gripper(GRIP_LEVEL, kinematics.moving_fingertip)
        self.middle = (kinematics.fixed_fingertip + moving) / 2

    def start(self) -> OracleCarry:
        """See `ScriptedPolicy.start`."""
        zero = jnp.int32(0)
        return OracleCarry(
            zero, zero, jnp.zeros(3), jnp.int32(self.config.settle), jnp.zeros(3), jnp.zeros(()), jnp.zeros(3)
        )

    def features_of(self, carry: OracleCarry) -> jax.Array:
        """One-hot phase, how long it has lasted, how long the sheet was seen at rest, believed error of the sheet."""
        left = 10.0 * self.geometry.translation_left(carry.sheet)
        turn = 2.0 * self.geometry.rotation_left(carry.sheet)
        lasted = jnp.minimum(carry.count / 30.0, 2.0)
        looked = jnp.minimum(carry.looks / 30.0, 2.0)
        return jnp.concatenate(
            [jax.nn.one_hot(carry.phase, NUM_PHASES), jnp.stack([lasted, looked, turn]), left]
        )

    def act(self, carry: OracleCarry, observation: Observation) -> tuple[OracleCarry, jax.Array]:
        """See `ScriptedPolicy.act`."""
        config, joints = self.config, observation.joint_pos
        tip, rotation, *_ = self.kinematics.gripper_point(joints[:5], self.middle)
        heading = heading_of(rotation)
        carry = self._believe(carry, observation.sheet, tip, heading)
        grab, grab_heading = self._grab(carry.sheet, heading)
        carry = self._next(carry, tip, heading, grab, grab_heading)

        over = tip[:2] + limited(grab - tip[:2], config.hover_speed) * (tip[2] > 0.6 * config.hover)
        rise = jnp.clip(config.hover - tip[2], -config.hover_speed, config.hover_speed)
        to_goal = limited(carry.goal[:2] - tip[:2], config.drag_speed)
        turn_left = wrap_half_turn(carry.goal[2] - heading)
        steps_left = jnp.maximum(jnp.ceil(jnp.linalg.norm(carry.goal[:2] - tip[:2]) / config.drag_speed), 1.0)
        turn = jnp.clip(turn_left / steps_left, -config.max_turn_step, config.max_turn_step)
        waypoints = jnp.stack([
            jnp.append(over, tip[2] + rise),
            jnp.append(tip[:2], tip[2] - config.descent),
            jnp.append(tip[:2] + to_goal, tip[2] - config.press_depth),
            jnp.append(tip[:2], tip[2] + 0.008),
            jnp.append(tip[:2], tip[2] + rise),
        ])  # fmt: skip
        to_grab = jnp.clip(wrap_half_turn(grab_heading - heading), -0.25, 0.25)
        headings = heading + jnp.stack([to_grab, 0.0, turn, 0.0, 0.0])
        target = target_towards(
            self.kinematics, joints, self.middle, waypoints[carry.phase], headings[carry.phase], GRIP_LEVEL, config
        )
        return carry.replace(tip=tip, heading=heading), target

    def _believe(self, carry: OracleCarry, seen: jax.Array, tip: jax.Array, heading: jax.Array) -> OracleCarry:
        """Average the seen poses while the sheet rests; move the believed pose with the fingers in a drag."""
        gripped = carry.phase == DRAG
        turn = wrap_half_turn(heading - carry.heading)
        moved_center = tip[:2] + rotate(turn, carry.sheet[:2] - carry.tip[:2])
        moved = jnp.append(moved_center, carry.sheet[2] + turn)
        free = (carry.phase == HOVER) | (carry.phase == REST)
        looks = jnp.where(free, carry.looks + 1, 0)
        weight = 1.0 / jnp.maximum(looks - self.config.settle, 1)
        mean = carry.sheet + weight * (seen - carry.sheet)
        averaged = jnp.where(looks > self.config.settle, mean, carry.sheet)
        return carry.replace(sheet=jnp.where(gripped, moved, averaged), looks=looks)

    def _grab(self, sheet: jax.Array, heading: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where to press (world [2], m) and the heading of the fingertips there, so that the drag stays in reach."""
        geometry = self.geometry
        local = grab_candidates(geometry, fraction=0.7)
        turn = geometry.rotation_left(sheet)
        begin = sheet[:2] + rotate(sheet[2], local)
        end = jnp.asarray(geometry.goal) + rotate(sheet[2] + turn, local)
        reach = reach_penalty(self.kinematics, begin, self.config) + reach_penalty(self.kinematics, end, self.config)
        grab = begin[jnp.argmin(10 * reach + 0.3 * jnp.linalg.norm(local, axis=-1))]
        offset = grab - jnp.asarray(self.kinematics.pan_axis)
        tangential = jnp.arctan2(offset[1], offset[0]) + jnp.pi / 2
        return grab, heading + wrap_half_turn(tangential - turn / 2 - heading)

    def _next(self, carry: OracleCarry, tip, heading, grab, grab_heading) -> OracleCarry:
        config, geometry = self.config, self.geometry
        home = geometry.overshoot(carry.sheet) < config.home_overshoot
        looked = carry.looks >= config.settle + config.min_looks
        above = (jnp.linalg.norm(tip[:2] - grab) < 0.004) & (tip[2] < config.hover + 0.01)
        aligned = jnp.abs(wrap_half_turn(grab_heading - heading)) < 0.05
        landed = (carry.tip[2] - tip[2] < config.contact_slowdown) & (carry.count >= 3)
        arrived = (jnp.linalg.norm(carry.goal[:2] - tip[:2]) < 0.0008) & (
            jnp.abs(wrap_half_turn(carry.goal[2] - heading)) < 0.01
        )
        high = tip[2] - carry.tip[2] < 0.001
        after = jnp.stack([
            jnp.where(home & looked, REST, jnp.where(above & aligned & looked, PRESS, HOVER)),
            jnp.where(landed | (carry.count > config.max_press_steps), DRAG, PRESS),
            jnp.where((arrived & (carry.count > 3)) | (carry.count > config.max_drag_steps), LIFT, DRAG),
            jnp.where((carry.count >= 3), HOVER, LIFT),
            jnp.where(home, REST, HOVER),
        ])[carry.phase]  # fmt: skip
        del high
        turn = geometry.rotation_left(carry.sheet)
        goal_tip = jnp.asarray(geometry.goal) + rotate(turn, tip[:2] - carry.sheet[:2])
        begins = (after == DRAG) & (carry.phase != DRAG)
        return carry.replace(
            phase=after.astype(jnp.int32),
            count=jnp.where(after == carry.phase, carry.count + 1, 0).astype(jnp.int32),
            goal=jnp.where(begins, jnp.append(goal_tip, heading + turn), carry.goal),
        )
