"""The residual: silent at the start, blind to the truth, bounded, and laid out as documented."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.acme import running_statistics

from mjx_so101 import ConfigError
from policies.base import SCRIPTED, make_base
from policies.residual import ACTOR_LAYOUT, CRITIC_LAYOUT, Residual, ResidualConfig, blend, layout_sizes
from train.rollout import Roller

KEY = jax.random.PRNGKey(0)


@pytest.fixture(scope="module")
def residual():
    return Residual(ResidualConfig(hidden=(16, 16)), 6)


@pytest.fixture(scope="module")
def learner(residual):
    return residual.init(KEY)


@pytest.fixture(scope="module")
def roller(uninterrupted):
    """The Roller that trains over `jacobian`: 16 environments."""
    return uninterrupted.trainer.roller


@pytest.fixture(scope="module")
def act(roller):
    return jax.jit(roller.act)


@pytest.fixture(scope="module")
def look(roller, act):
    """Function from a Carry to the vectors of actor and critic."""
    learner = roller.residual.init(KEY)
    return lambda carry: act(learner, carry, roller.mix).vectors


@pytest.fixture(scope="module")
def carry(roller):
    """A start with wrong calibration and a wrongly seen sheet."""
    carry, rng = roller.start(jax.random.PRNGKey(5)), np.random.default_rng(0)
    bias, seen = rng.normal(0, 0.02, (16, 6)), rng.normal(0, 0.01, (16, 3))
    params = carry.state.params.replace(joint_bias=jnp.asarray(bias, jnp.float32))
    return carry.replace(state=carry.state.replace(params=params, seen_sheet=carry.state.seen_sheet + seen))


def random_vectors(residual, rows, scale=1.0, seed=0):
    keys = jax.random.split(jax.random.PRNGKey(seed), 2)
    return {
        name: scale * jax.random.normal(key, (rows, size))
        for key, (name, size) in zip(keys, residual.sizes.items(), strict=True)
    }


# -- a fresh learner -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_fresh_mean_is_exactly_zero(residual, learner, scale):
    mean = residual.distribution.mode(residual.logits(learner, random_vectors(residual, 64, scale)))
    assert mean.shape == (64, 6)
    assert not np.asarray(mean).any()


def test_fresh_mean_stays_zero_when_the_input_statistics_change(residual, learner):
    for seed in range(3):
        seen = random_vectors(residual, 50, 7.0, seed)
        learner = learner.replace(normalizer=running_statistics.update(learner.normalizer, seen))
    assert float(np.abs(learner.normalizer.std["state"] - 1).max()) > 1
    mean = residual.distribution.mode(residual.logits(learner, random_vectors(residual, 64)))
    assert not np.asarray(mean).any()


def test_fresh_spread_is_the_configured_one():
    residual = Residual(ResidualConfig(hidden=(8,), initial_std=0.17), 0)
    vectors = random_vectors(residual, 20_000)
    logits = residual.logits(residual.init(KEY), vectors)
    samples = residual.distribution.sample_no_postprocessing(logits, KEY)
    np.testing.assert_allclose(np.std(samples, axis=0), 0.17, rtol=0.03)


def test_learner_has_no_weakly_typed_leaf(learner):
    """One would make every jitted function that takes the learner compile a second time."""
    weak = [jax.tree_util.keystr(k) for k, v in jax.tree_util.tree_leaves_with_path(learner) if v.weak_type]
    assert not weak


def test_other_keys_give_other_networks(residual, learner, differences):
    assert not differences(learner, residual.init(KEY))
    assert differences(learner, residual.init(jax.random.PRNGKey(1)))


# -- authority -----------------------------------------------------------------------------------------------------
def test_authority_is_alpha_times_scale():
    assert ResidualConfig().alpha == 0.5 and ResidualConfig().residual_scale == 0.1  # the defaults of design.md
    residual = Residual(ResidualConfig(alpha=0.25, residual_scale=0.2, hidden=(8,)), 0)
    base, r = jnp.linspace(-1, 1, 6), jnp.array([-1.0, -0.5, 0.0, 0.5, 1.0, 1.0])
    np.testing.assert_allclose(blend(base, r, residual.authority) - base, 0.05 * r, atol=1e-7)


def test_no_sample_moves_a_target_by_more_than_the_authority(roller, act, carry):
    wide = Residual(ResidualConfig(hidden=(16, 16), initial_std=30.0), roller.base.num_features)
    pending = act(wide.init(KEY), carry, roller.mix)
    assert float(jnp.abs(pending.raw).max()) > 1
    assert float(jnp.abs(pending.residual).max()) == 1
    moved = pending.carry.state.target - pending.base_target
    assert float(jnp.abs(moved).max()) <= 0.05 + 1e-6
    kinematics = roller.env.task.kinematics
    blended = np.clip(pending.base_target + 0.05 * pending.residual, kinematics.lower, kinematics.upper)
    np.testing.assert_allclose(pending.carry.state.target, blended, atol=1e-6)


@pytest.mark.parametrize("name", ["alpha", "residual_scale"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_bad_authority_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"{name} is {value}"):
        ResidualConfig(**{name: value})


@pytest.mark.parametrize(
    "bad",
    [{"initial_std": 0.0}, {"initial_std": float("nan")}, {"initial_std": float("inf")}, {"hidden": ()},
     {"hidden": (16, 0)}],
)  # fmt: skip
def test_bad_networks_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ResidualConfig(**bad)


# -- what it sees --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("base", SCRIPTED)
def test_layouts_add_up_to_the_vectors(make_env, base):
    env = make_env(4, "nominal")
    policy = make_base(base, env.task)
    residual = Residual(ResidualConfig(hidden=(16,)), policy.num_features)
    roller = Roller(env, policy, residual, None)
    learner, carry = residual.init(KEY), roller.start(KEY)
    vectors = jax.eval_shape(lambda c: roller.act(learner, c, roller.mix).vectors, carry)
    sizes = layout_sizes(roller.base.num_features)
    assert {k: (4, sum(v.values())) for k, v in sizes.items()} == {k: v.shape for k, v in vectors.items()}
    assert [*sizes["state"]] == [name for name, *_ in ACTOR_LAYOUT]
    assert [*sizes["privileged_state"]] == [name for name, *_ in CRITIC_LAYOUT]


def part(roller, vectors, which, name):
    """The entries called `name` of a vector, [env, size]."""
    sizes = layout_sizes(roller.base.num_features)[which]
    first = sum(size for other, size in list(sizes.items())[: list(sizes).index(name)])
    return np.asarray(vectors[which][:, first : first + sizes[name]])


def test_parts_stand_where_the_layout_says(roller, look, carry):
    state, vectors, goal = carry.state, look(carry), np.array(roller.env.task.geometry.goal)
    qpos, seen = np.asarray(state.physics.qpos), np.asarray(state.seen_sheet)
    bias, turn = np.asarray(state.params.joint_bias), np.pi / 2 - seen[:, 2]
    expected = {
        ("state", "joint_pos"): qpos[:, :6] + bias,
        ("state", "goal_vector"): 10 * (goal - seen[:, :2]),
        ("state", "goal_yaw"): np.stack([np.sin(2 * turn), np.cos(2 * turn)], -1),
        ("state", "last_residual"): np.zeros((16, 6)),
        ("state", "effector_height"): 10 * np.asarray(roller.env.observe(state).end_effector[:, 2:]),
        ("privileged_state", "joint_pos"): qpos[:, :6],
        ("privileged_state", "goal_vector"): 10 * (goal - qpos[:, 6:8]),
        ("privileged_state", "held"): np.zeros((16, 1)),
    }
    for (which, name), value in expected.items():
        np.testing.assert_allclose(part(roller, vectors, which, name), value, atol=1e-5, err_msg=name)
    assert np.abs(bias).max() > 0.003 and np.abs(seen - qpos[:, 6:]).max() > 0.001  # the truth is another


def hide_truth(state):
    """The same state as far as the robot can know, and another one in truth."""
    qpos = state.physics.qpos.at[:, 6:].add(jnp.array([0.03, -0.02, 0.3]))
    physics = state.physics.replace(qpos=qpos, qvel=state.physics.qvel.at[:, 6:].add(0.1))
    params = state.params.replace(
        sheet_mass_scale=state.params.sheet_mass_scale * 1.5, fingertip_friction=state.params.fingertip_friction * 0.5,
        kp_scale=state.params.kp_scale * 1.2, sheet_position_noise=state.params.sheet_position_noise + 0.01,
    )  # fmt: skip
    return state.replace(
        physics=physics, params=params, sheet_history=state.sheet_history + 0.05, held=state.held + 3,
        succeeded=~state.succeeded, success_step=state.success_step + 7,
    )  # fmt: skip


def test_actor_knows_nothing_of_the_truth_and_the_critic_does(look, carry):
    before, after = look(carry), look(carry.replace(state=hide_truth(carry.state)))
    np.testing.assert_array_equal(before["state"], after["state"])
    assert (np.asarray(before["privileged_state"] != after["privileged_state"]).sum(1) >= 15).all()


def test_actor_counts_joints_as_measured(look, carry):
    """The same measured angles from another calibration error and another true pose look the same."""
    state = carry.state
    qpos = state.physics.qpos.at[:, :6].add(-0.01)
    params = state.params.replace(joint_bias=state.params.joint_bias + 0.01)
    after = look(carry.replace(state=state.replace(physics=state.physics.replace(qpos=qpos), params=params)))
    np.testing.assert_allclose(look(carry)["state"], after["state"], atol=2e-5)
    assert np.abs(np.asarray(look(carry)["privileged_state"] - after["privileged_state"])).max() > 0.009


def test_actor_sees_the_seen_sheet(look, carry):
    state = carry.state
    after = look(carry.replace(state=state.replace(seen_sheet=state.seen_sheet + 0.01)))
    assert (np.asarray(look(carry)["state"]) != np.asarray(after["state"])).any(1).all()
    np.testing.assert_array_equal(look(carry)["privileged_state"][:, :10], after["privileged_state"][:, :10])
