"""Overflow, NaN and bad actions are seen, named and never hidden."""

import re
import tempfile

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mjx_so101 import ConfigError, HealthError, PaperReturnEnv, SceneConfig, load_model
from mjx_so101.physics import make_physics
from mjx_so101.physics.fields import ModelFields
from mjx_so101.task import PhysicsState

SHEET = (0.30, 0.20, 1.3)
LEVEL = -0.07  # gripper angle at which both fingertips press


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    """Replay files and MuJoCo's log of warnings go to a fresh folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def hovering(joints_at):
    return np.array([*joints_at((0.29, 0.19, 0.03), LEVEL), *SHEET])


@pytest.fixture(scope="module")
def pressing(joints_at):
    return np.array([*joints_at((0.29, 0.19, 0.004), LEVEL), *SHEET])


def placed(env, rows):
    """Fresh State with qpos [env, 9], holding still."""
    state = env.reset(0)
    qpos = jnp.asarray(np.stack(rows), jnp.float32)
    physics = state.physics.replace(qpos=qpos)
    return state.replace(physics=physics, target=qpos[:, :6], previous_target=qpos[:, :6])


@pytest.fixture(scope="module")
def strict_env():
    return PaperReturnEnv(4, physics="native", randomization="plain", strict=True)


# -- actions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(4, 5), (3, 6), (6,), (4, 6, 1), ()])
def test_action_of_wrong_shape_is_refused(make_env, shape):
    env = make_env(4, "plain")
    with pytest.raises(ConfigError, match=re.escape(f"{shape}") + r".*\(4, 6\)"):
        env.step(env.reset(0), np.zeros(shape, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_action_that_is_not_finite_names_its_environment(make_env, bad):
    env = make_env(4, "plain")
    state = env.reset(0)
    target = np.array(state.target)
    target[2, 3] = bad
    with pytest.raises(HealthError, match="env 2"):
        env.step(state, target)


# -- NaN -----------------------------------------------------------------------------------------------------------
def test_healthy_steps_raise_nothing(strict_env, own_folder):
    state = strict_env.reset(0)
    for _ in range(3):
        state, _ = strict_env.step(state, state.target)
    assert not list(own_folder.rglob("*.npz"))


def test_nan_is_fatal_in_strict_mode_and_leaves_a_replay(strict_env, own_folder):
    state = strict_env.reset(0)
    bad = state.replace(physics=state.physics.replace(qvel=state.physics.qvel.at[3, 2].set(jnp.nan)))
    with pytest.raises(HealthError, match=r"env 3 \(1 of 4 envs\).*non-finite") as caught:
        strict_env.step(bad, state.target)
    (path,) = own_folder.rglob("*.npz")
    assert str(path) in str(caught.value)
    replay = np.load(path)
    np.testing.assert_array_equal(replay["qpos"], state.physics.qpos[3])
    np.testing.assert_array_equal(replay["action"], state.target[3])
    assert replay["params.kp_scale"] == state.params.kp_scale[3]
    assert np.isnan(replay["qvel"][2])


def test_replay_holds_all_that_the_motors_depend_on(strict_env, own_folder):
    """With an action delay the motors still follow the target before the last one."""
    state = strict_env.reset(0)
    for _ in range(2):
        state, _ = strict_env.step(state, state.target + 0.01)
    bad = state.replace(physics=state.physics.replace(qpos=state.physics.qpos.at[0, 0].set(jnp.nan)))
    with pytest.raises(HealthError):
        strict_env.step(bad, state.target + 0.01)
    saved = np.load(next(own_folder.rglob("*.npz")))
    for needed in (state.target[0], state.previous_target[0]):
        assert any(np.array_equal(saved[name], needed) for name in saved.files)


def test_replays_have_a_folder_of_their_own_and_never_replace_one_another(strict_env, tmp_path):
    state = strict_env.reset(0)
    bad = state.replace(nonfinite=jnp.array([False, True, False, False]))
    for count in (1, 2):
        with pytest.raises(HealthError):
            strict_env.check_health(state, state.target, bad, tmp_path / "run")
        assert len(list((tmp_path / "run").iterdir())) == count
    folders = set()
    for _ in range(2):
        with pytest.raises(HealthError, match="replay saved to") as caught:
            strict_env.check_health(state, state.target, bad)
        folders.add(str(caught.value).rpartition("/")[0])
    assert len(folders) == 2


def test_nan_that_physics_itself_makes_is_fatal(strict_env):
    state = strict_env.reset(0)
    fast = state.replace(physics=state.physics.replace(qvel=state.physics.qvel.at[1, :6].set(1e30)))
    with pytest.raises(HealthError, match="env 1"):
        strict_env.step(fast, state.target)


# -- what stops MuJoCo on native --------------------------------------------------------------------------------------
def stepped(env, qvel=None, ctrl=None):
    """PhysicsState after one control step of physics alone, holding still but for what is given."""
    state = env.reset(0)
    ctrl = np.repeat(np.asarray(state.target)[:, None], 8, axis=1) if ctrl is None else ctrl
    physics = state.physics if qvel is None else state.physics.replace(qvel=qvel)
    return env.physics.step(physics, jax.vmap(env.fields)(state.params), ctrl)


def assert_lost(after, rows):
    """The rows are not finite, the others are; no buffer was full."""
    finite = np.isfinite(after.qpos).all(1) & np.isfinite(after.qvel).all(1)
    np.testing.assert_array_equal(np.flatnonzero(~finite), rows)
    assert not np.asarray(after.overflow).any()


@pytest.mark.parametrize("substep", [0, 5])
def test_bad_motor_target_is_no_full_buffer(make_env, substep):
    """MuJoCo warns, steps on without motors and keeps a finite state: the episode is lost all the same."""
    env = make_env(4, "nominal")
    ctrl = np.repeat(np.asarray(env.reset(0).target)[:, None], 8, axis=1)
    ctrl[2, substep:, 3] = np.nan  # inf is clipped to the motor's range
    assert_lost(stepped(env, ctrl=ctrl), [2])
    assert_lost(stepped(env), [])  # and the next step is whole again


def test_state_too_large_for_mujoco_is_no_full_buffer(make_env):
    """Above 1e10 MuJoCo stops, though the numbers are finite."""
    qvel = np.zeros((4, 9), np.float32)
    qvel[1, 0], qvel[3, 8] = 1e12, np.nan
    assert_lost(stepped(make_env(4, "nominal"), qvel=qvel), [1, 3])


def test_state_that_explodes_within_a_step_is_no_full_buffer(make_env):
    qvel = np.zeros((4, 9), np.float32)
    qvel[0, :6] = 9e9
    assert_lost(stepped(make_env(4, "nominal"), qvel=qvel), [0])


# -- overflow on warp ----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_warp_constraint_overflow_names_the_environment(hovering, pressing, own_folder):
    """Nine dry frictions fit into 12 rows; a pressing fingertip needs four more."""
    options = {"constraints_per_env": 12}
    env = PaperReturnEnv(3, physics="warp", randomization="nominal", strict=True, physics_options=options)
    with pytest.raises(HealthError, match=r"env 1 \(2 of 3 envs\): buffer overflow.*constraints_per_env"):
        state = placed(env, [hovering, pressing, pressing])
        env.step(state, state.target)
    replay = np.load(next(own_folder.rglob("*env1.npz")))
    np.testing.assert_allclose(replay["qpos"], pressing, atol=1e-6)
    state = placed(env, [hovering, hovering, hovering])
    env.step(state, state.target)  # fits


@pytest.mark.slow
def test_warp_contact_overflow_is_seen(hovering, pressing):
    """Four contacts do not fit into the three that the environments share."""
    options = {"contacts_per_env": 1}
    env = PaperReturnEnv(3, physics="warp", randomization="nominal", strict=True, physics_options=options)
    state = placed(env, [hovering, pressing, pressing])
    with pytest.raises(HealthError, match=r"overflow.*contacts_per_env"):
        env.step(state, state.target)


# -- overflow on native --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small_model(hovering, pressing, tmp_path_factory):
    """A scene with so little memory that constraints overflow when pressing, but nothing else fails."""

    def overflows(model, qpos) -> bool:
        data = mujoco.MjData(model)
        data.qpos[:], data.ctrl[:] = qpos, qpos[:6]
        mujoco.mj_step(model, data)
        full = (mujoco.mjtWarning.mjWARN_CONTACTFULL, mujoco.mjtWarning.mjWARN_CNSTRFULL)
        return any(data.warning[w].number for w in full)

    compile_spec = mujoco.MjSpec.compile
    for memory in range(9000, 12000, 50):

        def compile_small(spec, memory=memory):
            spec.memory = memory
            return compile_spec(spec)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mujoco.MjSpec, "compile", compile_small)
            patch.chdir(tmp_path_factory.getbasetemp())  # for MuJoCo's log of warnings
            model = load_model(SceneConfig(visual=False, acceleration_sensors=True))
            try:
                if overflows(model, pressing) and not overflows(model, hovering):
                    return model
            except mujoco.FatalError:
                continue
    pytest.fail("no memory size lets constraints overflow without a fatal error")


@pytest.mark.parametrize("env", [0, 1, 2])
def test_native_overflow_names_the_environment(small_model, hovering, pressing, env, make_env):
    physics = make_physics("native", small_model, 3, threads=1)
    for model in physics._models:  # without islands MuJoCo ends the process when memory runs out, instead of warning
        model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    qpos = np.tile(hovering, (3, 1))
    qpos[env] = pressing
    fields = jax.vmap(ModelFields(small_model))(make_env(3, "nominal").reset(0).params)
    still = PhysicsState(qpos=qpos, qvel=np.zeros((3, 9)), warmstart=np.zeros((3, 9)), overflow=np.zeros(3, np.int32))
    ctrl = np.repeat(qpos[:, None, :6], 8, axis=1)
    for _ in range(2):  # seen in every control step, not only in the first
        after = physics.step(still, fields, ctrl)
        np.testing.assert_array_equal(np.asarray(after.overflow) != 0, np.arange(3) == env)
        assert np.isfinite(after.qpos).all() and np.isfinite(after.qvel).all()
    ctrl[env, 0, 0] = np.nan  # full and without a motor target: both are told
    after = physics.step(still, fields, ctrl)
    np.testing.assert_array_equal(np.asarray(after.overflow) != 0, np.arange(3) == env)
    np.testing.assert_array_equal(np.isnan(after.qpos).all(1), np.arange(3) == env)
