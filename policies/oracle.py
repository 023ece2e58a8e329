"""`oracle`: the best scripted plan here. Turn the sheet in place, then slide it home, looking again after each drag."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from mjx_so101.geometry import SheetGeometry, cross, rotate
from mjx_so101.kinematics import ArmKinematics
from mjx_so101.task import Observation
from policies.base import ScriptedPolicy
from policies.hand import (
    DRAG,
    HOVER,
    LIFT,
    NUM_PHASES,
    PRESS,
    REST,
    HandConfig,
    grab_candidates,
    limited,
    reach_penalty,
    target_towards,
)  # fmt: skip
from policies.jacobian import GRIP_SHUT


@flax.struct.dataclass
class OracleCarry:
    """Where the plan stands and what it believes."""

    phase: jax.Array  # int32
    count: jax.Array  # int32, control steps since the phase began
    looks: jax.Array  # int32, control steps since the finger left the sheet
    sheet: jax.Array  # [3] believed pose: seen poses averaged at rest, moved along with the finger in a drag
    tip: jax.Array  # [3] fingertip one control step ago, m
    turning: jax.Array  # bool, this grab turns the sheet (else it slides it)
    goal: jax.Array  # [2] where the fingertip stays in a press and where a drag takes it, m


@dataclasses.dataclass(frozen=True)
class OracleConfig(HandConfig):
    """Settings of the oracle beside those of the hand. m, rad, control steps."""

    settle: int = 4
    """After a lift, poses seen for this long may still be old ones."""
    min_looks: int = 6
    """Seen poses averaged before the next press."""
    lever: float = 0.095
    """A turn presses this far from the sheet's centre on its long axis."""
    turn_above: float = 0.015
    """A sheet that is wrong by more than this is turned first."""
    descent: tuple[float, float] = (0.001, 0.005)
    """Slowest and fastest descent; it slows down towards the height where the sheet should be."""
    drag_acceleration: float = 0.0008
    """A drag speeds up by this much per control step: the sheet's inertia must stay below its friction."""
    turn_speed: float = 0.0035
    press_force: float = 3.0
    """N, in a drag."""
    landed_below: float = 0.0005
    """The finger has landed once it descends by less than this in a control step."""
    max_press_steps: int = 30
    max_drag_steps: int = 60
    home_overshoot: float = 0.001


