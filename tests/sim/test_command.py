"""From targets to motors: interpolation, delay, clipping and calibration bias, against hand-written numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import PRESETS, PaperReturnEnv, Randomization

SUBSTEPS = 8
BIAS = np.array([0.05, -0.04, 0.03, -0.02, 0.06, -0.01])


@pytest.fixture(scope="module")
def task(make_env):
    return make_env().task


@pytest.fixture(scope="module")
def state(task):
    return task.reset(jax.random.PRNGKey(0))


def motors_by_hand(start, targets, delay):
    """[steps, 8, 6]: straight lines through the targets, one per control step, seen `delay` substeps late."""
    knots = np.concatenate([[start], [start], targets])  # at substep times -8, 0, 8, 16, ...
    times = SUBSTEPS * np.arange(-1, len(targets) + 1)
    now = np.arange(1, SUBSTEPS * len(targets) + 1) - delay
    return np.stack([np.interp(now, times, column) for column in knots.T], 1).reshape(-1, SUBSTEPS, 6)


def commanded(task, state, targets):
    motors = []
    command = jax.jit(task.command)
    for target in targets:
        state, motor = command(state, jnp.asarray(target, jnp.float32))
        motors.append(np.asarray(motor))
    return state, np.array(motors)


@pytest.mark.parametrize("delay", range(9))
def test_target_moves_in_straight_lines_and_late(task, state, delay):
    start = np.asarray(state.target)
    targets = start + np.random.default_rng(delay).uniform(-0.1, 0.1, (6, 6))
    delayed = state.replace(params=state.params.replace(action_delay=jnp.int32(delay)))
    last, motors = commanded(task, delayed, targets)
    np.testing.assert_allclose(motors, motors_by_hand(start, targets, delay), atol=1e-6)
    np.testing.assert_allclose(last.target, targets[-1], atol=1e-6)


def test_targets_are_clipped_to_the_motors_limits(task, state, model):
    low, high = model.actuator_ctrlrange.T
    last, motors = commanded(task, state, [np.full(6, 10.0)])
    np.testing.assert_allclose(last.target, high, atol=1e-6)
    np.testing.assert_allclose(motors[0, -1], high, atol=1e-6)
    last, _ = commanded(task, state, [np.full(6, -10.0)])
    np.testing.assert_allclose(last.target, low, atol=1e-6)


def test_bias_is_taken_off_the_motors(task, state):
    targets = np.asarray(state.target) + np.full((2, 6), 0.05)
    biased = state.replace(params=state.params.replace(joint_bias=jnp.asarray(BIAS, jnp.float32)))
    _, plain = commanded(task, state, targets)
    _, motors = commanded(task, biased, targets)
    np.testing.assert_allclose(motors, plain - BIAS, atol=1e-6)


def test_arm_reaches_its_target_in_measured_angles():
    biased = Randomization("biased", {**PRESETS["nominal"].ranges, "joint_bias": (0.04, 0.04)})
    env = PaperReturnEnv(2, physics="native", randomization=biased)
    state = env.reset(0)
    target = state.target + jnp.array([0.2, -0.1, 0.1, -0.1, 0.2, 0.3])
    for _ in range(60):
        state, _ = env.step(state, target)
    observation = env.observe(state)
    np.testing.assert_allclose(observation.joint_pos - state.physics.qpos[:, :6], 0.04, atol=1e-6)
    np.testing.assert_allclose(observation.joint_pos, target, atol=0.005)  # the motors sag a little


def test_target_persists_instead_of_following_the_arm(make_env):
    env = make_env(4, "plain")
    state = env.reset(0)
    target = state.target + 0.1
    state, _ = env.step(state, target)
    np.testing.assert_allclose(state.target, target, atol=1e-6)
    np.testing.assert_array_equal(env.observe(state).target, state.target)
    assert np.abs(np.asarray(state.physics.qpos[:, :6] - target)).max() > 0.01  # the arm lags behind


def test_one_control_step_is_a_thirtieth_of_a_second(make_env):
    env = make_env()
    assert env.task.control_hz * env.task.substeps * env.model.opt.timestep == pytest.approx(1, abs=1e-12)
    _, _, ctrl = env.begin_step(env.reset(0), env.reset(0).target)
    assert ctrl.shape == (4, SUBSTEPS, 6)
