"""Forward kinematics and Jacobians in JAX against MuJoCo, and how well inverse kinematics uses them."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

COUNT = 50
FRAMES = ("base", "shoulder", "upper_arm", "lower_arm", "wrist", "gripper", "moving_jaw_so101_v1")


@pytest.fixture(scope="module")
def joints(model):
    low, high = model.jnt_range[:6].T
    return np.random.default_rng(1).uniform(low, high, (COUNT, 6))


@pytest.fixture(scope="module")
def truth(model, joints):
    """MuJoCo's positions and Jacobians for each row of joints: {point: (position, linear, angular)}."""
    data = mujoco.MjData(model)
    out = {"gripperframe": [], "fixed_fingertip": [], "moving_fingertip": [], "frames": []}
    for row in joints:
        data.qpos[:6] = row
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        gripper = model.body("gripper").id
        points = {"gripperframe": data.site("gripperframe").xpos}
        points |= {name: data.geom(name).xpos for name in ("fixed_fingertip", "moving_fingertip")}
        for name, point in points.items():
            linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
            mujoco.mj_jac(model, data, linear, angular, point, gripper)
            out[name].append((point.copy(), linear[:, :5], angular[:, :5]))
        out["frames"].append([(data.body(f).xpos.copy(), data.body(f).xmat.reshape(3, 3).copy()) for f in FRAMES])
    return out


def compare_point(kinematics, joints, truth, name, tolerance):
    for row, (position, linear, angular) in zip(joints, truth[name], strict=True):
        local = {
            "gripperframe": kinematics.end_effector,
            "fixed_fingertip": kinematics.fixed_fingertip,
            "moving_fingertip": kinematics.jaw_point_in_gripper(float(row[5]), kinematics.moving_fingertip),
        }[name]
        point, _, our_linear, our_angular = kinematics.gripper_point(jnp.asarray(row[:5]), local)
        np.testing.assert_allclose(point, position, rtol=0, atol=tolerance)
        np.testing.assert_allclose(our_linear, linear, rtol=0, atol=tolerance)
        np.testing.assert_allclose(our_angular, angular, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["gripperframe", "fixed_fingertip", "moving_fingertip"])
def test_points_and_jacobians_match_mujoco(kinematics, joints, truth, name):
    with jax.enable_x64(True):
        compare_point(kinematics, joints, truth, name, 1e-9)


@pytest.mark.parametrize("name", ["gripperframe", "fixed_fingertip", "moving_fingertip"])
def test_float32_is_good_to_a_micrometre(kinematics, joints, truth, name):
    compare_point(kinematics, joints, truth, name, 1e-6)


def test_every_frame_matches_mujoco(kinematics, joints, truth):
    with jax.enable_x64(True):
        for row, expected in zip(joints[:10], truth["frames"], strict=False):
            for (position, columns), (xpos, xmat) in zip(kinematics.frames(jnp.asarray(row)), expected, strict=True):
                np.testing.assert_allclose(position, xpos, atol=1e-9)
                np.testing.assert_allclose(jnp.stack(columns, 1), xmat, atol=1e-9)


def test_end_effector_is_site_gripperframe(kinematics, joints, truth):
    ours = jax.vmap(kinematics.end_effector_position)(jnp.asarray(joints))
    np.testing.assert_allclose(ours, [point for point, _, _ in truth["gripperframe"]], rtol=0, atol=1e-6)


def test_limits_are_those_of_the_motors(kinematics, model):
    np.testing.assert_array_equal(np.stack([kinematics.lower, kinematics.upper], 1), model.actuator_ctrlrange)


def test_pan_axis(kinematics):
    np.testing.assert_allclose(kinematics.pan_axis, (0.0775, -0.0015), atol=1e-4)
