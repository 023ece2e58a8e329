"""The protocol that every base policy keeps: shapes, restarts, purity; and the list of names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import ConfigError
from policies.base import BASES, SCRIPTED, make_base

KEY = jax.random.PRNGKey(0)


@pytest.fixture(scope="module")
def env(make_env):
    return make_env(4, "plain")


@pytest.fixture(params=SCRIPTED)
def policy(request, env):
    return make_base(request.param, env.task)


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_names():
    assert SCRIPTED == ("zero", "jacobian", "oracle")
    assert set(BASES) == {*SCRIPTED, "groot", "remote"}


def test_unknown_name_lists_the_valid_ones(env):
    with pytest.raises(ConfigError, match=r"'zero', 'jacobian', 'oracle'.*Did you mean 'oracle'"):
        make_base("orakle", env.task)


def test_zero_repeats_the_last_target(env):
    policy = make_base("zero", env.task)
    state = env.reset(0)
    state, _ = env.step(state, state.target + 0.1)
    _, targets = policy.chunk(policy.init(4), env.observe(state), KEY, jnp.zeros(4, bool))
    np.testing.assert_array_equal(targets[:, 0], state.target)


def test_chunk_is_one_finite_target_for_each_environment(env, policy):
    carry = policy.init(4)
    new, targets = policy.chunk(carry, env.observe(env.reset(0)), KEY, jnp.zeros(4, bool))
    assert (policy.horizon, policy.jittable) == (1, True)
    assert targets.shape == (4, 1, 6) and targets.dtype == jnp.float32
    assert np.isfinite(targets).all()
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), carry)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == shapes


def test_features_are_as_long_as_promised(env, policy):
    carry, _ = policy.chunk(policy.init(4), env.observe(env.reset(0)), KEY, jnp.zeros(4, bool))
    features = policy.features(carry)
    assert features.shape == (4, policy.num_features)
    assert np.isfinite(features).all()


@pytest.mark.parametrize("name", ["jacobian", "oracle"])
def test_reset_mask_restarts_the_plan_of_ended_episodes_only(env, name):
    policy = make_base(name, env.task)
    chunk = jax.jit(policy.chunk)
    state, carry, nobody = env.reset(1), policy.init(4), jnp.zeros(4, bool)
    for _ in range(40):
        carry, targets = chunk(carry, env.observe(state), KEY, nobody)
        state, _ = env.step(state, targets[:, 0])
    observation = env.observe(state)
    fresh = chunk(policy.init(4), observation, KEY, nobody)
    kept = chunk(carry, observation, KEY, nobody)
    mixed = chunk(carry, observation, KEY, jnp.array([True, False, True, False]))
    for row, expected in enumerate((fresh, kept, fresh, kept)):
        assert leaves_equal(
            jax.tree.map(lambda x, row=row: x[row], mixed), jax.tree.map(lambda x, r=row: x[r], expected)
        )
    assert not leaves_equal(fresh[0], kept[0])


@pytest.mark.slow
def test_environments_do_not_influence_each_other(env, policy):
    observation = env.observe(env.reset(2))
    _, together = policy.chunk(policy.init(4), observation, KEY, jnp.zeros(4, bool))
    one = jax.tree.map(lambda x: x[2:3], observation)
    _, alone = policy.chunk(policy.init(1), one, KEY, jnp.zeros(1, bool))
    np.testing.assert_allclose(together[2], alone[0], atol=1e-5)


def test_chunk_can_be_traced(env, policy):
    observation = env.observe(env.reset(0))
    jaxpr = jax.make_jaxpr(policy.chunk)(policy.init(4), observation, KEY, jnp.zeros(4, bool))
    assert "callback" not in str(jaxpr)


@pytest.mark.parametrize("name", ["jacobian", "oracle"])
def test_plans_depend_on_what_is_seen_not_on_the_truth(env, name):
    policy = make_base(name, env.task)
    state = env.reset(3)
    observation = env.observe(state)
    elsewhere = observation.replace(sheet=observation.sheet + jnp.array([0.05, -0.05, 0.2]))
    chunk = jax.jit(policy.chunk)
    carries = [policy.init(4), policy.init(4)]
    for _ in range(8):
        carries[0], seen = chunk(carries[0], observation, KEY, jnp.zeros(4, bool))
        carries[1], moved = chunk(carries[1], elsewhere, KEY, jnp.zeros(4, bool))
    assert np.abs(np.asarray(seen - moved)).max(axis=(1, 2)).min() > 1e-3
