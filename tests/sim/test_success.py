"""What counts as success: a sheet that rests inside the tape, either way round, for `hold_steps` control steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import ConfigError, TaskConfig

GOAL = np.array([0.275, 0.175, np.pi / 2])
TOLERANCES = (0.005, 0.010, 0.020)
HOLD = TaskConfig().hold_steps


@pytest.fixture(scope="module")
def env(make_env):
    """Four environments that run on after success."""
    return make_env(4, "nominal", auto_reset=False)


def hold(env, state, steps):
    """Hold the arm still; the state after each control step and the results."""
    states, results = [], []
    for _ in range(steps):
        state, result = env.step(state, state.target)
        states.append(state)
        results.append(result)
    return states, results


def reported(env, state):
    """[env, 3] success so far at each of TOLERANCES."""
    columns = [env.task.config.tolerances.index(tolerance) for tolerance in TOLERANCES]
    return np.asarray(state.succeeded)[:, columns]


def test_headline_rules():
    config = TaskConfig()
    assert (config.tolerance, config.hold_steps, config.episode_steps) == (0.005, 10, 400)
    assert (config.max_sheet_speed, config.max_sheet_yaw_speed) == (0.005, 0.05)
    assert set(TOLERANCES) <= set(config.tolerances)


def test_goal_pose_succeeds_after_exactly_the_hold_at_every_tolerance(env, with_sheet):
    poses = GOAL + np.array([[0, 0, 0], [0, 0, np.pi], [0, 0, -np.pi], [0.0001, -0.0001, 3 * np.pi]])
    states, results = hold(env, with_sheet(env.reset(0), poses), HOLD + 5)
    assert not np.asarray(states[HOLD - 2].succeeded).any()
    assert np.asarray(states[HOLD - 1].succeeded).all()
    assert (np.asarray(states[-1].success_step) == HOLD).all()
    rewarded = np.array([result.success for result in results])
    assert rewarded[HOLD - 1].all() and rewarded.sum() == 4  # once


def test_one_millimetre_outside_fails(env, with_sheet):
    shifts = np.array([t + 0.001 for t in TOLERANCES])
    poses = np.tile(GOAL, (4, 1))
    poses[:3, 0] += shifts
    poses[3, 1] -= shifts[1]
    states, _ = hold(env, with_sheet(env.reset(0), poses), HOLD + 5)
    expected = [[False, True, True], [False, False, True], [False, False, False], [False, False, True]]
    np.testing.assert_array_equal(reported(env, states[-1]), expected)


def test_one_millimetre_inside_succeeds(env, with_sheet):
    poses = np.tile(GOAL, (4, 1))
    poses[:3, 1] += [t - 0.001 for t in TOLERANCES]
    states, _ = hold(env, with_sheet(env.reset(0), poses), HOLD)
    expected = [[True, True, True], [False, True, True], [False, False, True], [True, True, True]]
    np.testing.assert_array_equal(reported(env, states[-1]), expected)


def test_sheet_across_the_opening_fails(env, with_sheet):
    states, _ = hold(env, with_sheet(env.reset(0), GOAL - np.array([0, 0, np.pi / 2])), HOLD + 5)
    assert not np.asarray(states[-1].succeeded).any()


@pytest.mark.parametrize(
    ("sheet_qvel", "counts"),
    [
        ((0.0, 0.0, 0.0), True),
        ((0.0049, 0.0, 0.0), True),
        ((0.0, -0.0051, 0.0), False),
        ((0.004, 0.004, 0.0), False),
        ((0.0, 0.0, 0.049), True),
        ((0.0, 0.0, -0.051), False),
    ],
)
def test_only_a_resting_sheet_counts(env, sheet_qvel, counts):
    state = env.task.reset(jax.random.PRNGKey(0))
    physics = state.physics.replace(
        qpos=state.physics.qpos.at[6:].set(jnp.asarray(GOAL)), qvel=state.physics.qvel.at[6:].set(jnp.array(sheet_qvel))
    )
    advance = jax.jit(env.task.advance)
    for _ in range(HOLD + 2):
        state, _ = advance(state, physics)
    assert bool(state.succeeded.all()) == counts
    assert bool(state.succeeded.any()) == counts


def test_leaving_the_tape_starts_the_hold_anew(env, with_sheet):
    state = with_sheet(env.reset(0), GOAL)
    states, _ = hold(env, state, HOLD - 1)
    moved = with_sheet(states[-1], GOAL + np.array([0.05, 0, 0]))
    moved, _ = env.step(moved, moved.target)
    assert not np.asarray(moved.held).any()
    states, _ = hold(env, with_sheet(moved, GOAL), HOLD)
    assert not np.asarray(states[HOLD - 2].succeeded).any()
    assert np.asarray(states[HOLD - 1].succeeded).all()


def test_success_is_judged_on_the_true_pose(make_env, with_sheet):
    env = make_env(4, "real", auto_reset=False)
    state = with_sheet(env.reset(0), GOAL)
    wrong = jnp.tile(jnp.array([0.1, 0.1, 0.0]), (4, 1))
    for _ in range(HOLD):
        state, _ = env.step(state.replace(seen_sheet=wrong), state.target)
    assert np.asarray(state.succeeded).all()


@pytest.mark.parametrize("field", ["tolerance", "hold_steps", "episode_steps", "max_sheet_speed"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_bad_rules_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        TaskConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("home", (0.0,) * 5),
        ("home", (0.0,) * 5 + (float("nan"),)),
        ("home", (0.0, -1.1, 0.8, 3.0, 1.6, -0.07)),  # beyond the wrist's limit
        ("success_bonus", float("nan")),
    ],
)
def test_rules_that_make_no_sense_are_named(make_env, field, value):
    with pytest.raises(ConfigError, match=field):
        make_env(1, task=TaskConfig(**{field: value}))
