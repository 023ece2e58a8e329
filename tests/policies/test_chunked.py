"""The base policy around a model: a stand-in source, so that every executed action can be recomputed."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import PaperReturnEnv, TaskConfig
from mjx_so101.errors import ConfigError, Interrupted
from policies.base import make_base
from policies.chunked import NOISE_TAG, ChunkedPolicy
from policies.model import ModelOptions
from policies.residual import Residual, ResidualConfig
from train.rollout import BASE, MEAN, Roller

NUM_ENVS, HORIZON, STEPS = 9, 4, 26


class StandIn:
    """Answers with a function of the joint angles and the noise, and keeps what it was asked."""

    name, cameras, horizon, noise_shape = "stand-in", ("top", "wrist"), 6, (2, 3)
    training_range = state_range = None
    note = "it only stands in"

    def __init__(self):
        self.asked = []

    def chunk(self, images, state, noise):
        self.asked.append((images.shape, images.dtype, np.asarray(state), np.asarray(noise)))
        return answer(state, noise)

    def describe(self):
        return {}


def answer(state, noise):
    """[n, 6 actions, 6 joints]: each action a little further from the present angles."""
    step = jnp.arange(1, 7.0)[None, :, None]
    return state[:, None] + 0.01 * step * jnp.tanh(noise.sum((1, 2)))[:, None, None]


@pytest.fixture(scope="module")
def env():
    return PaperReturnEnv(NUM_ENVS, "native", "plain", task=TaskConfig(episode_steps=10))


@pytest.fixture(scope="module")
def played(env):
    """A rollout with automatic resets, all states kept."""
    source = StandIn()
    base = ChunkedPolicy(source, HORIZON)
    residual = Residual(ResidualConfig(alpha=0.5), base.num_features)

    def keep(pending, transition, result):
        return {
            "target": pending.base_target,
            "command": pending.carry.state.target,
            "position": pending.carry.base.position,
            "limit": pending.carry.base.limit,
            "done": result.done,
        }

    roller = Roller(env, base, residual, keep, mode=BASE)
    states, refill = [], roller.base.refill

    def recorded(carry, state):
        states.append(jax.tree.map(np.asarray, state))
        return refill(carry, state)

    roller.base.refill = recorded
    carry = roller.start(jax.random.PRNGKey(3))
    carry, kept = roller.roll(residual.init(jax.random.PRNGKey(0)), carry, STEPS)
    del roller.base.refill
    return roller, source, states, kept, carry


def test_each_executed_action_is_what_one_environment_alone_would_get(env, played):
    _, _, states, kept, _ = played
    observe = jax.jit(env.task.observe)
    renewals = 0
    for env_index in range(NUM_ENVS):
        for t in range(STEPS):
            age = kept["position"][t, env_index] - 1
            born = t - age
            state = jax.tree.map(lambda x: x[env_index], states[born])  # noqa: B023
            key = jax.random.fold_in(jnp.asarray(state.key), NOISE_TAG)
            noise = jax.random.normal(key, StandIn.noise_shape)[None]
            expected = answer(observe(state).joint_pos[None], noise)[0, age]
            np.testing.assert_allclose(kept["target"][t, env_index], expected, atol=1e-6)
            renewals += age == 0
    assert renewals > NUM_ENVS * STEPS / HORIZON


def test_no_chunk_outlives_its_episode(played):
    _, _, states, kept, _ = played
    started = np.stack([s.step == 0 for s in states])
    for t in range(STEPS):
        age = kept["position"][t] - 1
        assert (age[started[t]] == 0).all()
        for env in range(NUM_ENVS):
            assert not started[t - age[env] + 1 : t + 1, env].any()
    assert started[1:].any(), "no reset happened: the test shows nothing"
    assert (kept["position"] <= kept["limit"]).all() and kept["limit"].max() == HORIZON


def test_authority_zero_executes_the_model_s_targets_bit_for_bit(env, played):
    _, _, _, kept, _ = played
    low, high = (np.asarray(x, np.float32) for x in (env.task.kinematics.lower, env.task.kinematics.upper))
    np.testing.assert_array_equal(kept["command"], np.clip(kept["target"], low, high))


def test_the_model_is_asked_in_one_size_only(env, played):
    roller, source, _, _, _ = played
    assert roller.base.slots == 3  # ceil(1.15 * 9 / 4)
    for shape, dtype, state, noise in source.asked:
        assert shape == (3, 2, 240, 320, 3) and dtype == np.uint8
        assert state.shape == (3, 6) and noise.shape == (3, 2, 3)


def test_pictures_show_the_environments_that_are_renewed(env, played):
    roller, _, _, _, carry = played
    pictures = roller.base.pictures(carry.state)
    assert pictures.shape == (3, 2, 240, 320, 3)
    assert pictures[0, 0].std() > 5 and not np.array_equal(pictures[0], pictures[1])
    other = np.asarray(roller.base.look(carry.state, jnp.array([2, 1, 0]))[0])
    np.testing.assert_array_equal(other[0], pictures[2])


def test_features_tell_phase_and_direction(played):
    roller, _, _, _, carry = played
    features = np.asarray(roller.base.features(carry.base))
    assert features.shape == (NUM_ENVS, roller.base.num_features)
    np.testing.assert_allclose(features[:, 0], np.asarray(carry.base.position) / 6)


def test_one_model_serves_environments_of_different_numbers(env, played):
    roller, source, _, _, _ = played
    small = PaperReturnEnv(2, "native", auto_reset=False)
    other = roller.base.for_env(small)
    assert other.source is source and other.slots == 2 and roller.base.slots == 3
    state = small.reset(0)
    filled = other.refill(other.init(2), state)
    assert not np.asarray(filled.used_up).any()
    assert other.passes == 1


def test_inference_stats_count(played):
    roller, _, _, _, _ = played
    stats = roller.base.inference_stats()
    assert stats["inferences"] == 3 * stats["passes"] >= 3 * STEPS / HORIZON
    assert stats["inferences_per_s"] > 0


# -- bad input ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("horizon", [0, 7])
def test_horizon_outside_the_chunk(horizon):
    with pytest.raises(ConfigError, match=rf"horizon is {horizon}; .* 6 actions: give 1 to 6"):
        ChunkedPolicy(StandIn(), horizon)


def test_unknown_renderer():
    with pytest.raises(ConfigError, match=r"base_renderer is 'vulkan'; choose one of 'auto', 'quad', .*'madrona'"):
        ChunkedPolicy(StandIn(), 6, "vulkan")


def test_camera_that_the_scene_lacks(env):
    source = StandIn()
    source.cameras = ("top", "image_cam_7")
    with pytest.raises(ConfigError, match=r"wants camera 'image_cam_7'; the scene has top, wrist.*--camera-map KEY="):
        ChunkedPolicy(source, 6).for_env(env)


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        ("groot", {}, "needs --checkpoint"),
        ("remote", {}, "needs --url"),
        ("remote", {"url": "http://here"}, "tcp://"),
        ("grot", {}, "base is 'grot'; choose one of .*'groot'"),
    ],
)
def test_bases_that_lack_something(env, base, options, message):
    with pytest.raises(ConfigError, match=message):
        make_base(base, env.task, ModelOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "dtype is 'fp8'"),
        ({"horizon": 0}, "horizon is 0; it must be at least 1"),
        ({"micro_batch": -1}, "micro_batch is -1"),
        ({"retries": -1}, "retries is -1"),
        ({"jax_memory": 1.0}, "jax_memory is 1.0; give a share"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0"),
        ({"base_width": 8}, "base_width is 8; give 16 to 2048 pixels"),
        ({"base_height": 4000}, "base_height is 4000; give 16 to 2048 pixels"),
        ({"base_width": 320.5}, r"base_width is 320\.5; give a whole number"),
        ({"camera_map": ("top",)}, "camera_map holds 'top'; write KEY=CAMERA"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        ModelOptions(**options)


def test_camera_map():
    assert ModelOptions(camera_map=("image_cam_0=top",)).cameras() == {"image_cam_0": "top"}


def test_scripted_policies_need_no_binding(env):
    base = make_base("jacobian", env.task)
    assert base.for_env(env) is base
    residual = Residual(ResidualConfig(), base.num_features)
    assert Roller(env, base, residual, lambda *_: 0, mode=MEAN).base is base


def test_slow_refill_is_asked_to_stop_before_each_pass():
    base = object.__new__(ChunkedPolicy)
    base.slots, base.passes, base._in_use, passes = 2, 0, [], []
    base._begin, base._choose = lambda carry, state: (carry, 7), lambda carry, state: None
    base.look, base._store = lambda state, envs: (), lambda carry, *_: carry + 1
    base.source = SimpleNamespace(chunk=lambda: passes.append(1) or np.zeros(0))
    base.stopped = lambda: False
    assert base.refill(0, None) == len(passes) == 4
    base.stopped = lambda: len(passes) == 6
    with pytest.raises(Interrupted):
        base.refill(0, None)
    assert len(passes) == 6
