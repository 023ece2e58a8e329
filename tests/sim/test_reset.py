"""Every reset is reachable, unsolved, inside the stated ranges and different from the last one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import PRESETS, Randomization, TaskConfig
from mjx_so101.params import FIELDS
from policies.base import make_base
from policies.hand import HandConfig, approach_direction
from policies.ik import reach_point

GOAL = np.array([0.275, 0.175])
PAN_AXIS = np.array([0.0775, -0.0015])
LARGEST_YAW = {"nominal": 0.5, "plain": 0.5, "real": 0.5, "wild": 0.7}
PHYSICAL = [name for name in PRESETS if "+" not in name]  # looks change nothing of this; tests/sim/test_looks.py


@pytest.fixture(scope="module")
def task(make_env):
    return make_env().task


@pytest.fixture(scope="module")
def starts(task):
    """20,000 fresh states per preset."""
    keys = jax.random.split(jax.random.PRNGKey(5), 20_000)

    def draw(name):
        return jax.jit(jax.vmap(dataclasses.replace(task, randomization=PRESETS[name]).reset))(keys)

    return {name: draw(name) for name in PHYSICAL}


@pytest.fixture(params=PHYSICAL)
def preset(request):
    return request.param


def edge_distance(poses, point):
    """[n] distance from a point to the nearest edge of the sheet; 0 on the sheet."""
    offset = point - poses[:, :2]
    c, s = np.cos(poses[:, 2]), np.sin(poses[:, 2])
    local = np.stack([c * offset[:, 0] + s * offset[:, 1], -s * offset[:, 0] + c * offset[:, 1]], 1)
    return np.linalg.norm(np.maximum(np.abs(local) - (0.074, 0.105), 0), axis=1)


def test_every_start_is_in_reach_and_clear_of_the_base(task, starts, preset):
    poses = np.asarray(starts[preset].physics.qpos[:, 6:])
    assert np.asarray(jax.vmap(task.start_valid)(poses)).all()
    assert np.linalg.norm(poses[:, :2] - PAN_AXIS, axis=1).max() <= 0.34 + 2e-4
    assert edge_distance(poses, PAN_AXIS).min() >= 0.05 - 2e-4


def test_no_start_is_solved_at_the_largest_tolerance(task, starts, preset):
    overshoot = np.asarray(jax.vmap(task.geometry.overshoot)(starts[preset].physics.qpos[:, 6:]))
    assert overshoot.min() > 0.020


def test_starts_fill_the_stated_ranges(starts, preset):
    poses = np.asarray(starts[preset].physics.qpos[:, 6:])
    distance = np.linalg.norm(poses[:, :2] - GOAL, axis=1)
    yaw = poses[:, 2] - np.pi / 2
    assert 0.04 - 1e-5 <= distance.min() < 0.042 and 0.14 < distance.max() <= 0.15 + 1e-5
    largest = LARGEST_YAW[preset]
    assert 0.9 * largest < np.abs(yaw).max() <= largest + 1e-5
    assert np.abs(np.mean(yaw)) < 0.02
    for name, value in vars(starts[preset].params).items():
        low, high = PRESETS[preset].range(name)
        assert low - 1e-6 <= np.min(value) and np.max(value) <= high + 1e-6, name


def test_arm_starts_near_home_and_commanded_to_stay(starts, preset):
    state = starts[preset]
    home = np.array(TaskConfig().home)
    assert np.abs(np.asarray(state.physics.qpos[:, :6]) - home).max() <= 0.03 + 1e-6
    np.testing.assert_allclose(state.target, state.physics.qpos[:, :6] + state.params.joint_bias, atol=1e-6)
    np.testing.assert_array_equal(state.previous_target, state.target)
    assert not np.asarray(state.physics.qvel).any()


@pytest.mark.parametrize("name", ["nominal", "wild"])
def test_inverse_kinematics_reaches_a_point_of_every_sheet(task, starts, name):
    kinematics = task.kinematics
    poses = np.asarray(starts[name].physics.qpos[:300, 6:])
    corners = np.asarray(jax.vmap(task.geometry.corners)(poses))
    centers = poses[:, None, :2]
    points = np.concatenate([centers, 0.3 * centers + 0.7 * corners], 1)  # [300, 5, 2]

    def miss(point):
        joints = jnp.array(TaskConfig().home[:5])
        target = jnp.append(point, 0.0052)
        approach = approach_direction(kinematics, point, HandConfig())
        tip = kinematics.fixed_fingertip

        def closer(joints, _):
            return reach_point(kinematics, joints, tip, target, approach, None), None

        joints, _ = jax.lax.scan(closer, joints, None, length=15)
        return jnp.linalg.norm(kinematics.gripper_point(joints, tip)[0] - target)

    misses = np.asarray(jax.jit(jax.vmap(jax.vmap(miss)))(points))
    assert misses.min(1).max() < 0.0005


def test_wide_ranges_still_start_in_reach(task):
    wide = Randomization("wide", {**PRESETS["nominal"].ranges, "start_distance": (0.04, 0.25)})
    wide_task = dataclasses.replace(task, randomization=wide)
    state = jax.jit(jax.vmap(wide_task.reset))(jax.random.split(jax.random.PRNGKey(6), 20_000))
    assert np.asarray(jax.vmap(task.start_valid)(state.physics.qpos[:, 6:])).all()


def test_same_seed_same_episode_other_seed_another(make_env):
    env = make_env(4, "plain")
    first, again, other = env.reset(7), env.reset(7), env.reset(8)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.physics.qpos, other.physics.qpos)


def test_reset_takes_numbers_keys_and_one_key_per_environment(make_env):
    env = make_env(4, "plain")
    expected = env.reset(7).physics.qpos
    key = jax.random.PRNGKey(7)
    np.testing.assert_array_equal(env.reset(key).physics.qpos, expected)
    np.testing.assert_array_equal(env.reset(jax.random.split(key, 4)).physics.qpos, expected)


@pytest.mark.parametrize("seed", [np.int64(7), np.uint32(7)])
def test_reset_takes_numpy_integers(make_env, seed):
    env = make_env(4, "plain")
    np.testing.assert_array_equal(env.reset(seed).physics.qpos, env.reset(7).physics.qpos)


def test_environments_and_episodes_differ(make_env):
    env = make_env(4, "plain", task=TaskConfig(episode_steps=3))
    state = env.reset(0)
    poses, scales = [], []
    for _ in range(3):
        poses.append(np.asarray(state.physics.qpos))
        scales.append(np.asarray(state.params.sheet_mass_scale))
        for _ in range(3):
            state, result = env.step(state, state.target)
        assert np.asarray(result.done).all()
    poses, scales = np.concatenate(poses), np.concatenate(scales)
    varied = [i for i in range(9) if i != 5]  # the gripper always starts level
    for i in varied:
        assert len(np.unique(poses[:, i])) == 12
    assert len(np.unique(scales)) == 12


def test_home_pose_is_held_for_a_whole_episode(make_env):
    env = make_env(16, "plain", auto_reset=False)
    policy = make_base("zero", env.task)
    state = env.reset(1)
    start = np.asarray(state.physics.qpos)
    carry, mask, furthest = policy.init(16), jnp.zeros(16, bool), 0.0
    chunk = jax.jit(policy.chunk)
    for _ in range(400):
        carry, targets = chunk(carry, env.observe(state), jax.random.PRNGKey(0), mask)
        state, _ = env.step(state, targets[:, 0])
        qpos = np.asarray(state.physics.qpos)
        assert np.isfinite(qpos).all()
        furthest = max(furthest, np.abs(qpos[:, :6] - start[:, :6]).max())
    assert furthest < 0.05
    np.testing.assert_allclose(qpos[:, 6:], start[:, 6:], atol=1e-6)  # and the sheet is not touched


def test_home_pose_points_down_clear_of_the_table(task):
    home = jnp.array(TaskConfig().home)
    moving = task.kinematics.jaw_point_in_gripper(home[5], task.kinematics.moving_fingertip)
    for local in (task.kinematics.fixed_fingertip, moving):
        tip, rotation, *_ = task.kinematics.gripper_point(home[:5], local)
        assert tip[2] - task.kinematics.fingertip_radius > 0.01
        assert rotation[2][2] > 0.9  # the gripper's z axis points up, its fingers down
    assert abs(home[0]) < 0.58  # inside the real data


def test_every_field_of_params_has_limits_that_hold_its_default():
    for name, field in FIELDS.items():
        assert field.low <= field.default <= field.high, name
