"""What drives the arm in bench.fps: random drags of each environment's own sheet, or the jacobian base policy."""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from mjx_so101 import PaperReturnEnv
from mjx_so101.geometry import rotate
from mjx_so101.task import Observation, State
from policies.base import make_base
from policies.hand import HandConfig, approach_direction, limited
from policies.ik import reach_point
from policies.jacobian import GRIP_SHUT

MODES = ("random", "jacobian")


class Targets(Protocol):
    """Gives every environment a joint target in every control step."""

    def init(self, key: jax.Array) -> Any:
        """Carry of all environments."""
        ...

    def act(self, carry: Any, state: State, seen: Observation) -> tuple[Any, jax.Array]:
        """New carry and targets [env, 6] (rad, measured angles)."""
        ...


class PoseTable:
    """Joints that bring the fixed fingertip to a point at one of two heights over the table, by interpolation.

    The pan joint turns the whole arm about a vertical axis, so poses along one radius are poses everywhere: inverse
    kinematics is solved once for `count` radii, and looking up costs a step next to nothing.
    """

    def __init__(self, env: PaperReturnEnv, heights: tuple[float, ...], low: float, high: float, count: int = 128):
        """heights: of the fingertip's centre (m); low, high: radii about the pan axis (m), clipped beyond."""
        kinematics, hand = env.task.kinematics, HandConfig()
        self._axis = jnp.asarray(kinematics.pan_axis, jnp.float32)
        self._low, self._high, self._count = low, high, count
        start = jnp.array([0.0, 0.0, 0.35, 1.25, 1.6])
        along = jnp.array([jnp.cos(env.scene.base_yaw), jnp.sin(env.scene.base_yaw)])

        def solve(radius, height):
            point = self._axis + radius * along
            approach = approach_direction(kinematics, point, hand)
            position = jnp.append(point, height)

            def closer(_, joints):
                return reach_point(kinematics, joints, kinematics.fixed_fingertip, position, approach, None)

            return jnp.append(jax.lax.fori_loop(0, 20, closer, start), GRIP_SHUT)

        radii = jnp.linspace(low, high, count)
        rows = jax.jit(jax.vmap(lambda height: jax.vmap(lambda radius: solve(radius, height))(radii)))
        self._poses = rows(jnp.asarray(heights))  # [height, radius, 6]
        self._azimuth = env.scene.base_yaw

    def radius(self, points: jax.Array) -> jax.Array:
        """Distance of points [..., 2] from the pan axis, m."""
        return jnp.linalg.norm(points - self._axis, axis=-1)

    def __call__(self, point: jax.Array, height: jax.Array) -> jax.Array:
        """[6] joints for one point [2]; height: index of `heights`."""
        offset = point - self._axis
        place = (self.radius(point) - self._low) / (self._high - self._low) * (self._count - 1)
        place = jnp.clip(place, 0.0, self._count - 1.001)
        before = place.astype(jnp.int32)
        table = self._poses[height]
        pose = table[before] + (place - before) * (table[before + 1] - table[before])
        # a positive pan turns the arm clockwise as seen from above
        turn = self._azimuth - jnp.arctan2(offset[1], offset[0])
        return pose.at[0].add((turn + jnp.pi) % (2 * jnp.pi) - jnp.pi)


@flax.struct.dataclass
class Drag:
    """One environment's drag."""

    local: jax.Array  # [2] where the finger presses, in the sheet's frame (m)
    finger: jax.Array  # [2] where the finger is told to be, world (m)
    goal: jax.Array  # [2] where it is going, world (m)
    speed: jax.Array  # m per control step
    count: jax.Array  # int32, control steps since the finger last rose
    until: jax.Array  # int32, when it rises again, to take hold elsewhere
    key: jax.Array


