"""What the robot sees: delayed, noisy, biased, and never the truth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import PRESETS, Observation

COUNT = 20_000


@pytest.fixture(scope="module")
def task(make_env):
    return make_env().task


@pytest.fixture(scope="module")
def real_task(task):
    return dataclasses.replace(task, randomization=PRESETS["real"])


def moved(state, sheet):
    return state.physics.replace(qpos=state.physics.qpos.at[6:].set(sheet))


@pytest.mark.parametrize("latency", range(7))
def test_sheet_is_seen_as_it_was_some_control_steps_ago(task, latency):
    state = task.reset(jax.random.PRNGKey(0))
    state = state.replace(params=state.params.replace(sensing_latency=jnp.int32(latency)))
    start = np.asarray(state.physics.qpos[6:])
    truth = [start] * (latency + 1)  # before the episode the sheet lay where it starts
    advance = jax.jit(task.advance)
    for step in range(1, 12):
        sheet = start + np.float32(0.01 * step)
        truth.append(sheet)
        state, _ = advance(state, moved(state, sheet))
        np.testing.assert_array_equal(task.observe(state).sheet, truth[step])


def test_seen_velocity_is_the_change_of_the_seen_pose(task):
    state = task.reset(jax.random.PRNGKey(0))
    start = np.asarray(state.physics.qpos[6:])
    np.testing.assert_array_equal(task.observe(state).sheet_vel, np.zeros(3))
    state, _ = task.advance(state, moved(state, start + np.array([0.001, 0.002, 0.01])))
    np.testing.assert_allclose(task.observe(state).sheet_vel, (0.03, 0.06, 0.3), rtol=1e-3)


def test_noise_is_white_and_as_wide_as_stated(real_task):
    states = jax.jit(jax.vmap(real_task.reset))(jax.random.split(jax.random.PRNGKey(1), COUNT))
    advance = jax.jit(jax.vmap(real_task.advance))
    samples = []
    for _ in range(3):  # at the reset and in two control steps with a resting sheet
        samples.append(np.asarray(states.seen_sheet - states.physics.qpos[:, 6:]))
        states, _ = advance(states, states.physics)
    for noise in samples:
        np.testing.assert_allclose(noise.std(0), (0.003, 0.003, 0.02), rtol=0.03)
        np.testing.assert_allclose(noise.mean(0) / (0.003, 0.003, 0.02), 0, atol=0.03)
    together = np.concatenate(samples, 1)
    assert np.abs(np.corrcoef(together.T) - np.eye(9)).max() < 0.03


def test_observation_holds_no_truth(real_task):
    states = jax.jit(jax.vmap(real_task.reset))(jax.random.split(jax.random.PRNGKey(2), 100))
    observed = jax.vmap(real_task.observe)(states)
    qpos = np.asarray(states.physics.qpos)
    assert (np.asarray(observed.sheet) != qpos[:, 6:]).all()
    assert (np.asarray(observed.joint_pos) != qpos[:, :6]).all()
    by_kinematics = jax.vmap(real_task.kinematics.end_effector_position)(observed.joint_pos)
    np.testing.assert_allclose(observed.end_effector, by_kinematics, atol=1e-6)
    true_end = jax.vmap(real_task.kinematics.end_effector_position)(states.physics.qpos[:, :6])
    assert np.linalg.norm(np.asarray(observed.end_effector - true_end), axis=1).min() > 1e-5


def test_observation_has_no_room_for_hidden_quantities(task):
    names = {field.name for field in dataclasses.fields(Observation)}
    assert names == {"joint_pos", "joint_vel", "target", "sheet", "sheet_vel", "end_effector", "new_episode"}
    state = task.reset(jax.random.PRNGKey(3))
    other = state.replace(
        params=state.params.replace(sheet_mass_scale=jnp.float32(2.0), fingertip_friction=jnp.float32(0.1)),
        physics=moved(state, state.physics.qpos[6:] + 0.05),
    )
    for a, b in zip(jax.tree.leaves(task.observe(state)), jax.tree.leaves(task.observe(other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nominal_sees_the_truth(make_env):
    env = make_env()
    state = env.reset(0)
    for _ in range(3):
        state, _ = env.step(state, state.target)
        observed = env.observe(state)
        np.testing.assert_array_equal(observed.sheet, state.physics.qpos[:, 6:])
        np.testing.assert_array_equal(observed.joint_pos, state.physics.qpos[:, :6])
        np.testing.assert_array_equal(observed.joint_vel, state.physics.qvel[:, :6])
        assert not np.asarray(observed.new_episode).any()
    assert np.asarray(env.observe(env.reset(0)).new_episode).all()
