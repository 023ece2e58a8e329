"""The rollout: the base policy bit for bit at alpha 0, bootstrapped time-outs, reward terms, and what is stored."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import ConfigError, TaskConfig
from mjx_so101.errors import Interrupted
from policies.base import make_base
from policies.residual import Residual, ResidualConfig, critic_vector
from train.rollout import BASE, MEAN, NOISE, SAMPLE, Mix, ResidualCosts, Roller

KEY = jax.random.PRNGKey(7)
COSTS = ResidualCosts(size=0.01, change=0.02)
GOAL = jnp.array([0.275, 0.175, np.pi / 2])


# -- alpha 0 is the base policy ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def jacobian(uninterrupted):
    """The Roller that trains over `jacobian`: 16 environments under `plain`, episodes of 40 steps."""
    return uninterrupted.trainer.roller


@pytest.fixture(scope="module")
def begin(jacobian):
    """A start with some environments close to the end of their episode."""
    carry = jacobian.start(KEY)
    return carry.replace(state=carry.state.replace(step=2 * jnp.arange(16, dtype=jnp.int32) + 1))


@pytest.fixture(scope="module")
def base_alone(jacobian, begin):
    """The base policy stepped by hand for 30 steps: true joint positions [30, env, 6] before each, and the end."""
    env, base, state = jacobian.env, jacobian.base, begin.state
    carry, chunk, rows = begin.base, jax.jit(base.chunk), []
    for _ in range(30):
        rows.append(np.asarray(state.physics.qpos[:, :6]))
        observation = env.observe(state)
        carry, targets = chunk(carry, observation, jax.random.PRNGKey(0), observation.new_episode)
        state, _ = env.step(state, targets[:, 0])
    return np.stack(rows), state


def assert_base_acted(roller, learner, begin, base_alone):
    end, (transition, _) = roller.roll(learner, begin, 30)
    joints = transition.vectors["privileged_state"][:, :, :6]  # the critic's vector begins with the true joints
    np.testing.assert_array_equal(joints, base_alone[0])
    for name in ("qpos", "qvel", "warmstart"):
        np.testing.assert_array_equal(getattr(end.state.physics, name), getattr(base_alone[1].physics, name))
    for name in ("target", "seen_sheet", "step", "key"):
        np.testing.assert_array_equal(getattr(end.state, name), getattr(base_alone[1], name))
    assert np.ptp(joints, axis=0).max() > 0.1  # the arm did move
    assert transition.done.any()  # over the ends of episodes


@pytest.mark.parametrize("mode", [SAMPLE, MEAN, NOISE])
def test_alpha_zero_is_the_base_policy_bit_for_bit(jacobian, shaken, begin, base_alone, mode):
    without = Residual(ResidualConfig(alpha=0.0, hidden=(16, 16)), jacobian.base.num_features)
    roller = jacobian.variant(mode)
    roller.mix = Mix.of(mode, without.authority, noise=0.5)
    assert Roller(jacobian.env, jacobian.base, without, None, mode, noise=0.5).mix == roller.mix
    assert_base_acted(roller, shaken(jacobian.residual.init(KEY), 0.5), begin, base_alone)


def test_base_mode_is_the_base_policy_bit_for_bit(jacobian, shaken, begin, base_alone):
    assert jacobian.residual.authority == 0.05
    assert_base_acted(jacobian.variant(BASE), shaken(jacobian.residual.init(KEY), 0.5), begin, base_alone)


def test_fresh_mean_action_is_the_base_policy_bit_for_bit(jacobian, begin, base_alone):
    assert_base_acted(jacobian.variant(MEAN), jacobian.residual.init(jax.random.PRNGKey(3)), begin, base_alone)


@pytest.mark.parametrize("mode", [SAMPLE, NOISE])
def test_samples_and_noise_leave_the_base_policy(jacobian, begin, base_alone, mode):
    end, _ = jacobian.variant(mode, noise=0.5).roll(jacobian.residual.init(KEY), begin, 30)
    assert (np.abs(end.state.physics.qpos - base_alone[1].physics.qpos).max(1) > 1e-3).all()


def test_unknown_mode_lists_the_valid_ones():
    with pytest.raises(ConfigError, match=r"mode is 'median'.*'mean', 'sample', 'noise', 'base'"):
        Mix.of("median", 0.05)


def test_rolling_on_equals_rolling_at_once(jacobian, begin, differences):
    """A rollout is cut into unrolls; where the cuts are changes nothing."""
    learner, carry, rows = jacobian.residual.init(KEY), begin, []
    for steps in (3, 1, 4):
        carry, kept = jacobian.roll(learner, carry, steps)
        rows.append(kept)
    whole, kept = jacobian.roll(learner, begin, 8)
    pieces = jax.tree.map(lambda *x: np.concatenate(x), *rows)
    assert not differences(kept, pieces)
    assert not differences(whole, carry)


@pytest.mark.slow
def test_a_rollout_inside_jit_does_what_the_host_does_and_uses_its_carry_up(make_env, shaken):
    """`warp` steps inside the scan; the buffers of the new carry are those of the old one."""
    ends = {}
    for physics in ("native", "warp"):
        env = make_env(2, "nominal", physics=physics)
        residual = Residual(ResidualConfig(hidden=(16,)), 0)
        roller = Roller(env, make_base("zero", env.task), residual, lambda pending, *_: pending.residual, mode=MEAN)
        learner = shaken(residual.init(KEY), 0.5)
        begin = roller.start(KEY)
        places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(begin)]
        ends[physics], kept = roller.roll(learner, begin, 3)
        assert np.abs(kept[-1]).min(1).max() > 0.01  # the residual acts
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(begin))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(ends["warp"])] == places
    for name in ("qpos", "qvel"):
        native, warp = (getattr(ends[physics].state.physics, name) for physics in ("native", "warp"))
        np.testing.assert_allclose(native, warp, atol=2e-3)
    np.testing.assert_allclose(ends["native"].state.target, ends["warp"].state.target, atol=1e-4)


# -- ends of episodes and reward terms -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def roller(make_env):
    """Large random residuals over `zero`, in episodes of six steps or until success; keeps all there is."""
    env = make_env(4, "plain", task=TaskConfig(episode_steps=6, stay_share=0.0))
    residual = Residual(ResidualConfig(hidden=(16,), initial_std=0.7), 0)

    def everything(pending, transition, result):
        return {"pending": pending, "transition": transition, "result": result}

    return Roller(env, make_base("zero", env.task), residual, everything, mode=SAMPLE, costs=COSTS)


@pytest.fixture(scope="module")
def learner(roller):
    return roller.residual.init(KEY)


def roll_singly(roller, learner, carry, steps):
    """As `roll`, without the need to compile what joins two steps."""
    rows = []
    for _ in range(steps):
        carry, kept = roller.roll(learner, carry, 1)
        rows.append(kept)
    return carry, jax.tree.map(lambda *x: np.concatenate(x), *rows)


@pytest.fixture(scope="module")
def rolled(roller, learner):
    """Three steps from: almost out of time; out of time and solved at once; solved early; anywhere else."""
    carry = roller.start(KEY)
    state = carry.state
    solved = jnp.array([False, True, True, False])
    pose = jnp.where(solved[:, None], GOAL, state.physics.qpos[:, 6:])
    state = state.replace(
        physics=state.physics.replace(qpos=state.physics.qpos.at[:, 6:].set(pose)),
        step=jnp.array([5, 5, 1, 1], jnp.int32),
        held=state.held.at[:, 0].set(jnp.where(solved, TaskConfig().hold_steps - 1, 0)),
    )
    return roll_singly(roller, learner, carry.replace(state=state), 3)[1]


def test_episodes_end_as_staged(rolled):
    result = rolled["result"]
    np.testing.assert_array_equal(result.truncated[0], [True, True, False, False])
    np.testing.assert_array_equal(result.terminated[0], [False, True, True, False])
    np.testing.assert_array_equal(result.success[0], [False, True, True, False])
    np.testing.assert_array_equal(rolled["transition"].done[0], [True, True, True, False])
    np.testing.assert_array_equal(rolled["pending"].carry.state.step[1], [0, 0, 0, 2])
    assert not result.done[1:].any()


def test_only_a_time_out_has_a_bootstrap_the_value_of_its_last_state(roller, learner, rolled):
    result, transition = rolled["result"], rolled["transition"]
    last = jax.tree.map(lambda x: x[0], result.last)
    vectors = jax.vmap(lambda s: critic_vector(roller.env.task, s, jnp.zeros(0)))(last)
    value = np.asarray(roller.residual.value(learner, {"privileged_state": vectors}))
    assert abs(value[0]) > 0.01
    np.testing.assert_allclose(transition.bootstrap[0], [value[0], 0, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(transition.bootstrap[1:], 0)
    np.testing.assert_array_equal(transition.reward, result.reward)


def test_reward_is_the_sum_of_its_named_terms(rolled):
    result = rolled["result"]
    expected = {"progress", "time", "success", "left", "invalid", "residual_size", "residual_change"}
    assert set(result.terms) == expected
    np.testing.assert_allclose(result.reward, sum(result.terms.values()), atol=1e-6)
    np.testing.assert_allclose(result.terms["success"][0], [0, 2.4, 2.4, 0], atol=1e-6)


def test_residual_costs_follow_size_and_change(rolled):
    """A new episode counts its change from zero."""
    r, result = rolled["pending"].residual, rolled["result"]
    assert np.abs(r).max() == 1  # some samples were clipped
    np.testing.assert_allclose(result.terms["residual_size"], -0.01 * (r**2).sum(-1), rtol=1e-5)
    before = np.concatenate([np.zeros((1, 4, 6)), r[:-1]])
    before[1:][result.done[:-1]] = 0
    np.testing.assert_allclose(result.terms["residual_change"], -0.02 * ((r - before) ** 2).sum(-1), rtol=1e-4)
    assert (result.terms["residual_change"][1] != -0.02 * (r[1] ** 2).sum(-1)).any()


def test_stored_actions_are_not_clipped_and_targets_are_blended(rolled):
    pending = rolled["pending"]
    np.testing.assert_array_equal(rolled["transition"].raw, pending.raw)
    assert np.abs(pending.raw).max() > 1
    np.testing.assert_array_equal(pending.residual, np.clip(pending.raw, -1, 1))
    np.testing.assert_allclose(pending.carry.state.target, pending.base_target + 0.05 * pending.residual, atol=1e-6)


def test_no_next_observation_is_stored(roller, rolled):
    """A transition holds both vectors of its own state, the action and its log-probability, reward, bootstrap and a
    flag: nothing else."""
    sizes = [x.shape for x in jax.tree.leaves(rolled["transition"])]
    assert all(shape[:2] == (3, 4) for shape in sizes)
    widths = sorted(shape[2] if len(shape) > 2 else 1 for shape in sizes)
    assert widths == sorted([*roller.residual.sizes.values(), 6, 1, 1, 1, 1])
    seen = roller.start(KEY).state.physics.qpos[:, :6]
    np.testing.assert_allclose(rolled["transition"].vectors["privileged_state"][0, :, :6], seen, atol=1e-6)


def test_actor_sees_its_own_last_residual(roller, rolled):
    """Laid out after the joints, the sheet, the effector and the leads: the last six entries over `zero`."""
    seen, done = rolled["transition"].vectors["state"][..., -6:], rolled["result"].done
    np.testing.assert_array_equal(seen[0], 0)
    expected = np.where(done[:-1, :, None], 0, rolled["pending"].residual[:-1])
    np.testing.assert_array_equal(seen[1:], expected)


def test_log_probability_is_that_of_the_policy_that_acted(roller, learner, rolled):
    transition = rolled["transition"]
    mean, std = roller.residual.logits(learner, transition.vectors)
    expected = -0.5 * ((transition.raw - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(transition.log_prob, expected.sum(-1), rtol=1e-4)


@pytest.fixture(scope="module")
def planned(jacobian, begin):
    """Twelve steps over `jacobian`, whose critic is told of the plan; each step before physics, and the carry after."""
    learner, carry, rows = jacobian.residual.init(KEY), begin, []
    for _ in range(12):
        pending = jacobian._act(learner, carry, jacobian.mix)
        carry, _ = jacobian._last(learner, pending, jacobian._physics(pending))
        rows.append({"after": carry, "pending": pending})
    return rows


def test_value_vectors_are_those_of_the_state_reached(jacobian, planned):
    """Also what the plan tells: the critic's input after a rollout is that of the step to come, bit for bit."""
    sizes = jacobian.residual.layout["privileged_state"]
    assert sizes["base_features"] > 0
    for now, then in itertools.pairwise(planned):
        vectors = jacobian.value_vectors(now["after"])["privileged_state"]
        np.testing.assert_array_equal(vectors, then["pending"].vectors["privileged_state"])