class OraclePolicy(ScriptedPolicy):
    """Press, drag, lift, look; turns and slides are separate drags.

    Dry friction makes both predictable. A finger near the centre slides the sheet without turning it. A finger on
    the long axis, further out than the ratio of friction torque to friction force (68 mm), turns it about its
    centre without sliding it, because that costs less work. Heights are never assumed: the finger descends until
    it is stopped, so a miscalibrated arm lands too. While the sheet rests the seen poses are averaged, so that noise
    fades; during a drag old poses are not looked at.
    """

    name = "oracle"
    num_features = NUM_PHASES + 6

    def __init__(self, kinematics: ArmKinematics, geometry: SheetGeometry, config: OracleConfig | None = None):
        super().__init__(kinematics, geometry)
        self.config = config or OracleConfig()
        self.surface = 0.001 + kinematics.fingertip_radius  # height of a fingertip that rests on the sheet, m

    def start(self) -> OracleCarry:
        """See `ScriptedPolicy.start`."""
        zero = jnp.int32(0)
        return OracleCarry(
            phase=zero, count=zero, looks=jnp.int32(self.config.settle), sheet=jnp.zeros(3), tip=jnp.zeros(3),
            turning=jnp.bool_(False), goal=jnp.zeros(2),
        )  # fmt: skip

    def features_of(self, carry: OracleCarry) -> jax.Array:
        """One-hot phase, how long it has lasted, how long the sheet rested, turn or slide, believed error."""
        lasted = jnp.minimum(carry.count / 30.0, 2.0)
        looked = jnp.minimum(carry.looks / 30.0, 2.0)
        error = 2.0 * self.geometry.rotation_left(carry.sheet)
        plan = jnp.stack([lasted, looked, carry.turning.astype(jnp.float32), error])
        left = 10.0 * self.geometry.translation_left(carry.sheet)
        return jnp.concatenate([jax.nn.one_hot(carry.phase, NUM_PHASES), plan, left])

    def act(self, carry: OracleCarry, observation: Observation) -> tuple[OracleCarry, jax.Array]:
        """See `ScriptedPolicy.act`."""
        config, joints = self.config, observation.joint_pos
        local = self.kinematics.fixed_fingertip
        tip, *_ = self.kinematics.gripper_point(joints[:5], local)
        carry = self._believe(carry, observation.sheet, tip)
        grab, turning = self._grab(carry.sheet)
        carry = self._next(carry, tip, grab, turning)

        height = tip[2] - self.surface
        descent = jnp.clip(0.4 * height, *config.descent)
        cruise = jnp.where(carry.turning, config.turn_speed, config.drag_speed)
        speed = jnp.minimum(cruise, config.drag_acceleration * (carry.count + 1.0))
        speed = jnp.minimum(speed, 0.4 * jnp.linalg.norm(carry.goal - tip[:2]) + 0.0004)
        over = tip[:2] + limited(grab - tip[:2], config.hover_speed) * (carry.looks > 1)
        waypoints = jnp.stack([
            jnp.append(over, tip[2] + self._rise(carry, tip)),
            jnp.append(tip[:2] + limited(carry.goal - tip[:2], config.drag_acceleration), tip[2] - descent),
            jnp.append(tip[:2] + limited(carry.goal - tip[:2], speed), tip[2]),
            jnp.append(tip[:2], tip[2] + 0.008),
            jnp.append(tip[:2], tip[2] + self._rise(carry, tip)),
        ])  # fmt: skip
        force = config.press_force * (carry.phase == DRAG)
        waypoint = waypoints[carry.phase]
        target = target_towards(self.kinematics, joints, local, waypoint, None, GRIP_SHUT, config, force)
        return carry.replace(tip=tip), target

    def _rise(self, carry: OracleCarry, tip: jax.Array) -> jax.Array:
        return jnp.clip(self.config.hover - tip[2], -self.config.hover_speed, self.config.hover_speed)

    def _believe(self, carry: OracleCarry, seen: jax.Array, tip: jax.Array) -> OracleCarry:
        """Average the seen poses while the sheet rests; move the believed pose with the finger while it is held."""
        config = self.config
        landed = (carry.phase == PRESS) & (carry.tip[2] - tip[2] < config.landed_below) & (carry.count >= 1)
        held = (carry.phase == DRAG) | landed
        moved = tip[:2] - carry.tip[:2]
        lever = tip[:2] - carry.sheet[:2]
        turned = cross(lever, moved) / jnp.maximum(jnp.sum(lever**2), 1e-4)
        turn_only = carry.sheet + jnp.append(jnp.zeros(2), turned)
        slide_only = carry.sheet + jnp.append(moved, 0.0)
        dragged = jnp.where(carry.turning, turn_only, slide_only)

        free = (carry.phase == HOVER) | (carry.phase == REST)
        looks = jnp.where(free, carry.looks + 1, 0)
        weight = 1.0 / jnp.maximum(looks - config.settle, 1)
        seen = seen.at[2].set(carry.sheet[2] + self._yaw_difference(seen[2], carry.sheet[2]))
        averaged = jnp.where(looks > config.settle, carry.sheet + weight * (seen - carry.sheet), carry.sheet)
        return carry.replace(sheet=jnp.where(held, dragged, averaged), looks=looks)

    @staticmethod
    def _yaw_difference(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.mod(a - b + jnp.pi, 2 * jnp.pi) - jnp.pi

    def _grab(self, sheet: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where to press next (world [2], m), and whether to turn the sheet there or to slide it."""
        geometry, config = self.geometry, self.config
        turn = geometry.rotation_left(sheet)

        ends = jnp.array([[0.0, 1.0], [0.0, -1.0]]) * config.lever
        begin = sheet[:2] + rotate(sheet[2], ends)
        end = sheet[:2] + rotate(sheet[2] + turn, ends)
        too_far = reach_penalty(self.kinematics, begin, config) + reach_penalty(self.kinematics, end, config)
        turn_grab = begin[jnp.argmin(too_far)]
        turning = (jnp.abs(turn) > config.turn_above) & (jnp.min(too_far) < 0.02)

        local = grab_candidates(geometry, fraction=0.5)
        begin = sheet[:2] + rotate(sheet[2], local)
        reach = reach_penalty(self.kinematics, begin, config)
        reach += reach_penalty(self.kinematics, begin + geometry.translation_left(sheet), config)
        slide_grab = begin[jnp.argmin(10 * reach + 0.3 * jnp.linalg.norm(local, axis=-1))]
        return jnp.where(turning, turn_grab, slide_grab), turning

    def _next(self, carry: OracleCarry, tip: jax.Array, grab: jax.Array, turning: jax.Array) -> OracleCarry:
        config, geometry = self.config, self.geometry
        home = geometry.overshoot(carry.sheet) < config.home_overshoot
        looked = carry.looks >= config.settle + config.min_looks
        above = (jnp.linalg.norm(tip[:2] - grab) < 0.004) & (tip[2] < config.hover + 0.01)
        stopped = (carry.tip[2] - tip[2] < config.landed_below) & (carry.count >= 2)
        arrived = jnp.linalg.norm(carry.goal - tip[:2]) < 0.0008
        after = jnp.stack([
            jnp.where(home & looked, REST, jnp.where(above & looked, PRESS, HOVER)),
            jnp.where(stopped | (carry.count > config.max_press_steps), DRAG, PRESS),
            jnp.where((arrived & (carry.count > 1)) | (carry.count > config.max_drag_steps), LIFT, DRAG),
            jnp.where(carry.count >= 2, HOVER, LIFT),
            jnp.where(home, REST, HOVER),
        ])[carry.phase]  # fmt: skip
        presses = (carry.phase == HOVER) & (after == PRESS)
        turning = jnp.where(presses, turning, carry.turning)
        turn = geometry.rotation_left(carry.sheet)
        turned_tip = carry.sheet[:2] + rotate(turn, tip[:2] - carry.sheet[:2])
        slid_tip = tip[:2] + geometry.translation_left(carry.sheet)
        begins = (carry.phase == PRESS) & (after == DRAG)
        held_at = jnp.where(presses, tip[:2], carry.goal)
        return carry.replace(
            phase=after.astype(jnp.int32),
            count=jnp.where(after == carry.phase, carry.count + 1, 0).astype(jnp.int32),
            turning=turning,
            goal=jnp.where(begins, jnp.where(turning, turned_tip, slid_tip), held_at),
        )
