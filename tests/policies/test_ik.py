"""Inverse kinematics of the arm: the linear solver against numpy, and a grid of fingertip targets over the table."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from policies.hand import HandConfig, approach_direction
from policies.ik import heading_of, reach_point, scaled_to, solve_spd

HOME = (0.0, -1.1, 0.8, 1.45, 1.6)
HEIGHT = 0.0052  # of a fingertip that rests on the sheet, m


@pytest.fixture(scope="module")
def grid(kinematics):
    """[n, 3] points over the part of the table that one fingertip reaches."""
    radius, angle = np.meshgrid(np.linspace(0.12, 0.30, 7), np.linspace(-1.2, 1.2, 7) + np.pi / 4)
    x, y = radius.ravel() * np.cos(angle.ravel()), radius.ravel() * np.sin(angle.ravel())
    return np.stack([kinematics.pan_axis[0] + x, kinematics.pan_axis[1] + y, np.full(x.size, HEIGHT)], 1)


def reach(kinematics, points, heading=None, calls=20):
    """Joints [n, 5] after calls of three iterations each, from the home pose."""

    @jax.jit
    @jax.vmap
    def closer(joints, point):
        approach = approach_direction(kinematics, point[:2], HandConfig())
        return reach_point(kinematics, joints, kinematics.fixed_fingertip, point, approach, heading)

    joints = jnp.tile(jnp.array(HOME), (len(points), 1))
    for _ in range(calls):
        joints = closer(joints, jnp.asarray(points, jnp.float32))
    return np.asarray(joints)


def tips_by_mujoco(model, joints):
    data = mujoco.MjData(model)
    tips = []
    for row in joints:
        data.qpos[:5] = row
        mujoco.mj_kinematics(model, data)
        tips.append(data.geom("fixed_fingertip").xpos.copy())
    return np.array(tips)


def test_fingertip_arrives_everywhere_on_the_table(model, kinematics, grid):
    joints = reach(kinematics, grid)
    assert (joints >= kinematics.lower[:5] - 1e-6).all() and (joints <= kinematics.upper[:5] + 1e-6).all()
    error = np.linalg.norm(tips_by_mujoco(model, joints) - grid, axis=1)
    assert error.max() < 0.0005


def test_heading_is_met_without_missing_the_point(model, kinematics, grid):
    near = grid[np.linalg.norm(grid[:, :2] - kinematics.pan_axis, axis=1) < HandConfig().tilt_from]
    joints = reach(kinematics, near, heading=2.0)
    assert np.linalg.norm(tips_by_mujoco(model, joints) - near, axis=1).max() < 0.0005
    headings = [heading_of(kinematics.gripper_point(jnp.asarray(row), np.zeros(3))[1]) for row in joints]
    assert np.abs(np.array(headings) - 2.0).max() < 0.02


def test_without_heading_the_roll_is_left_alone(kinematics, grid):
    assert (reach(kinematics, grid)[:, 4] == np.float32(HOME[4])).all()


def test_solve_spd_matches_numpy():
    rng = np.random.default_rng(4)
    for size in (1, 2, 5, 6):
        root = rng.normal(size=(size, size))
        matrix = root @ root.T + 0.1 * np.eye(size)
        vector = rng.normal(size=size)
        with jax.enable_x64(True):
            ours = solve_spd(jnp.asarray(matrix), jnp.asarray(vector))
        np.testing.assert_allclose(ours, np.linalg.solve(matrix, vector), rtol=1e-9)


def test_scaled_to_keeps_direction():
    step = jnp.array([0.1, -0.4, 0.2])
    np.testing.assert_allclose(scaled_to(step, 0.2), step / 2, rtol=1e-5)
    np.testing.assert_allclose(scaled_to(step, 1.0), step, rtol=1e-5)
