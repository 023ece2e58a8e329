"""Choosing and building a physics backend, and what each model of the native one holds."""

import jax
import numpy as np
import pytest

from mjx_so101 import ConfigError, PaperReturnEnv
from mjx_so101.physics import BACKENDS, default_backend, make_physics
from mjx_so101.physics.fields import ModelFields


def held_fields(env):
    """What the MuJoCo models of a native environment hold now, [env, ...] by field."""
    return {name: np.stack([getattr(m, name) for m in env.physics._models]) for name in ModelFields.NAMES}


def test_native_models_hold_the_fields_of_each_environment(make_env):
    env = make_env(4, "wild")
    for seed in (0, 1):  # the second draw must replace the first
        state = env.reset(seed)
        env.step(state, state.target)
        expected = jax.vmap(env.fields)(state.params)
        for name, value in held_fields(env).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
        assert len(np.unique(held_fields(env)["body_mass"][:, env.fields.sheet_body])) == 4


def test_only_the_episode_that_was_reset_gets_new_fields(make_env):
    env = make_env(4, "wild")
    state = env.reset(0)
    new, _ = env.step(state.replace(step=state.step.at[1].set(399)), state.target)
    env.step(new, new.target)
    expected = jax.vmap(env.fields)(new.params)
    np.testing.assert_allclose(held_fields(env)["dof_damping"], expected["dof_damping"], rtol=1e-6)
    changed = np.asarray(new.params.kp_scale != state.params.kp_scale)
    np.testing.assert_array_equal(changed, [False, True, False, False])


@pytest.mark.parametrize("physics", BACKENDS)
@pytest.mark.parametrize("num_envs", [0, -1])
def test_number_of_environments_must_be_positive(model, physics, num_envs):
    with pytest.raises(ConfigError, match=f"num_envs is {num_envs}"):
        make_physics(physics, model, num_envs)
    with pytest.raises(ConfigError, match=f"num_envs is {num_envs}"):
        PaperReturnEnv(num_envs, physics=physics)


def test_unknown_backend_suggests_the_near_one():
    with pytest.raises(ConfigError, match=r"'native', 'warp', 'jax'.*Did you mean 'warp'"):
        PaperReturnEnv(1, physics="wrap")


def test_default_on_a_cpu_is_native():
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    assert default_backend() == "native"
    assert PaperReturnEnv(1).physics.name == "native"


def test_native_names_the_scene_option_that_it_needs(model):
    with pytest.raises(ConfigError, match="acceleration_sensors"):
        make_physics("native", model, 1)


@pytest.mark.parametrize("option", ["contacts_per_env", "constraints_per_env"])
@pytest.mark.parametrize("size", [0, -1])
def test_buffers_of_no_size_are_refused(model, option, size):
    with pytest.raises(ConfigError, match=option):
        make_physics("warp", model, 2, **{option: size})


def test_native_threads_must_be_positive(make_env):
    with pytest.raises(ConfigError, match="threads"):
        make_physics("native", make_env().model, 2, threads=-1)


def test_native_step_inside_jit_is_refused(make_env):
    env = make_env()
    state = env.reset(0)
    with pytest.raises(ConfigError, match="'warp' or 'jax'"):
        jax.jit(env.step)(state, state.target)
    with pytest.raises(ConfigError, match="'warp' or 'jax'"):
        jax.jit(lambda s: env.step(s, np.zeros((4, 6), np.float32)))(state)


def test_jax_step_can_be_traced_and_scanned(make_env):
    env = make_env(4, physics="jax")
    state = env.reset(0)

    def rollout(state):
        return jax.lax.scan(lambda s, _: (env.step(s, s.target)[0], env.observe(s).sheet), state, None, length=3)

    last, sheets = jax.eval_shape(rollout, state)
    assert sheets.shape == (3, 4, 3)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), last) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
