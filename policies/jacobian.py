"""`jacobian`: press with one fingertip and drag. The benchmark base policy; it leaves room to learn."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from mjx_so101.geometry import LEVER, cross, rotate
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

GRIP_SHUT = -0.1745
"""Gripper angle (rad) at which the fixed fingertip is 1.8 mm lower than the other and presses alone."""


@flax.struct.dataclass
class PhaseCarry:
    """Where a plan stands."""

    phase: jax.Array  # int32, one of policies.hand's phases
    count: jax.Array  # int32, control steps since the phase began


class JacobianPolicy(ScriptedPolicy):
    """Hover over a grab point, press, drag until the sheet is home, lift; a pure function of what is seen.

    A sheet held at one point r trails behind the finger and turns. For friction that is linear in speed, a drag by
    C turns it by about cross(r, C) / L^2, so the grab point is chosen where that turn is the one still needed.
    """

    name = "jacobian"
    num_features = NUM_PHASES + 1
    hand = HandConfig()
    press_depth = 0.001
    max_drag_steps = 60
    home_overshoot = 0.003

    def start(self) -> PhaseCarry:
        """See `ScriptedPolicy.start`."""
        return PhaseCarry(jnp.int32(HOVER), jnp.int32(0))

    def features_of(self, carry: PhaseCarry) -> jax.Array:
        """One-hot phase and how long it has lasted."""
        lasted = jnp.minimum(carry.count / 30.0, 2.0)
        return jnp.append(jax.nn.one_hot(carry.phase, NUM_PHASES), lasted)

    def grab_point(self, sheet: jax.Array) -> jax.Array:
        """[2] where on the sheet (world, m) to press."""
        local = grab_candidates(self.geometry)
        turn = self.geometry.rotation_left(sheet)
        left = self.geometry.translation_left(sheet)
        begin = sheet[:2] + rotate(sheet[2], local)
        end = jnp.asarray(self.geometry.goal) + rotate(sheet[2] + turn, local)
        wrong_turn = jnp.abs(turn - cross(rotate(sheet[2] + turn / 2, local), left) / LEVER**2)
        reach = reach_penalty(self.kinematics, begin, self.hand) + reach_penalty(self.kinematics, end, self.hand)
        cost = 10 * reach + 0.3 * jnp.linalg.norm(local, axis=-1) + 0.2 * wrong_turn
        return begin[jnp.argmin(cost)]

    def act(self, carry: PhaseCarry, observation: Observation) -> tuple[PhaseCarry, jax.Array]:
        """See `ScriptedPolicy.act`."""
        hand, sheet, joints = self.hand, observation.sheet, observation.joint_pos
        local = self.kinematics.fixed_fingertip
        tip, *_ = self.kinematics.gripper_point(joints[:5], local)
        surface = 0.001 + self.kinematics.fingertip_radius
        turn = self.geometry.rotation_left(sheet)
        relative = tip[:2] - sheet[:2]
        drag_end = jnp.asarray(self.geometry.goal) + rotate(turn, relative)
        grab = self.grab_point(sheet)

        carry = self._next(carry, sheet, tip, grab, drag_end, surface)
        over = tip[:2] + limited(grab - tip[:2], hand.hover_speed) * (tip[2] > 0.6 * hand.hover)
        rise = jnp.clip(hand.hover - tip[2], -hand.hover_speed, hand.hover_speed)
        down = jnp.maximum(tip[2] - 0.006, surface - self.press_depth)
        waypoints = jnp.stack([
            jnp.append(over, tip[2] + rise),
            jnp.append(tip[:2] + jnp.clip(grab - tip[:2], -0.003, 0.003), down),
            jnp.append(tip[:2] + limited(drag_end - tip[:2], hand.drag_speed), surface - self.press_depth),
            jnp.append(tip[:2], tip[2] + 0.008),
            jnp.append(tip[:2], 0.03 + surface),
        ])  # fmt: skip
        target = target_towards(self.kinematics, joints, local, waypoints[carry.phase], None, GRIP_SHUT, hand)
        return carry, target

    def _next(self, carry, sheet, tip, grab, drag_end, surface) -> PhaseCarry:
        geometry, hand = self.geometry, self.hand
        home = geometry.overshoot(sheet) < self.home_overshoot
        exact = (jnp.linalg.norm(geometry.translation_left(sheet)) < 0.0015) & (
            jnp.abs(geometry.rotation_left(sheet)) < 0.01
        )
        on_sheet = jnp.abs(rotate(-sheet[2], tip[:2] - sheet[:2])) <= jnp.asarray(geometry.sheet_half) + 0.002
        off = ~jnp.all(on_sheet)
        above_grab = (jnp.linalg.norm(tip[:2] - grab) < 0.004) & (tip[2] < hand.hover + 0.01)
        touching = tip[2] < surface + 0.0006
        arrived = (jnp.linalg.norm(drag_end - tip[:2]) < 0.001) & (carry.count > 3)
        drag_over = exact | off | arrived | (carry.count > self.max_drag_steps) | (tip[2] > surface + 0.004)
        high = tip[2] > 0.7 * hand.hover
        after = jnp.stack([
            jnp.where(home, REST, jnp.where(above_grab, PRESS, HOVER)),
            jnp.where(off, LIFT, jnp.where((touching & (carry.count >= 2)) | (carry.count > 25), DRAG, PRESS)),
            jnp.where(drag_over, LIFT, DRAG),
            jnp.where(high, jnp.where(home, REST, HOVER), LIFT),
            jnp.where(home, REST, HOVER),
        ])[carry.phase]  # fmt: skip
        count = jnp.where(after == carry.phase, carry.count + 1, 0)
        return PhaseCarry(after.astype(jnp.int32), count.astype(jnp.int32))
