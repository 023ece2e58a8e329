"""The paper-return task for one environment: reset, command, sense, reward, success. All pure; vmap for more.

One control step is `command` -> physics -> `advance`. Everything here sees only `qpos` and `qvel`, so the same
code runs over every physics backend.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mjx_so101.errors import ConfigError
from mjx_so101.geometry import SheetGeometry
from mjx_so101.kinematics import ArmKinematics
from mjx_so101.params import MAX_LATENCY, EnvParams, Randomization
from mjx_so101.scene import JOINTS

_CANDIDATES = 16  # start poses tried per reset; each preset accepts more than half


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Rules of the task. SI units."""

    tolerance: float = 0.005
    """The inner rectangle may be left by this much (m): the success that is rewarded."""
    report_tolerances: tuple[float, ...] = (0.005, 0.010, 0.020)
    """Tolerances (m) counted in every episode, whatever the training tolerance is."""
    hold_steps: int = 10
    """Control steps for which the sheet must rest inside."""
    max_sheet_speed: float = 0.005
    """A resting sheet is slower than this (m/s)."""
    max_sheet_yaw_speed: float = 0.05
    """... and than this (rad/s)."""
    episode_steps: int = 400
    home: tuple[float, ...] = (0.0, -1.1, 0.8, 1.45, 1.6, -0.07)
    """Start pose of the six joints (rad): fingertips down, clear of the table."""
    max_start_reach: float = 0.34
    """Start centres lie at most this far from the pan axis (m)."""
    min_start_clearance: float = 0.05
    """The sheet's edge starts at least this far from the pan axis (m)."""
    max_sheet_offset: float = 0.5
    """A sheet further than this from the goal along x or y (m) is lost: the episode is invalid."""
    progress_weight: float = 1.5
    time_cost: float = 0.003
    """Cost of a control step until the success, and of each later one in which the sheet is outside again."""
    success_bonus: float = 2.4
    """Paid once in an episode."""
    leave_cost: float = 0.02
    """Cost of each control step in which a sheet that was home is outside the training tolerance."""
    stay_share: float = 1.0
    """Share of the episodes that go on after success; the others end there, which only training notices."""
    invalid_cost: float = 1.2

    def __post_init__(self) -> None:
        for name in ("tolerance", "hold_steps", "episode_steps", "max_sheet_speed", "max_sheet_yaw_speed"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}; it must be finite and greater than 0.")
        if not self.report_tolerances or not all(math.isfinite(t) and t > 0 for t in self.report_tolerances):
            raise ConfigError(f"report_tolerances is {self.report_tolerances}; give lengths (m) greater than 0.")
        if not 0 <= self.stay_share <= 1:
            raise ConfigError(f"stay_share is {self.stay_share}; give a share of the episodes in [0, 1].")
        for name in ("progress_weight", "time_cost", "success_bonus", "leave_cost", "invalid_cost"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite.")
        if len(self.home) != 6 or not all(map(math.isfinite, self.home)):
            raise ConfigError(f"home is {self.home}; give one finite angle (rad) for each of the 6 joints.")

    @property
    def tolerances(self) -> tuple[float, ...]:
        """Training tolerance first, then those reported."""
        return (self.tolerance, *self.report_tolerances)


@flax.struct.dataclass
class PhysicsState:
    """What a physics backend carries between control steps; the same on all of them."""

    qpos: jax.Array  # [9] six joints (rad), sheet x, y (m), yaw (rad)
    qvel: jax.Array  # [9]
    warmstart: jax.Array  # [9] qacc_warmstart of MuJoCo's constraint solver
    overflow: jax.Array  # int32, not 0 if a contact or constraint buffer overflowed in the last control step


@flax.struct.dataclass
class State:
    """Everything about one environment (leading axis [env] in a batch)."""

    physics: PhysicsState
    params: EnvParams
    target: jax.Array  # [6] last commanded joint target, rad, in measured angles
    previous_target: jax.Array  # [6] the one before it
    sheet_history: jax.Array  # [MAX_LATENCY + 1, 3] true poses, newest first
    seen_sheet: jax.Array  # [3] delayed, noisy pose
    seen_sheet_before: jax.Array  # [3] the one of the control step before
    step: jax.Array  # int32 control steps done in this episode
    held: jax.Array  # int32 [4] control steps at rest inside each of TaskConfig.tolerances
    succeeded: jax.Array  # bool [4] held long enough at any time in this episode
    success_step: jax.Array  # int32 [4] when that was; -1 if not yet
    stays: jax.Array  # bool, this episode goes on after success
    bad_target: jax.Array  # bool, the last commanded target was NaN or inf and the one before was held
    nonfinite: jax.Array  # bool, the last control step had such a target, or ended in NaN or inf and was taken back
    invalid: jax.Array  # bool, the episode is invalid since some control step: it can no longer succeed
    key: jax.Array  # uint32 [2]


@flax.struct.dataclass
class Observation:
    """What base policy and actor may see: measured, biased, delayed and noisy, as on the real robot."""

    joint_pos: jax.Array  # [6] rad
    joint_vel: jax.Array  # [6] rad/s
    target: jax.Array  # [6] last commanded target, rad
    sheet: jax.Array  # [3] x, y (m), yaw (rad)
    sheet_vel: jax.Array  # [3] difference of the last two seen poses over one control step
    end_effector: jax.Array  # [3] site gripperframe, kinematics of the measured joints, m
    new_episode: jax.Array  # bool, True at the first observation of an episode


class Verdict(NamedTuple):
    """What one control step meant for the task."""

    terms: dict[str, jax.Array]  # named reward terms; the reward is their sum
    terminated: jax.Array  # bool: invalid, or success in an episode that does not go on after it
    truncated: jax.Array  # bool: out of time
    success: jax.Array  # bool: the hold at the training tolerance was completed in this very step
    invalid: jax.Array  # bool: non-finite target or state, or the sheet is lost


@dataclasses.dataclass(frozen=True, eq=False)
class PaperReturn:
    """The task's static parts and its pure functions."""

    config: TaskConfig
    randomization: Randomization
    geometry: SheetGeometry
    kinematics: ArmKinematics
    control_hz: float
    substeps: int

    # -- reset ---------------------------------------------------------------------------------------------------
    def reset(self, key: jax.Array) -> State:
        """A new episode: new randomization and start, drawn from `key` (uint32 [2])."""
        key, key_params, key_start, key_sense, key_stay = jax.random.split(key, 5)
        params = self.draw_start(self.randomization.sample(key_params), key_start)
        home = jnp.asarray(self.config.home) + jnp.append(params.start_joint_offset, 0.0)
        sheet = self.start_pose(params)
        target = home + params.joint_bias
        counts = jnp.zeros(len(self.config.tolerances), jnp.int32)
        seen = sheet + self._sheet_noise(params, key_sense)
        return State(
            physics=PhysicsState(
                qpos=jnp.concatenate([home, sheet]), qvel=jnp.zeros(9), warmstart=jnp.zeros(9), overflow=jnp.int32(0)
            ),
            params=params,
            target=target,
            previous_target=target,
            sheet_history=jnp.tile(sheet, (MAX_LATENCY + 1, 1)),
            seen_sheet=seen,
            seen_sheet_before=seen,
            step=jnp.int32(0),
            held=counts,
            succeeded=counts > 0,
            success_step=counts - 1,
            stays=jax.random.uniform(key_stay) < self.config.stay_share,
            bad_target=jnp.bool_(False),
            nonfinite=jnp.bool_(False),
            invalid=jnp.bool_(False),
            key=key,
        )

    def start_pose(self, params: EnvParams) -> jax.Array:
        """[3] sheet pose at which an episode with these params starts."""
        direction = jnp.stack([jnp.cos(params.start_direction), jnp.sin(params.start_direction)])
        center = jnp.asarray(self.geometry.goal) + params.start_distance * direction
        return jnp.append(center, jnp.pi / 2 + params.start_yaw)

    def start_valid(self, pose: jax.Array) -> jax.Array:
        """Whether the arm can reach a sheet that starts at `pose` [3] and its base does not stand on it."""
        to_axis = jnp.asarray(self.kinematics.pan_axis) - pose[:2]
        c, s = jnp.cos(pose[2]), jnp.sin(pose[2])
        local = jnp.stack([c * to_axis[0] + s * to_axis[1], c * to_axis[1] - s * to_axis[0]])
        gap = jnp.maximum(jnp.abs(local) - jnp.asarray(self.geometry.sheet_half), 0.0)
        reach = jnp.linalg.norm(to_axis) <= self.config.max_start_reach
        return reach & (jnp.linalg.norm(gap) >= self.config.min_start_clearance)

    def draw_start(self, params: EnvParams, key: jax.Array) -> EnvParams:
        """Replace the start of `params` by the first valid one of a few candidates drawn from its ranges.

        Should none be valid, the sheet starts at the smallest distance, which `check_starts` has found to be
        valid in every direction.
        """
        fields = ("start_distance", "start_direction", "start_yaw")
        keys = jax.random.split(key, len(fields))
        drawn = {n: self.randomization.draw(n, k, (_CANDIDATES,)) for n, k in zip(fields, keys, strict=True)}
        candidates = jax.vmap(
            lambda d, a, y: dataclasses.replace(params, start_distance=d, start_direction=a, start_yaw=y)
        )(*(drawn[name] for name in fields))
        valid = jax.vmap(lambda p: self.start_valid(self.start_pose(p)))(candidates)
        chosen = {name: drawn[name][jnp.argmax(valid)] for name in fields}
        nearest = self.randomization.range("start_distance")[0]
        chosen["start_distance"] = jnp.where(jnp.any(valid), chosen["start_distance"], nearest)
        return dataclasses.replace(params, **chosen)

    # -- one control step ----------------------------------------------------------------------------------------
    def command(self, state: State, target: jax.Array) -> tuple[State, jax.Array]:
        """Take a new absolute joint target [6] (rad, measured angles); give the motors' targets [substeps, 6].

        The motor target moves linearly from the old to the new one, late by the action delay; the calibration
        bias is taken off, because the motors count from their own zero. A target with NaN or inf is not taken: the
        old one is held, and `advance` ends the episode as invalid.
        """
        finite = jnp.all(jnp.isfinite(target))
        target = jnp.clip(target, jnp.asarray(self.kinematics.lower), jnp.asarray(self.kinematics.upper))
        target = jnp.where(finite, target, state.target)
        count = jnp.arange(1, self.substeps + 1)
        time = ((count - state.params.action_delay) / self.substeps)[:, None]
        now = state.target + (target - state.target) * time
        before = state.previous_target + (state.target - state.previous_target) * (1 + time)
        motor = jnp.where(time >= 0, now, before) - state.params.joint_bias
        return dataclasses.replace(state, target=target, previous_target=state.target, bad_target=~finite), motor

    def advance(self, state: State, physics: PhysicsState) -> tuple[State, Verdict]:
        """Take in the state after physics: sense, count holds, reward, and say whether the episode ends."""
        key, key_sense = jax.random.split(state.key)
        physics, finite = _finite_physics(physics, state.physics)
        nonfinite = state.bad_target | ~finite
        sheet = physics.qpos[6:]
        history = jnp.concatenate([sheet[None], state.sheet_history[:-1]])
        seen = history[state.params.sensing_latency] + self._sheet_noise(state.params, key_sense)
        step = state.step + 1

        inside = self.geometry.overshoot(sheet) <= jnp.asarray(self.config.tolerances)
        held = jnp.where(inside & self.at_rest(physics.qvel), state.held + 1, 0)
        offset = jnp.max(jnp.abs(sheet[:2] - jnp.asarray(self.geometry.goal)))
        invalid = nonfinite | (offset > self.config.max_sheet_offset)
        completed = (held >= self.config.hold_steps) & ~state.succeeded & ~(state.invalid | invalid)
        success = completed[0]
        home = state.succeeded[0] & inside[0]
        left = state.succeeded[0] & ~inside[0]
        verdict = Verdict(
            terms=self.reward_terms(state.physics.qpos[6:], sheet, success, home, left, invalid),
            terminated=invalid | (success & ~state.stays),
            truncated=step >= self.config.episode_steps,
            success=success,
            invalid=invalid,
        )
        state = dataclasses.replace(
            state,
            physics=physics,
            sheet_history=history,
            seen_sheet=seen,
            seen_sheet_before=state.seen_sheet,
            step=step,
            held=held,
            succeeded=state.succeeded | completed,
            success_step=jnp.where(completed, step, state.success_step),
            nonfinite=nonfinite,
            invalid=state.invalid | invalid,
            key=key,
        )
        return state, verdict

    def at_rest(self, qvel: jax.Array) -> jax.Array:
        """Whether the sheet is slow enough to count as resting; qvel [9]."""
        slow = jnp.linalg.norm(qvel[6:8]) < self.config.max_sheet_speed
        return slow & (jnp.abs(qvel[8]) < self.config.max_sheet_yaw_speed)

    def reward_terms(
        self,
        before: jax.Array,
        now: jax.Array,
        success: jax.Array,
        home: jax.Array,
        left: jax.Array,
        invalid: jax.Array,
    ) -> dict[str, jax.Array]:
        """Named terms of one step's reward, from the true sheet poses [3] before and after it.

        success: the hold is complete in this step. After it the sheet is either `home` or has `left`; a sheet that
        stays costs no time.
        """
        c = self.config
        gain = self.geometry.potential(now) - self.geometry.potential(before)
        return {
            "progress": c.progress_weight * jnp.where(invalid, 0.0, gain),
            "time": -c.time_cost * ~home,
            "success": c.success_bonus * success,
            "left": -c.leave_cost * left,
            "invalid": -c.invalid_cost * invalid,
        }

    def observe(self, state: State) -> Observation:
        """What the robot itself could know."""
        joint_pos = state.physics.qpos[:6] + state.params.joint_bias
        return Observation(
            joint_pos=joint_pos,
            joint_vel=state.physics.qvel[:6],
            target=state.target,
            sheet=state.seen_sheet,
            sheet_vel=(state.seen_sheet - state.seen_sheet_before) * self.control_hz,
            end_effector=self.kinematics.end_effector_position(joint_pos),
            new_episode=state.step == 0,
        )

    def _sheet_noise(self, params: EnvParams, key: jax.Array) -> jax.Array:
        scale = jnp.stack([params.sheet_position_noise, params.sheet_position_noise, params.sheet_yaw_noise])
        return scale * jax.random.normal(key, (3,))


def _finite_physics(new: PhysicsState, old: PhysicsState) -> tuple[PhysicsState, jax.Array]:
    """`new`, or the pose and speed of `old` if they are not finite in `new`; and whether they are."""
    finite = jnp.all(jnp.isfinite(new.qpos)) & jnp.all(jnp.isfinite(new.qvel))
    kept = {name: jnp.where(finite, getattr(new, name), getattr(old, name)) for name in ("qpos", "qvel")}
    start_warm = finite & jnp.all(jnp.isfinite(new.warmstart))
    return dataclasses.replace(new, **kept, warmstart=jnp.where(start_warm, new.warmstart, 0.0)), finite


def check_home(task: PaperReturn) -> None:
    """Raise ConfigError if the home pose lies outside the joint limits or presses a fingertip into the table."""
    for name, angle, low, high in zip(
        JOINTS, task.config.home, task.kinematics.lower, task.kinematics.upper, strict=True
    ):
        if not low - 1e-3 <= angle <= high + 1e-3:
            raise ConfigError(f"home of {name} is {angle} rad, outside its limits [{low:.4f}, {high:.4f}].")
    clearance = task.kinematics.clearance(np.asarray(task.config.home))
    if clearance < 0:
        raise ConfigError(
            f"home {task.config.home} puts a fingertip {-1000 * clearance:.0f} mm below the table; raise the arm: less "
            "shoulder_lift or less elbow_flex."
        )


def check_starts(task: PaperReturn) -> None:
    """Raise ConfigError if the start ranges hold poses that no reset could make reachable or that are solved."""
    key = jax.random.PRNGKey(0)
    low, high = task.randomization.range("start_distance")
    yaw = max(abs(v) for v in task.randomization.range("start_yaw"))

    def poses(distance, count=4096):
        k1, k2, k3 = jax.random.split(key, 3)
        radius = jnp.full(count, low) if distance is None else jax.random.uniform(k1, (count,), minval=low, maxval=high)
        params = jax.vmap(task.randomization.sample)(jax.random.split(k3, count))
        direction = task.randomization.draw("start_direction", k2, (count,))
        return jax.vmap(task.start_pose)(dataclasses.replace(params, start_distance=radius, start_direction=direction))

    nearest = np.asarray(jax.vmap(task.start_valid)(poses(None)))
    if not nearest.all():
        raise ConfigError(
            f"start_distance from {low:g} m makes a reset unreachable ({(~nearest).mean():.0%} of start poses at the "
            f"smallest distance are out of the arm's reach); lower its low end (0.04 m works), or narrow "
            "start_direction or start_yaw."
        )
    share = float(np.mean(np.asarray(jax.vmap(task.start_valid)(poses(high)))))
    if share < 0.3:
        raise ConfigError(
            f"start_distance [{low:g}, {high:g}] m makes most resets unreachable: only {share:.0%} of the start poses "
            "are within the arm's reach, at least 30 % must be; lower its high end (0.15 m works)."
        )
    solved = np.asarray(jax.vmap(task.geometry.overshoot)(poses(None))) <= max(task.config.tolerances)
    if solved.any():
        raise ConfigError(
            f"start_distance from {low:g} m with start_yaw up to {yaw:g} rad starts some episodes already solved at "
            f"{1000 * max(task.config.tolerances):g} mm; raise the low end of start_distance."
        )
