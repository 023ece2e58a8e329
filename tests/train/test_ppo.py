"""PPO's arithmetic against formulas written out by hand, and whether it learns at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import ConfigError
from policies.residual import Residual, ResidualConfig
from train.ppo import PPO, Batch, PPOConfig
from train.rollout import Transition

T, N = 12, 8
SOUND = jnp.ones((T, N), bool)


@pytest.fixture(scope="module")
def ppo():
    config = PPOConfig(
        unroll=T, epochs=2, minibatches=4, discount=0.9, gae_lambda=0.8, entropy_cost=0.0, learning_rate=3e-3,
        final_learning_rate=3e-3,
    )  # fmt: skip
    return PPO(config, Residual(ResidualConfig(hidden=(16,)), 0), updates=100)


@pytest.fixture(scope="module")
def learner(ppo, shaken):
    """A learner whose mean depends on its input."""
    return shaken(ppo.residual.init(jax.random.PRNGKey(0)), 0.1)


def vectors(residual, shape, seed=0):
    keys = jax.random.split(jax.random.PRNGKey(seed), 2)
    return {
        name: jax.random.normal(key, (*shape, size))
        for key, (name, size) in zip(keys, residual.sizes.items(), strict=True)
    }


def sampled(ppo, learner, shape, seed=0):
    """Vectors, and raw actions drawn from the learner's distribution for them."""
    seen = vectors(ppo.residual, shape, seed)
    mean, std = jax.jit(ppo.residual.logits)(learner, seen)
    return seen, mean + std * jax.random.normal(jax.random.PRNGKey(seed + 1), mean.shape)


@pytest.fixture(scope="module")
def data(ppo, learner):
    seen, raw = sampled(ppo, learner, (T, N))
    rng = np.random.default_rng(0)
    done = jnp.asarray(rng.random((T, N)) < 0.2)
    reward, bootstrap = (jnp.asarray(rng.normal(size=(T, N)), jnp.float32) for _ in range(2))
    return Transition(seen, raw, log_prob(ppo, learner, seen, raw), reward, jnp.where(done, bootstrap, 0.0), done)


@pytest.fixture(scope="module")
def last(ppo):
    return vectors(ppo.residual, (N,), seed=9)


def log_prob(ppo, learner, seen, raw):
    """Log-density of a diagonal normal distribution, [...]."""
    mean, std = ppo.residual.logits(learner, seen)
    return (-0.5 * ((raw - mean) / std) ** 2 - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)


# -- advantages ----------------------------------------------------------------------------------------------------
def lambda_return(reward, done, value, discount, lambda_):
    """[T] lambda-return of one environment from its n-step returns (Sutton and Barto 2018, eq. 12.2).

    reward, done [T]; value [T + 1]. An n-step return ends with the episode.
    """
    steps, targets = len(reward), []
    for t in range(steps):
        total, weight, gained, factor = 0.0, 1.0, 0.0, 1.0
        for n in range(t, steps):
            gained += factor * reward[n]
            factor *= discount * (1 - done[n])
            final = n == steps - 1
            total += weight * (1 if final else 1 - lambda_) * (gained + factor * value[n + 1])
            weight *= lambda_
        targets.append(total)
    return np.array(targets)


def generalized_advantage(reward, done, value, discount, lambda_):
    """[T] sum over l of (discount lambda)^l delta, cut at the end of the episode (Schulman et al. 2016, eq. 16)."""
    delta = reward + discount * (1 - done) * value[1:] - value[:-1]
    advantages = []
    for t in range(len(reward)):
        total, factor = 0.0, 1.0
        for k in range(t, len(reward)):
            total += factor * delta[k]
            factor *= discount * lambda_ * (1 - done[k])
        advantages.append(total)
    return np.array(advantages)


def rows_by_hand(ppo, learner, data, last, formula):
    """[T * N] of `formula` over each environment."""
    value = np.concatenate([ppo.residual.value(learner, data.vectors), ppo.residual.value(learner, last)[None]])
    c = ppo.config
    reward, done = np.asarray(data.reward + c.discount * data.bootstrap), np.asarray(data.done, float)
    columns = [formula(reward[:, i], done[:, i], value[:, i], c.discount, c.gae_lambda) for i in range(N)]
    return np.stack(columns, 1), value


def test_value_targets_are_lambda_returns_and_values_plus_gae(ppo, learner, data, last):
    batch = ppo._batch(learner, data, last, SOUND)
    by_returns, value = rows_by_hand(ppo, learner, data, last, lambda_return)
    by_gae, _ = rows_by_hand(ppo, learner, data, last, generalized_advantage)
    np.testing.assert_allclose(by_returns, value[:-1] + by_gae, atol=1e-5)
    np.testing.assert_allclose(batch.value_target.reshape(T, N), by_returns, atol=1e-5)


