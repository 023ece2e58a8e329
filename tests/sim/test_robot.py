"""The robot alone against reference values that MuJoCo computed from the published SO-101 model."""

import json
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from mjx_so101 import JOINTS
from mjx_so101.scene import assets_dir

RANGES = [
    (-1.91986218, 1.91986218), (-1.74532925, 1.74532925), (-1.69, 1.69),
    (-1.65806285, 1.65806273), (-2.74384730, 2.84120631), (-0.17453298, 1.74532920),
]  # fmt: skip


@pytest.fixture(scope="module")
def reference(data_dir):
    raw = json.loads((data_dir / "so101_reference.json").read_text())
    return SimpleNamespace(**{k: np.array(v) if isinstance(v, list) else v for k, v in raw.items()})


@pytest.fixture(scope="module")
def robot():
    return mujoco.MjModel.from_xml_path(str(assets_dir() / "so101.xml"))


@pytest.fixture(scope="module")
def computed(robot, reference):
    """The same quantities as in the reference, of our robot, [67, ...]."""
    data = mujoco.MjData(robot)
    rows = []
    for qpos in reference.qpos:
        data.qpos[:] = qpos
        mujoco.mj_forward(robot, data)
        bodies = [data.body(name) for name in reference.bodies]
        quat = np.zeros((len(reference.sites), 4))
        for row, name in zip(quat, reference.sites, strict=True):
            mujoco.mju_mat2Quat(row, data.site(name).xmat)
        diagonal = np.zeros(6)
        for i, unit in enumerate(np.eye(6)):
            column = np.zeros(6)
            mujoco.mj_mulM(robot, data, column, unit)
            diagonal[i] = column[i]
        rows.append({
            "body_pos": [body.xpos.copy() for body in bodies],
            "body_quat": [body.xquat.copy() for body in bodies],
            "site_pos": [data.site(name).xpos.copy() for name in reference.sites],
            "site_quat": quat,
            "mass_matrix_diag": diagonal,
            "gravity_bias": data.qfrc_bias.copy(),
        })  # fmt: skip
    return SimpleNamespace(**{name: np.array([row[name] for row in rows]) for name in rows[0]})


def test_reference_is_complete(reference):
    assert reference.qpos.shape == (67, 6)
    assert tuple(reference.joints) == JOINTS
    for name in ("body_pos", "body_quat", "site_pos", "site_quat", "mass_matrix_diag", "gravity_bias"):
        assert len(getattr(reference, name)) == 67 and np.isfinite(getattr(reference, name)).all()


@pytest.mark.parametrize("what", ["body_pos", "site_pos"])
def test_positions(computed, reference, what):
    np.testing.assert_allclose(getattr(computed, what), getattr(reference, what), rtol=0, atol=1e-6, equal_nan=False)


@pytest.mark.parametrize("what", ["body_quat", "site_quat"])
def test_orientations_up_to_sign(computed, reference, what):
    ours, theirs = getattr(computed, what), getattr(reference, what)
    sign = np.sign((ours * theirs).sum(-1, keepdims=True))
    np.testing.assert_allclose(ours * sign, theirs, rtol=0, atol=1e-6, equal_nan=False)


def test_mass_matrix_diagonal(computed, reference):
    np.testing.assert_allclose(computed.mass_matrix_diag, reference.mass_matrix_diag, rtol=1e-5, equal_nan=False)


def test_gravity_bias(computed, reference):
    allowed = 1e-5 * np.maximum(np.abs(reference.gravity_bias), 1e-3)
    assert (np.abs(computed.gravity_bias - reference.gravity_bias) < allowed).all()  # NaN would fail


@pytest.mark.parametrize("name", JOINTS)
def test_motors(robot, name):
    motor = robot.actuator(name)
    assert motor.gainprm[0] == 998.22
    assert tuple(motor.biasprm[:3]) == (0, -998.22, -2.731)
    assert tuple(motor.forcerange) == (-3.35, 3.35)
    assert motor.trnid[0] == robot.joint(name).id


@pytest.mark.parametrize(("name", "limits"), zip(JOINTS, RANGES, strict=True))
def test_joint_limits(robot, name, limits):
    joint = robot.joint(name)
    assert joint.limited[0]
    np.testing.assert_allclose(joint.range, limits, atol=1e-8)
    np.testing.assert_allclose(robot.actuator(name).ctrlrange, limits, atol=1e-5)
    assert (joint.damping[0], joint.armature[0], joint.frictionloss[0]) == (0.6, 0.028, 0.052)
