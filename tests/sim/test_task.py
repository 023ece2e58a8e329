"""The task's rules one by one, without physics: a reset by hand, valid starts, what is refused and why."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import PRESETS, ConfigError, Randomization, TaskConfig
from mjx_so101.params import MAX_LATENCY
from mjx_so101.task import check_home, check_starts

GOAL = np.array([0.275, 0.175])
PAN_AXIS = np.array([0.0775, -0.0015])
SHEET_HALF = (0.074, 0.105)
AWAY = {"start_direction": (0.7, 0.9)}  # from the base


@pytest.fixture(scope="module")
def task(make_env):
    return make_env().task


def ranged(task, **ranges):
    """The task with other ranges, unchecked."""
    randomization = Randomization("mine", {**PRESETS["nominal"].ranges, **ranges})
    return dataclasses.replace(task, randomization=randomization)


# -- the rules -----------------------------------------------------------------------------------------------------
def test_rewards_and_limits_are_the_stated_ones():
    config = TaskConfig()
    assert (config.progress_weight, config.time_cost, config.success_bonus, config.invalid_cost) == (
        1.5,
        0.003,
        2.4,
        1.2,
    )
    assert (config.max_start_reach, config.min_start_clearance, config.max_sheet_offset) == (0.34, 0.05, 0.5)
    assert (config.leave_cost, config.stay_share) == (0.02, 1.0)
    assert config.home == (0.0, -1.1, 0.8, 1.45, 1.6, -0.07)
    assert config.report_tolerances == (0.005, 0.010, 0.020)
    assert TaskConfig(tolerance=0.03).tolerances == (0.03, 0.005, 0.010, 0.020)


def test_rules_cannot_change_under_a_running_environment():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskConfig().tolerance = 0.1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("report_tolerances", ()),
        ("report_tolerances", (0.005, 0.0)),
        ("report_tolerances", (0.005, float("inf"))),
        ("max_sheet_yaw_speed", 0.0),
        *((name, bad) for name in ("progress_weight", "time_cost", "success_bonus", "leave_cost", "invalid_cost")
          for bad in (float("inf"), float("nan"))),
        ("home", (0.0,) * 7),
        ("home", (float("inf"),) + (0.0,) * 5),
    ],
)  # fmt: skip
def test_rules_out_of_range_are_named_with_their_value(field, value):
    with pytest.raises(ConfigError, match=f"{field} is ") as error:
        TaskConfig(**{field: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize("joint", range(6))
@pytest.mark.parametrize("end", ["lower", "upper"])
def test_home_may_lie_on_a_limit_but_not_beyond(task, joint, end):
    limits = np.asarray(getattr(task.kinematics, end), float)
    outwards = -1 if end == "lower" else 1
    for beyond, fits in ((-1e-4, True), (5e-4, True), (2e-3, False)):
        home = np.array(TaskConfig().home)
        if joint == 2:
            home[3] = 0.0  # or the hand, pointing down, would lie under the table
        home[joint] = limits[joint] + outwards * beyond
        moved = dataclasses.replace(task, config=TaskConfig(home=tuple(home.tolist())))
        if fits:
            check_home(moved)
        else:
            with pytest.raises(ConfigError, match=rf"is {home[joint]} rad, outside its limits"):
                check_home(moved)


# -- starts --------------------------------------------------------------------------------------------------------
def test_valid_starts_are_those_in_reach_and_clear_of_the_base(task):
    rng = np.random.default_rng(4)
    poses = np.concatenate([PAN_AXIS + rng.uniform(-0.5, 0.5, (4000, 2)), rng.uniform(-4, 4, (4000, 1))], 1)
    offset = PAN_AXIS - poses[:, :2]
    c, s = np.cos(poses[:, 2]), np.sin(poses[:, 2])
    local = np.abs(np.stack([c * offset[:, 0] + s * offset[:, 1], -s * offset[:, 0] + c * offset[:, 1]], 1))
    edge = np.linalg.norm(np.maximum(local - SHEET_HALF, 0), axis=1)
    reach = np.linalg.norm(offset, axis=1)
    clear_cut = (np.abs(reach - 0.34) > 2e-4) & (np.abs(edge - 0.05) > 2e-4)
    valid = np.asarray(jax.jit(jax.vmap(task.start_valid))(jnp.asarray(poses, jnp.float32)))
    expected = (reach <= 0.34) & (edge >= 0.05)
    np.testing.assert_array_equal(valid[clear_cut], expected[clear_cut])
    assert 0.05 < expected.mean() < 0.95


def test_reset_by_hand(task):
    plain = dataclasses.replace(task, randomization=PRESETS["plain"])
    state = jax.tree.map(np.asarray, jax.jit(jax.vmap(plain.reset))(jax.random.split(jax.random.PRNGKey(2), 50)))
    params, qpos = state.params, state.physics.qpos
    arm = np.array(TaskConfig().home) + np.hstack([params.start_joint_offset, np.zeros((50, 1))])
    np.testing.assert_allclose(qpos[:, :6], arm, atol=1e-6)
    direction = np.stack([np.cos(params.start_direction), np.sin(params.start_direction)], 1)
    np.testing.assert_allclose(qpos[:, 6:8], GOAL + params.start_distance[:, None] * direction, atol=1e-6)
    np.testing.assert_allclose(qpos[:, 8], np.pi / 2 + params.start_yaw, atol=1e-6)
    assert state.sheet_history.shape == (50, MAX_LATENCY + 1, 3)
    assert (state.sheet_history == qpos[:, None, 6:]).all()
    assert np.ptp(params.start_joint_offset) > 0.01 and np.ptp(params.start_direction) > 1
    for zero in (state.physics.qvel, state.physics.warmstart):
        assert zero.shape == (50, 9) and not zero.any()
    assert not state.physics.overflow.any() and not state.nonfinite.any() and not state.step.any()
    assert state.held.shape == state.succeeded.shape == state.success_step.shape == (50, 4)
    assert not state.held.any() and not state.succeeded.any() and (state.success_step == -1).all()
    np.testing.assert_array_equal(state.seen_sheet_before, state.seen_sheet)


def test_start_is_the_nearest_where_no_candidate_is_valid(task):
    """Away from the base hardly anything beyond 7 cm is in reach; 6.5 cm is, in each of these directions."""
    far = ranged(task, start_distance=(0.065, 0.3), **AWAY)
    state = jax.jit(jax.vmap(far.reset))(jax.random.split(jax.random.PRNGKey(3), 500))
    distance = np.asarray(state.params.start_distance)
    assert (distance == np.float32(0.065)).mean() > 0.2
    assert np.asarray(jax.vmap(far.start_valid)(state.physics.qpos[:, 6:])).all()


def test_start_is_one_of_the_valid_candidates_where_there_are_any(task):
    wide = ranged(task, start_distance=(0.04, 0.3))
    distance = np.asarray(
        jax.jit(jax.vmap(wide.reset))(jax.random.split(jax.random.PRNGKey(3), 500)).params.start_distance
    )
    assert (distance == np.float32(0.04)).mean() < 0.02
    assert (distance > 0.2).mean() > 0.05


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (
            {"start_distance": (0.28, 0.3), **AWAY},
            r"start_distance from 0.28 m .* \(100% of start poses at the smallest",
        ),
        (
            {"start_distance": (0.04, 0.3), **AWAY},
            r"start_distance \[0.04, 0.3\] m makes most .*only 1\d% of the start",
        ),
        (
            {"start_distance": (0.0, 0.1), "start_yaw": (-0.01, 0.005)},
            r"from 0 m with start_yaw up to 0.01 .*at 20 mm;",
        ),
        ({"start_distance": (0.0, 0.1), "start_yaw": (-0.005, 0.02)}, "start_yaw up to 0.02 rad"),
    ],
)
def test_refused_starts_come_with_figures(task, ranges, message):
    with pytest.raises(ConfigError, match=message):
        check_starts(ranged(task, **ranges))


@pytest.mark.parametrize("high", [0.1, 0.3])
def test_starts_are_fine_if_three_in_ten_of_the_widest_are_in_reach(task, high):
    check_starts(ranged(task, start_distance=(0.04, high)))


# -- sensing and verdicts ------------------------------------------------------------------------------------------
def test_a_sheet_exactly_out_of_time_or_too_far_ends_the_episode(task):
    advance = jax.jit(task.advance)
    state = task.reset(jax.random.PRNGKey(0))
    for before, truncated in ((398, False), (399, True), (400, True)):
        _, verdict = advance(state.replace(step=jnp.int32(before)), state.physics)
        assert bool(verdict.truncated) == truncated
    for shift, invalid in (((0.499, -0.499), False), ((0.501, 0.0), True), ((0.0, -0.501), True)):
        sheet = jnp.append(jnp.asarray(GOAL + shift, jnp.float32), 1.0)
        _, verdict = advance(state, state.physics.replace(qpos=state.physics.qpos.at[6:].set(sheet)))
        assert bool(verdict.invalid) == invalid
        assert float(verdict.terms["invalid"]) == pytest.approx(-1.2 * invalid)
        assert (float(verdict.terms["progress"]) == 0) == invalid


@pytest.mark.parametrize("part", ["qpos", "qvel"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_any_broken_number_is_taken_back_with_the_whole_state(task, part, value):
    state = task.reset(jax.random.PRNGKey(0))
    physics = state.physics.replace(
        qpos=state.physics.qpos + 0.01, qvel=state.physics.qvel + 0.5, warmstart=jnp.ones(9)
    )
    advance = jax.jit(task.advance)
    fine, verdict = advance(state, physics)
    assert not verdict.invalid and not fine.nonfinite
    np.testing.assert_array_equal(fine.physics.warmstart, 1)
    broken = physics.replace(**{part: getattr(physics, part).at[8].set(value)})
    taken_back, verdict = advance(state, broken)
    assert verdict.invalid and taken_back.nonfinite
    for name in ("qpos", "qvel"):
        np.testing.assert_array_equal(getattr(taken_back.physics, name), getattr(state.physics, name))
    assert not np.asarray(taken_back.physics.warmstart).any()