@pytest.mark.slow
def test_bootstrap_of_a_time_out_knows_the_plan_to_come(jacobian, planned):
    """The value of the last state, with features of the plan after it has seen that state."""
    learner, timed_out, rng = jacobian.residual.init(KEY), 0, np.random.default_rng(0)
    value = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), learner.value)
    learner = learner.replace(value=value)
    task, base = jacobian.env.task, jacobian.base
    settle = jax.jit(jacobian.settle)
    for row in planned:
        _, transition, result = settle(learner, row["pending"], jacobian._physics(row["pending"]))
        seen = jax.vmap(task.observe)(result.last)
        plan, _ = base.chunk(row["pending"].carry.base, seen, None, seen.new_episode)
        vectors = jax.vmap(lambda s, f: critic_vector(task, s, f))(result.last, base.features(plan))
        value = jacobian.residual.value(learner, {"privileged_state": vectors})
        old = jax.vmap(lambda s, f: critic_vector(task, s, f))(result.last, base.features(row["pending"].carry.base))
        stale = jacobian.residual.value(learner, {"privileged_state": old})
        ended = np.asarray(result.truncated & ~result.terminated)
        np.testing.assert_allclose(transition.bootstrap, np.where(ended, value, 0), atol=1e-5)
        timed_out += (np.abs(np.asarray(value - stale)) > 1e-3)[ended].sum()
    assert timed_out  # features of before would have been seen


