"""The published observation against MuJoCo C: order, units, sign of the quaternion, and nothing of the truth."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from mjx_so101 import load_model
from mjx_so101.state25 import STATE25_LAYOUT, state25
from mjx_so101.task import Observation


def split(vectors):
    """{name: [env, size]} of vectors [env, 25]."""
    ends = np.cumsum([size for _, size, _ in STATE25_LAYOUT])
    return dict(zip([name for name, *_ in STATE25_LAYOUT], np.split(np.asarray(vectors), ends[:-1], 1), strict=True))


def test_order_is_the_published_one():
    assert [(name, size) for name, size, _ in STATE25_LAYOUT] == [
        ("joint_pos", 6), ("joint_vel", 6), ("sheet_position", 3), ("sheet_quaternion", 4), ("goal_vector", 3),
        ("end_effector", 3),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def full_model():
    """The scene with its tape."""
    return load_model()


def test_every_part_is_what_mujoco_computes(make_env, full_model):
    """Without bias, delay and noise: mj_forward of the same joints and sheet, sheets turned all the way round."""
    env, rng, count = make_env(64, "nominal"), np.random.default_rng(0), 64
    arms = rng.uniform(env.task.kinematics.lower, env.task.kinematics.upper, (count, 6))
    yaw = np.linspace(-2 * np.pi, 2 * np.pi, count)
    sheets = np.column_stack([rng.uniform(0.1, 0.4, (count, 2)), yaw])
    qpos, qvel = np.hstack([arms, sheets]).astype(np.float32), rng.normal(0, 2, (count, 9)).astype(np.float32)
    state = env.reset(0)
    physics = state.physics.replace(qpos=jnp.asarray(qpos), qvel=jnp.asarray(qvel))
    got = env.observe_state25(state.replace(physics=physics, seen_sheet=physics.qpos[:, 6:]))
    assert got.shape == (count, 25) and got.dtype == jnp.float32
    parts = split(got)
    data = mujoco.MjData(full_model)
    tape = np.mean([full_model.geom(f"tape_{i}").pos for i in range(4)], axis=0)
    for i in range(count):
        data.qpos, data.qvel = qpos[i], qvel[i]
        mujoco.mj_forward(full_model, data)
        sheet = data.body("paper")
        expected = {
            "joint_pos": data.qpos[:6],
            "joint_vel": data.qvel[:6],
            "sheet_position": sheet.xpos,
            "sheet_quaternion": sheet.xquat * (1 if sheet.xquat[0] >= 0 else -1),
            "goal_vector": [*(tape - sheet.xpos)[:2], 0.0],
            "end_effector": data.site("gripperframe").xpos,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(parts[name][i], value, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("turn", [-3, -1, 1, 3])
@pytest.mark.parametrize("beyond", [-1e-3, -3e-7, 0.0, 3e-7, 1e-3])
def test_quaternion_has_no_negative_w_at_half_turns(make_env, turn, beyond):
    env = make_env(4, "nominal")
    yaw = np.float32(turn * np.pi + beyond)
    state = env.reset(0)
    quaternion = split(env.observe_state25(state.replace(seen_sheet=state.seen_sheet.at[:, 2].set(yaw))))
    w, x, y, z = quaternion["sheet_quaternion"].T
    assert (w >= 0).all() and not x.any() and not y.any()
    np.testing.assert_allclose(w**2 + z**2, 1, atol=1e-6)
    np.testing.assert_allclose(np.abs(w * np.sin(yaw / 2) - z * np.cos(yaw / 2)), 0, atol=1e-6)  # the same turn


def test_it_tells_what_the_robot_knows_and_not_the_truth(make_env):
    """Biased joints and the seen sheet come through; the true pose behind them does not."""
    env = make_env(4, "real")
    state = env.reset(3)
    state = state.replace(seen_sheet=state.seen_sheet + 0.01)
    seen, parts = env.observe(state), split(env.observe_state25(state))
    for name in ("joint_pos", "joint_vel", "end_effector"):
        np.testing.assert_allclose(parts[name], getattr(seen, name), atol=1e-6, err_msg=name)
    np.testing.assert_allclose(parts["sheet_position"][:, :2], state.seen_sheet[:, :2], atol=1e-7)
    assert np.abs(np.asarray(state.params.joint_bias)).max() > 1e-3
    other = state.physics.replace(qpos=state.physics.qpos.at[:, 6:].add(0.1), qvel=state.physics.qvel.at[:, 6:].add(1))
    np.testing.assert_array_equal(env.observe_state25(state.replace(physics=other)), env.observe_state25(state))


def test_it_is_a_pure_function_that_jit_and_scan_take(make_env):
    env = make_env(4, physics="jax")
    state = env.reset(0)

    def rollout(state):
        return jax.lax.scan(lambda s, _: (s, env.observe_state25(s)), state, None, length=2)[1]

    np.testing.assert_array_equal(jax.jit(rollout)(state)[1], env.observe_state25(state))
    seen: Observation = jax.tree.map(lambda leaf: leaf[1], env.observe(state))
    np.testing.assert_allclose(state25(seen, env.task.geometry), env.observe_state25(state)[1], atol=1e-7)