def test_advantages_look_one_step_ahead_to_the_lambda_return(ppo, learner, data, last):
    """brax's `compute_gae` gives r + gamma G(t + 1) - V(t), as V-trace does: lambda does not weigh the first step."""
    batch = ppo._batch(learner, data, last, SOUND)
    target, value = rows_by_hand(ppo, learner, data, last, lambda_return)
    following = np.concatenate([target[1:], value[-1:]])
    reward = np.asarray(data.reward + ppo.config.discount * data.bootstrap)
    expected = reward + ppo.config.discount * (1 - np.asarray(data.done)) * following - value[:-1]
    np.testing.assert_allclose(batch.advantage.reshape(T, N), expected, atol=1e-5)


def test_a_timed_out_episode_is_worth_its_reward_and_its_discounted_bootstrap(ppo, learner, data, last):
    """Discounted as everything else is; nothing of the next episode may leak in."""
    done = jnp.zeros((T, N), bool).at[5].set(True)
    bootstrap = jnp.zeros((T, N)).at[5].set(3.0)
    batch = ppo._batch(learner, data._replace(done=done, bootstrap=bootstrap), last, SOUND)
    worth = data.reward[5] + ppo.config.discount * 3.0
    np.testing.assert_allclose(batch.value_target.reshape(T, N)[5], worth, atol=1e-5)
    value = ppo.residual.value(learner, data.vectors)
    np.testing.assert_allclose(batch.advantage.reshape(T, N)[5], worth - value[5], atol=1e-5)


def test_batch_holds_each_transition_once(ppo, learner, data, last):
    batch = ppo._batch(learner, data, last, SOUND)
    np.testing.assert_array_equal(batch.raw, data.raw.reshape(T * N, 6))
    np.testing.assert_array_equal(batch.weight, 1)


def test_old_log_probabilities_are_those_of_acting(ppo, learner, data, last):
    """Not those of the new input statistics: the update must not move them."""
    kept = data._replace(log_prob=data.log_prob + jnp.arange(T)[:, None])
    _, batch, *_ = jax.jit(ppo._begin)(learner, kept, last, jax.random.PRNGKey(0))
    np.testing.assert_array_equal(batch.log_prob, kept.log_prob.reshape(-1))


# -- the loss ------------------------------------------------------------------------------------------------------
def make_batch(ppo, learner, advantage, log_ratio=0.0, seed=3):
    """A batch at ratio exp(log_ratio) whose value targets are the values."""
    seen, raw = sampled(ppo, learner, (len(advantage),), seed)
    old = log_prob(ppo, learner, seen, raw) - log_ratio
    weight = jnp.ones(len(advantage))
    return Batch(seen, raw, old, jnp.asarray(advantage, jnp.float32), ppo.residual.value(learner, seen), weight)


def policy_gradient(ppo, learner, batch):
    def loss(policy):
        return ppo.loss({"policy": policy, "value": learner.value}, learner.normalizer, batch)[0]

    return jax.jit(jax.grad(loss))(learner.policy)


def assert_close_trees(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-5), a, b)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b)) > 1e-3


def test_at_ratio_one_the_gradient_is_the_policy_gradient(ppo, learner):
    advantage = np.array([3.0, -1.0, 0.5, 2.0, -2.5, 0.0])
    batch = make_batch(ppo, learner, advantage)
    normalized = (advantage - advantage.mean()) / advantage.std()

    def expected(policy):
        return -jnp.mean(normalized * log_prob(ppo, learner.replace(policy=policy), batch.vectors, batch.raw))

    assert_close_trees(policy_gradient(ppo, learner, batch), jax.jit(jax.grad(expected))(learner.policy))


@pytest.mark.parametrize(("log_ratio", "kept"), [(1.0, 1), (-1.0, 0)])
def test_rows_that_moved_too_far_the_right_way_are_clipped(ppo, learner, log_ratio, kept):
    """Above the clip only the row with a negative advantage still pushes; below it only the positive one."""
    sign = np.array([1.0, -1.0])
    batch = make_batch(ppo, learner, sign, log_ratio)

    def expected(policy):
        ratio = jnp.exp(log_prob(ppo, learner.replace(policy=policy), batch.vectors, batch.raw) - batch.log_prob)
        return -ratio[kept] * sign[kept] / 2

    assert_close_trees(policy_gradient(ppo, learner, batch), jax.jit(jax.grad(expected))(learner.policy))
    _, metrics = ppo.loss({"policy": learner.policy, "value": learner.value}, learner.normalizer, batch)
    assert float(metrics["clip_fraction"]) == 1


