"""Model fields of a draw of parameters, against models that MuJoCo itself set up."""

import copy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mjx_so101 import PRESETS, Randomization
from mjx_so101.physics.fields import ModelFields

MASS = ("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0")
NOT_SET = {"dof_M0", "cam_poscom0", "light_poscom0"}
"""Follow from the mass too, but are read only by mj_setConst and by cameras and lights that track a centre of mass."""


def fields_of(model, **ranges):
    fixed = Randomization("fixed", {name: (value, value) for name, value in ranges.items()})
    return ModelFields(model)(fixed.sample(jax.random.PRNGKey(0)))


def arrays(model):
    names = (name for name in dir(model) if not name.startswith("_"))
    return {name: value for name in names if isinstance(value := getattr(model, name), np.ndarray)}


@pytest.fixture(scope="module")
def heavier(model):
    """The scene with a sheet 1.7 times as heavy, completed by mj_setConst."""
    scene = copy.copy(model)
    sheet = scene.body("paper").id
    scene.body_mass[sheet] *= 1.7
    scene.body_inertia[sheet] *= 1.7
    mujoco.mj_setConst(scene, mujoco.MjData(scene))
    return scene


def test_default_parameters_leave_the_model_alone(model):
    for name, value in fields_of(model).items():
        np.testing.assert_allclose(value, getattr(model, name), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", MASS)
def test_mass_scale_equals_mj_set_const(model, heavier, name):
    assert not np.allclose(getattr(model, name), getattr(heavier, name), rtol=1e-3)
    ours = fields_of(model, sheet_mass_scale=1.7)[name]
    np.testing.assert_allclose(ours, getattr(heavier, name), rtol=1e-5)


def test_nothing_else_follows_from_the_mass(model, heavier):
    before, after = arrays(model), arrays(heavier)
    changed = {name for name in before if not np.array_equal(before[name], after[name], equal_nan=True)}
    assert changed - NOT_SET == set(MASS)
    assert heavier.stat.meaninertia == pytest.approx(model.stat.meaninertia, rel=0.05)  # only scales the solver's exit


@pytest.mark.parametrize(
    ("param", "field", "where"),
    [
        ("sheet_damping_scale", "dof_damping", np.s_[6:]),
        ("joint_damping_scale", "dof_damping", np.s_[:6]),
        ("sheet_friction_scale", "dof_frictionloss", np.s_[6:]),
        ("kp_scale", "actuator_gainprm", np.s_[:, 0]),
        ("kp_scale", "actuator_biasprm", np.s_[:, 1]),
        ("force_limit_scale", "actuator_forcerange", np.s_[:]),
    ],
)
def test_each_scale_changes_its_own_entries_only(model, param, field, where):
    expected = getattr(model, field).copy()
    expected[where] *= 1.5
    ours = fields_of(model, **{param: 1.5})
    np.testing.assert_allclose(ours[field], expected, rtol=1e-6)
    others = {"actuator_gainprm", "actuator_biasprm"} if param == "kp_scale" else {field}
    for name in set(ours) - others:
        np.testing.assert_allclose(ours[name], getattr(model, name), rtol=1e-6, err_msg=name)


def test_fingertip_friction_is_that_of_the_sheet_pairs(model):
    ours = np.asarray(fields_of(model, fingertip_friction=0.4)["pair_friction"])
    for i in range(model.npair):
        on_sheet = "paper" in model.pair(i).name
        expected = [0.4, 0.4] if on_sheet else model.pair_friction[i, :2]
        np.testing.assert_allclose(ours[i, :2], expected, rtol=1e-6)
        np.testing.assert_allclose(ours[i, 2:], model.pair_friction[i, 2:], rtol=1e-6)


def test_batched_fields_equal_single_ones(model):
    fields = ModelFields(model)
    params = jax.vmap(PRESETS["wild"].sample)(jax.random.split(jax.random.PRNGKey(1), 5))
    batched = jax.jit(jax.vmap(fields))(params)
    for i in range(5):
        for name, value in fields(jax.tree.map(lambda x, i=i: x[i], params)).items():
            np.testing.assert_allclose(batched[name][i], value, rtol=1e-6)
    assert not jnp.array_equal(batched["body_mass"][0], batched["body_mass"][1])