class RandomDrags:
    """Presses a random point of each environment's own sheet and drags it to random places, by the true state."""

    hover, depth = 0.015, 0.001
    inner, outer, sector = 0.14, 0.28, 0.6
    """Where sheets are dragged: radii about the pan axis (m), azimuth about the goal's (rad)."""
    speeds, most_lead = (0.002, 0.006), 0.02
    """m per control step, and how far the finger's target may run ahead of the point that it holds (m)."""
    approach, descent, lasts = 12, 3, (60, 180)
    """Control steps above the sheet, of going down, and from one rise of the finger to the next."""
    max_joint_step = 0.1

    def __init__(self, env: PaperReturnEnv):
        kinematics, scene = env.task.kinematics, env.scene
        touching = scene.sheet_top + kinematics.fingertip_radius
        self.table = PoseTable(env, (touching + self.hover, touching - self.depth), 0.08, 0.33)
        self._axis = jnp.asarray(kinematics.pan_axis, jnp.float32)
        to_goal = jnp.asarray(env.task.geometry.goal) - self._axis
        self._goal_azimuth = jnp.arctan2(to_goal[1], to_goal[0])
        self._half = 0.7 * jnp.asarray(env.task.geometry.sheet_half)
        self._num_envs = env.num_envs

    def init(self, key: jax.Array) -> Drag:
        """See `Targets.init`."""
        n = self._num_envs
        none, point = jnp.zeros(n, jnp.int32), jnp.zeros((n, 2))  # until is 0: each takes hold in the first step
        return Drag(point, point, point, jnp.zeros(n), none, none, jax.random.split(key, n))

    def act(self, carry: Drag, state: State, seen: Observation) -> tuple[Drag, jax.Array]:
        """See `Targets.act`."""
        return jax.vmap(self._one)(carry, state, seen.new_episode)

    def _one(self, drag: Drag, state: State, new: jax.Array) -> tuple[Drag, jax.Array]:
        sheet = state.physics.qpos[6:]
        drag = self._renewed(drag, sheet, new | (drag.count >= drag.until))
        held = sheet[:2] + rotate(sheet[2], drag.local)
        down = drag.count >= self.approach
        dragging = drag.count >= self.approach + self.descent
        moved = drag.finger + limited(drag.goal - drag.finger, drag.speed)
        finger = jnp.where(dragging, held + limited(moved - held, self.most_lead), held)
        pose = self.table(finger, down.astype(jnp.int32)) + state.params.joint_bias
        step = jnp.clip(pose - state.target, -self.max_joint_step, self.max_joint_step)
        return drag.replace(finger=finger, count=drag.count + 1), state.target + step

    def _renewed(self, drag: Drag, sheet: jax.Array, rises: jax.Array) -> Drag:
        """With another hold if the finger rises, and another way to go if it does or has arrived."""
        key, key_hold, key_goal, key_speed, key_until = jax.random.split(drag.key, 5)
        turns = rises | (jnp.linalg.norm(drag.goal - drag.finger) < 0.002)
        speed = jax.random.uniform(key_speed, minval=self.speeds[0], maxval=self.speeds[1])
        return Drag(
            local=jnp.where(rises, self._point_of(sheet, key_hold), drag.local),
            finger=drag.finger,
            goal=jnp.where(turns, self._place(key_goal), drag.goal),
            speed=jnp.where(turns, speed, drag.speed),
            count=jnp.where(rises, 0, drag.count),
            until=jnp.where(rises, jax.random.randint(key_until, (), *self.lasts), drag.until),
            key=key,
        )

    def _point_of(self, sheet: jax.Array, key: jax.Array, tries: int = 8) -> jax.Array:
        """[2] a random point of the sheet, in its frame, that is well in reach."""
        local = jax.random.uniform(key, (tries, 2), minval=-1.0, maxval=1.0) * self._half
        radius = self.table.radius(sheet[:2] + rotate(sheet[2], local))
        outside = jnp.maximum(radius - self.outer, 0.0) + jnp.maximum(self.inner - radius, 0.0)
        return local[jnp.argmin(outside)]

    def _place(self, key: jax.Array) -> jax.Array:
        """[2] a random place in reach, world."""
        key_radius, key_azimuth = jax.random.split(key)
        radius = jax.random.uniform(key_radius, minval=self.inner, maxval=self.outer)
        azimuth = self._goal_azimuth + jax.random.uniform(key_azimuth, minval=-self.sector, maxval=self.sector)
        return self._axis + radius * jnp.stack([jnp.cos(azimuth), jnp.sin(azimuth)])


class BaseTargets:
    """A scripted base policy drives; what it computes is part of the step."""

    def __init__(self, env: PaperReturnEnv, name: str):
        self._base, self._num_envs = make_base(name, env.task).for_env(env), env.num_envs

    def init(self, key: jax.Array) -> Any:
        """See `Targets.init`."""
        del key
        return self._base.init(self._num_envs)

    def act(self, carry: Any, state: State, seen: Observation) -> tuple[Any, jax.Array]:
        """See `Targets.act`."""
        carry, chunk = self._base.chunk(carry, seen, state.key[0], seen.new_episode)
        return carry, chunk[:, 0]


def make_targets(mode: str, env: PaperReturnEnv) -> Targets:
    """What drives the arm in a mode of `MODES`."""
    return RandomDrags(env) if mode == "random" else BaseTargets(env, mode)