def test_loss_adds_value_error_and_takes_off_entropy(ppo, learner):
    batch = make_batch(ppo, learner, np.array([1.0, -1.0, 0.3, 0.2]))
    batch = batch.replace(value_target=batch.value_target + 2.0)
    parameters = {"policy": learner.policy, "value": learner.value}
    config = PPOConfig(value_cost=0.25, entropy_cost=0.7)
    total, metrics = PPO(config, ppo.residual, updates=1).loss(parameters, learner.normalizer, batch)
    _, std = ppo.residual.logits(learner, batch.vectors)
    entropy = float(jnp.mean(jnp.sum(0.5 * jnp.log(2 * jnp.pi * jnp.e * std**2), -1)))
    assert float(metrics["value_loss"]) == pytest.approx(4.0, rel=1e-4)
    assert float(metrics["entropy"]) == pytest.approx(entropy, rel=1e-4)
    assert float(total) == pytest.approx(float(metrics["policy_loss"]) + 0.25 * 4.0 - 0.7 * entropy, rel=1e-4)
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-5)


# -- what is not finite --------------------------------------------------------------------------------------------
def spoil(data, what):
    """The data with NaN or inf in row [3, 2]."""
    if what == "vectors":
        return data._replace(vectors={**data.vectors, "state": data.vectors["state"].at[3, 2, 0].set(jnp.nan)})
    if what == "critic":
        name = "privileged_state"
        return data._replace(vectors={**data.vectors, name: data.vectors[name].at[3, 2, 5].set(jnp.inf)})
    return data._replace(**{what: getattr(data, what).at[3, 2].set(jnp.nan)})


COUNTS = {
    "vectors": "bad_vectors",
    "critic": "bad_vectors",
    "raw": "bad_actions",
    "log_prob": "bad_log_probs",
    "reward": "bad_rewards",
    "bootstrap": "bad_rewards",
}