# -- what is not finite --------------------------------------------------------------------------------------------
class SpoiltBase:
    """`zero` that asks for NaN in environment 2 from its second step on."""

    def __init__(self, base):
        self.base = base

    def __getattr__(self, name):
        return getattr(self.base, name)

    def for_env(self, env):
        return SpoiltBase(self.base.for_env(env))

    def chunk(self, carry, observation, key, reset_mask):
        carry, targets = self.base.chunk(carry, observation, key, reset_mask)
        return carry, targets.at[2, 0, 1].set(jnp.where(observation.new_episode[2], targets[2, 0, 1], jnp.nan))


def test_a_nan_of_the_base_stays_in_its_environment(make_env):
    env = make_env(4, "plain", task=TaskConfig(episode_steps=6, stay_share=0.0))
    residual = Residual(ResidualConfig(hidden=(16,), initial_std=0.7), 0)
    base = SpoiltBase(make_base("zero", env.task))
    roller = Roller(env, base, residual, lambda pending, *kept: (pending.residual, *kept), mode=SAMPLE)
    _, (r, transition, result) = roll_singly(roller, residual.init(KEY), roller.start(KEY), 4)
    bad = np.zeros((4, 4), bool)
    bad[1::2, 2] = True  # new episode, NaN, new episode, NaN
    np.testing.assert_array_equal(result.invalid, bad)
    np.testing.assert_array_equal(result.last.bad_target, bad)
    sound = np.isfinite(transition.vectors["state"]).all(-1) & np.isfinite(transition.raw).all(-1)
    np.testing.assert_array_equal(sound, ~bad)
    np.testing.assert_array_equal((r == 0).all(-1), bad)  # what is not known moves nothing
    assert np.isfinite(result.reward).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.last))


