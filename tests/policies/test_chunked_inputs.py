"""What the model is shown belongs to the environment that executes its answer, whoever else is renewed with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101.task import TaskConfig
from policies.chunked import ChunkedPolicy
from policies.model import ModelOptions

ODD = 1
"""The environment that differs from the others."""


class Seer:
    """Answers with the brightness of the first picture in all actions and joints: 16 of them a chunk."""

    name, cameras, horizon, noise_shape, note = "seer", ("top", "wrist"), 16, (3,), ""
    training_range = state_range = None

    def chunk(self, images, state, noise):
        brightness = jnp.asarray(images[:, 0], jnp.float32).mean((1, 2, 3)) / 255
        return jnp.broadcast_to(brightness[:, None, None], (len(brightness), 16, 6))

    def describe(self):
        return {}


@pytest.fixture(scope="module")
def shown(make_env):
    """Function from a preset to environments that are renewed together, and the policy in small pictures."""
    built = {}

    def make(randomization, num_envs=3):
        if randomization not in built:
            env = make_env(num_envs, randomization, auto_reset=False)
            built[randomization] = env, ChunkedPolicy(Seer(), 16, size=(64, 48)).for_env(env)
        return built[randomization]

    return make


def equal_rows(state):
    """The first environment in every row, with the keys that the rows had."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), state).replace(key=state.key)


def with_odd_row(state, **params):
    """`state` with other parameters in row ODD."""
    changed = {name: getattr(state.params, name).at[ODD].set(value) for name, value in params.items()}
    return state.replace(params=state.params.replace(**changed))


def test_pictures_joints_and_chunk_are_of_the_same_environment(shown):
    env, policy = shown("nominal")
    state = equal_rows(env.reset(0))
    qpos = state.physics.qpos.at[ODD, 0].add(0.5).at[ODD, 6].add(0.4)  # arm turned, sheet out of sight
    state = state.replace(physics=state.physics.replace(qpos=qpos))
    images, joints, _ = (np.asarray(x) for x in policy.look(state, jnp.array([0, ODD, 2])))
    np.testing.assert_array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[1])
    np.testing.assert_allclose(joints, qpos[:, :6], atol=1e-6)
    turned, turned_joints, _ = (np.asarray(x) for x in policy.look(state, jnp.array([ODD, 2, 0])))
    np.testing.assert_array_equal(turned, images[[1, 2, 0]])
    np.testing.assert_array_equal(turned_joints, joints[[1, 2, 0]])
    filled = policy.refill(policy.init(3), state)
    expected = images[:, 0].mean((1, 2, 3)) / 255
    assert abs(expected[ODD] - expected[0]) > 1e-3
    np.testing.assert_allclose(np.asarray(filled.targets[:, 0, 0]), expected, atol=1e-5)


def test_joints_are_the_measured_ones(shown):
    env, policy = shown("nominal")
    bias = np.linspace(-0.02, 0.03, 6)
    state = with_odd_row(env.reset(0), joint_bias=bias)
    _, joints, _ = policy.look(state, jnp.arange(3))
    difference = np.asarray(joints) - np.asarray(state.physics.qpos[:, :6])
    np.testing.assert_allclose(difference, [np.zeros(6), bias, np.zeros(6)], atol=1e-6)


@pytest.mark.slow
def test_sensor_effects_are_those_of_each_environment(shown):
    env, policy = shown("nominal+looks")
    plain = {"exposure": 0.0, "image_noise": 0.0, "image_gamma": 1.0, "white_balance": 0.0, "image_blur": 0.0}
    state = equal_rows(env.reset(0))
    params = {name: jnp.full_like(getattr(state.params, name), value) for name, value in plain.items()}
    state = with_odd_row(state.replace(params=state.params.replace(**params)), exposure=1.0)
    images = np.asarray(policy.look(state, jnp.array([0, ODD, 2]))[0], float)
    np.testing.assert_array_equal(images[0], images[2])
    assert images[ODD].mean() > 1.2 * images[0].mean()


def test_sensor_and_model_noise_do_not_depend_on_the_others(shown):
    env, policy = shown("nominal+looks")
    state = env.reset(0)
    state = state.replace(params=state.params.replace(image_noise=jnp.full_like(state.params.image_noise, 0.1)))
    first = [np.asarray(x) for x in policy.look(state, jnp.array([0, 1, 2]))]
    other = [np.asarray(x) for x in policy.look(state, jnp.array([2, 0, 1]))]
    for a, b in zip(first, other, strict=True):
        np.testing.assert_array_equal(a, b[[1, 2, 0]])
    alike = equal_rows(state)
    images, _, noise = (np.asarray(x) for x in policy.look(alike, jnp.array([0, 1, 2])))
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(noise[0], noise[1])


# -- which chunks are renewed --------------------------------------------------------------------------------------
@pytest.mark.parametrize("executed", [5, 16])
def test_without_automatic_resets_all_are_renewed_together_and_run_whole(make_env, executed):
    env = make_env(3, "nominal", auto_reset=False)
    policy = ChunkedPolicy(Seer(), executed, size=(64, 48)).for_env(env)
    carry, state, passes = policy.init(3), env.reset(0), []
    for _ in range(2 * executed + 1):
        before = policy.passes
        carry = policy.refill(carry, state)
        carry, _ = policy.chunk(carry, None, None, None)
        state = state.replace(step=state.step + 1)
        passes.append(policy.passes - before)
        assert (np.asarray(carry.limit) == executed).all()
        assert len(set(np.asarray(carry.position).tolist())) == 1
    assert passes == ([1] + [0] * (executed - 1)) * 2 + [1]


def test_training_keeps_its_staggered_schedule(make_env):
    env = make_env(3, "nominal", task=TaskConfig(episode_steps=40))
    policy = ChunkedPolicy(Seer(), 16, size=(64, 48)).for_env(env)
    filled = policy.refill(policy.init(3), env.reset(0))
    assert policy.slots == 1 and len(set(np.asarray(filled.limit).tolist())) == 3


def test_features_of_a_chunk_that_is_used_up(shown):
    env, policy = shown("nominal")
    carry = policy.refill(policy.init(3), env.reset(0))
    carry = carry.replace(targets=jnp.arange(3 * 16 * 6.0).reshape(3, 16, 6))
    for _ in range(16):
        carry, _ = policy.chunk(carry, None, None, None)
    last = np.asarray(policy.features(carry))
    carry, target = policy.chunk(carry, None, None, None)
    np.testing.assert_array_equal(policy.features(carry), last)
    np.testing.assert_array_equal(last, [[1.0] + [0.0] * 6] * 3)
    np.testing.assert_array_equal(target[:, 0], carry.targets[:, -1])


def test_what_is_not_finite_is_passed_on(shown):
    """It is the task that holds the old target and counts: a zero from here would hide it."""
    env, policy = shown("nominal")
    carry = policy.refill(policy.init(3), env.reset(0))
    carry = carry.replace(targets=carry.targets.at[ODD, 0].set(jnp.nan).at[ODD, 1].set(jnp.inf))
    carry, first = policy.chunk(carry, None, None, None)
    _, second = policy.chunk(carry, None, None, None)
    assert np.isnan(first[ODD]).all() and np.isinf(second[ODD]).all()
    assert np.isfinite(first[0]).all() and np.isfinite(second[2]).all()


# -- the size of the pictures ----------------------------------------------------------------------------------------
def test_size_of_the_pictures(shown):
    env, policy = shown("nominal")
    assert policy.pictures(env.reset(0)).shape == (3, 2, 48, 64, 3)
    assert (ModelOptions().base_width, ModelOptions().base_height) == (320, 240)