@pytest.mark.parametrize("what", COUNTS)
def test_an_update_never_takes_in_a_row_that_is_not_finite(ppo, learner, data, last, what):
    update = jax.jit(ppo._update)
    after, _, metrics = update(learner, ppo.init(learner), spoil(data, what), last, jax.random.PRNGKey(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert int(after.normalizer.count) == T * N - 1
    assert {name: int(metrics[name]) for name in set(COUNTS.values())} == {
        name: int(name == COUNTS[what]) for name in set(COUNTS.values())
    }
    assert int(metrics["bad_rows"]) in (1, 2)  # the one before it may lack its next value
    assert int(metrics["skipped_updates"]) == 0
    assert np.isfinite(float(metrics["policy_loss"]) + float(metrics["value_loss"]))


def test_rows_left_out_change_nothing_for_the_others(ppo, learner, data, last):
    """An environment with one bad row ends there: the others keep their advantages, and its own earlier rows learn
    from what came before."""
    clean = ppo._batch(learner, data, last, SOUND)
    sound = SOUND.at[6, 4].set(False)
    batch = ppo._batch(learner, data, last, sound)
    weight, advantage, before = (np.asarray(x).reshape(T, N) for x in (batch.weight, batch.advantage, clean.advantage))
    np.testing.assert_array_equal(weight == 0, ~np.asarray(sound))
    others = np.arange(N) != 4
    np.testing.assert_array_equal(advantage[:, others], before[:, others])
    np.testing.assert_array_equal(advantage[7:, 4], before[7:, 4])
    value = ppo.residual.value(learner, data.vectors)
    reward = data.reward[5, 4] + ppo.config.discount * data.bootstrap[5, 4]
    one_step = reward + ppo.config.discount * (1 - data.done[5, 4]) * value[6, 4] - value[5, 4]
    np.testing.assert_allclose(advantage[5, 4], one_step, atol=1e-5)


def test_loss_is_the_mean_over_rows_with_weight(ppo, learner):
    advantage = np.array([3.0, -1.0, 0.5, 2.0, -2.5, 0.0])
    batch = make_batch(ppo, learner, advantage)
    batch = batch.replace(value_target=batch.value_target + 1.0)
    weighted = batch.replace(weight=jnp.array([1.0, 1, 1, 1, 0, 0]), log_prob=batch.log_prob.at[4].set(-1e30))
    some = jax.tree.map(lambda x: x[:4], batch)
    parameters = {"policy": learner.policy, "value": learner.value}
    for a, b in zip(*(ppo.loss(parameters, learner.normalizer, x)[1].values() for x in (weighted, some)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert_close_trees(policy_gradient(ppo, learner, weighted), policy_gradient(ppo, learner, some))


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(ppo, learner, data, last, differences):
    """Here the critic gives finite values whose squared error is not."""
    huge = learner.replace(value=jax.tree.map(lambda x: jnp.sign(x + 1e-9) * 1e25, learner.value))
    after, opt_state, metrics = ppo.update(huge, ppo.init(huge), data, last, jax.random.PRNGKey(0))
    assert int(metrics["skipped_updates"]) == 2 * 4  # all of them
    assert int(metrics["bad_rows"]) == 0
    changed = differences(huge, after)
    assert changed and all(name.startswith(".normalizer") for name in changed)
    _, _, metrics = ppo.update(learner, opt_state, data, last, jax.random.PRNGKey(0))
    assert int(metrics["skipped_updates"]) == 0  # counted once


# -- updates -------------------------------------------------------------------------------------------------------
def test_update_changes_every_network_and_counts_the_rows(ppo, learner, data, last, differences):
    after, opt_state, metrics = ppo.update(learner, ppo.init(learner), data, last, jax.random.PRNGKey(0))
    changed = differences(learner, after)
    for network in ("policy", "value"):
        count = len(jax.tree.leaves(getattr(learner, network)))
        assert sum(name.startswith(f".{network}") for name in changed) == count, (network, changed)
    assert int(after.normalizer.count) == T * N
    np.testing.assert_allclose(after.normalizer.mean["state"], np.mean(data.vectors["state"], axis=(0, 1)), atol=1e-5)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert jax.tree.structure(opt_state) == jax.tree.structure(ppo.init(learner))


def test_update_is_a_function_of_its_key(ppo, learner, data, last, differences):
    def learned(seed):
        return ppo.update(learner, ppo.init(learner), data, last, jax.random.PRNGKey(seed))[0]

    assert not differences(learned(0), learned(0))
    assert differences(learned(0), learned(1))


def test_learning_rate_falls_linearly_over_the_run(ppo, learner):
    """Adam's step on a constant gradient is the learning rate itself."""
    config = PPOConfig(epochs=2, minibatches=5, learning_rate=4e-3, final_learning_rate=1e-3)
    ppo = PPO(config, ppo.residual, updates=3)
    parameters = {"policy": learner.policy, "value": learner.value}
    gradient, state, rates = jax.tree.map(jnp.ones_like, parameters), ppo.init(learner), []
    update = jax.jit(ppo.optimizer.update)
    for _ in range(3 * 2 * 5 + 1):
        step, state = update(gradient, state, parameters)
        rates.append(-float(jax.tree.leaves(step)[0].ravel()[0]))
    np.testing.assert_allclose(rates, np.linspace(4e-3, 1e-3, 31), rtol=1e-3)


def test_losses_fall_on_a_fixed_batch(ppo, learner, data, last):
    """A bandit: every step ends its episode, so the value targets are the rewards and stay the same."""
    data = data._replace(done=jnp.ones((T, N), bool))
    opt_state, losses = ppo.init(learner), []
    for seed in range(15):
        learner, opt_state, metrics = ppo.update(learner, opt_state, data, last, jax.random.PRNGKey(seed))
        losses.append({name: float(value) for name, value in metrics.items()})
    assert losses[-1]["value_loss"] < 0.5 * losses[0]["value_loss"]
    assert losses[-1]["policy_loss"] < losses[0]["policy_loss"] - 0.01


def test_actions_with_positive_advantage_get_more_likely(ppo, learner, last):
    """Reward is the first entry of the action: its mean rises, and the others stay about where they are."""
    opt_state, means = ppo.init(learner), []
    for seed in range(12):
        seen, raw = sampled(ppo, learner, (T, N), seed)
        before = log_prob(ppo, learner, seen, raw)
        data = Transition(seen, raw, before, raw[..., 0], jnp.zeros((T, N)), jnp.ones((T, N), bool))
        means.append(np.asarray(ppo.residual.logits(learner, seen)[0]).mean((0, 1)))
        learner, opt_state, _ = ppo.update(learner, opt_state, data, last, jax.random.PRNGKey(seed))
        gain = np.asarray(log_prob(ppo, learner, seen, raw) - before)
        centred = np.asarray(raw[..., 0] - raw[..., 0].mean())
        if seed > 0:  # the first update also changes the input statistics a lot
            assert np.corrcoef(gain.ravel(), centred.ravel())[0, 1] > 0.2
    rise = means[-1] - means[0]
    assert rise[0] > 0.1
    assert rise[0] > 2 * np.abs(rise[1:]).max()


@pytest.mark.parametrize(
    ("name", "value"),
    [("unroll", 0), ("epochs", 0), ("minibatches", -1), ("learning_rate", 0.0), ("learning_rate", float("nan")),
     ("final_learning_rate", -1e-4),
     ("clip", -0.1), ("max_grad_norm", float("inf")), ("discount", 1.1), ("gae_lambda", -0.1),
     ("discount", float("nan"))],
)  # fmt: skip
def test_bad_hyper_parameters_are_named(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        PPOConfig(**{name: value})