# -- stopped -------------------------------------------------------------------------------------------------------
def in_pieces(auto_reset, asked):
    """A Roller of which only what `_roll_in_pieces` needs is there; its scans are counted and give their steps."""
    roller = object.__new__(Roller)
    roller.env, roller.mix, roller.stopped = SimpleNamespace(auto_reset=auto_reset), None, asked
    roller._scan = lambda learner, carry, mix, steps: (carry + steps, {"step": carry + jnp.arange(steps)})
    return roller


@pytest.mark.parametrize(("steps", "asks"), [(20, 0), (120, 3), (100, 2)])
def test_jitted_evaluation_is_asked_to_stop_between_pieces_and_gives_the_whole(steps, asks):
    asked = []
    end, kept = in_pieces(False, lambda: asked.append(1))._roll_in_pieces(None, 0, steps)
    assert (end, len(asked)) == (steps, asks)
    np.testing.assert_array_equal(kept["step"], np.arange(steps))


def test_jitted_evaluation_stops_between_pieces():
    answers = iter([False, True])
    with pytest.raises(Interrupted):
        in_pieces(False, lambda: next(answers))._roll_in_pieces(None, 0, 400)


def test_jitted_training_is_never_interrupted():
    """Its carry is used up: there would be nothing left to save."""
    assert in_pieces(True, lambda: True)._roll_in_pieces(None, 0, 120)[0] == 120
