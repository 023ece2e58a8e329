"""PPO for the residual: advantages, the clipped loss, and the update over epochs and minibatches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from brax.training import gradients
from brax.training.acme import running_statistics
from brax.training.agents.ppo.losses import compute_gae

from mjx_so101.errors import ConfigError
from policies.residual import Learner, Residual
from train.rollout import Transition


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters of PPO (Schulman et al. 2017, arXiv:1707.06347)."""

    unroll: int = 32
    """Control steps of each environment between updates."""
    epochs: int = 4
    minibatches: int = 8
    learning_rate: float = 1e-3
    """At the start; it falls linearly ..."""
    final_learning_rate: float = 1e-4
    """... to this one at the end of the run."""
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_cost: float = 0.5
    entropy_cost: float = 0.0
    max_grad_norm: float = 1.0
    residual_cost: float = 0.0009
    """Cost of |r|^2 in each step: a small residual is preferred."""
    residual_change_cost: float = 0.0006
    """Cost of the squared change of r from step to step."""

    def __post_init__(self) -> None:
        for name in ("unroll", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("learning_rate", "final_learning_rate", "clip", "max_grad_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite and greater than 0.")
        for name in ("value_cost", "entropy_cost", "residual_cost", "residual_change_cost"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite and at least 0.")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in [0, 1].")


@flax.struct.dataclass
class Batch:
    """Flattened transitions with what the loss needs, each [rows, ...]."""

    vectors: dict[str, jax.Array]
    raw: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    value_target: jax.Array
    weight: jax.Array  # 1, or 0 for a row that must not be learned from


class PPO:
    """The learner's side: optimizer and jitted update for a `Residual`."""

    def __init__(self, config: PPOConfig, residual: Residual, updates: int):
        """updates: calls of `update` in the whole run, over which the learning rate falls."""
        self.config, self.residual = config, residual
        steps = updates * config.epochs * config.minibatches
        rate = optax.linear_schedule(config.learning_rate, config.final_learning_rate, steps)
        adam = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate))
        self.optimizer = optax.apply_if_finite(adam, max_consecutive_errors=_NEVER)  # else: no step, but counted
        self._gradient_step = gradients.gradient_update_fn(self.loss, self.optimizer, pmap_axis_name=None, has_aux=True)
        # XLA for CPUs compiles gradients of convolutions well outside loops only: 30 times faster than in a scan
        from_host = residual.render is not None and jax.default_backend() == "cpu"
        self.update = self._update_from_host if from_host else jax.jit(self._update)
        self._jitted_begin, self._jitted_minibatch = jax.jit(self._begin), jax.jit(self._minibatch)

    def init(self, learner: Learner) -> optax.OptState:
        """Optimizer state for the learner's parameters."""
        return self.optimizer.init(_parameters(learner))

    def _update(
        self, learner: Learner, opt_state: optax.OptState, data: Transition, last: dict[str, jax.Array], key: jax.Array
    ) -> tuple[Learner, optax.OptState, dict[str, jax.Array]]:
        """One PPO update from transitions [time, env, ...]; `last` are the vectors after the last step."""
        learner, batch, orders, faults = self._begin(learner, data, last, key)

        def minibatch(carry, rows):
            return self._minibatch(carry, learner.normalizer, batch, rows)

        (parameters, after), metrics = jax.lax.scan(minibatch, (_parameters(learner), opt_state), orders)
        metrics = {**_mean_of_finite(metrics), **faults, **_skipped(opt_state, after)}
        return learner.replace(**parameters), after, metrics

    def _update_from_host(
        self, learner: Learner, opt_state: optax.OptState, data: Transition, last: dict[str, jax.Array], key: jax.Array
    ) -> tuple[Learner, optax.OptState, dict[str, jax.Array]]:
        """`_update` with one call for each minibatch."""
        learner, batch, orders, faults = self._jitted_begin(learner, data, last, key)
        carry, seen = (_parameters(learner), opt_state), []
        for rows in orders:
            carry, metrics = self._jitted_minibatch(carry, learner.normalizer, batch, rows)
            seen.append(metrics)
        parameters, after = carry
        metrics = _mean_of_finite(jax.tree.map(lambda *x: jnp.stack(x), *seen))
        return learner.replace(**parameters), after, {**metrics, **faults, **_skipped(opt_state, after)}

    def _begin(
        self, learner: Learner, data: Transition, last: dict[str, jax.Array], key: jax.Array
    ) -> tuple[Learner, Batch, jax.Array, dict[str, jax.Array]]:
        """The learner with new statistics, what to learn from, the rows [epochs * minibatches, rows] to take, and how
        many rows are left out because of what."""
        data, faults = _without_faults(data)
        sound = faults.pop("sound")
        counted = {name: data.vectors[name] for name in self.residual.sizes}  # pixels need no statistics
        learner = learner.replace(normalizer=_counted(learner.normalizer, counted, sound))
        batch = self._batch(learner, data, last, sound)
        faults["bad_rows"] = jnp.sum(batch.weight == 0)
        rows = batch.raw.shape[0]
        keys = jax.random.split(key, self.config.epochs)
        orders = jnp.stack([jax.random.permutation(key, rows) for key in keys])
        return learner, batch, orders.reshape(self.config.epochs * self.config.minibatches, -1), faults

    def _minibatch(self, carry: tuple[Any, optax.OptState], normalizer, batch: Batch, rows: jax.Array):
        """One step of the optimizer on some rows; carry: parameters and optimizer state. Gives them and metrics."""
        parameters, opt_state = carry
        part = jax.tree.map(lambda x: x[rows], batch)
        (_, metrics), parameters, opt_state = self._gradient_step(
            parameters, normalizer, part, optimizer_state=opt_state
        )
        return (parameters, opt_state), metrics

    def _batch(self, learner: Learner, data: Transition, last: dict[str, jax.Array], sound: jax.Array) -> Batch:
        """Advantages and value targets; `sound` [time, env] says which rows may be learned from.

        A time-out counts as an end here, because its bootstrap joins the reward. Rows that are left out cut the sum of
        the advantages, as do those whose next value is not finite. The log-probabilities are those of the policy that
        acted, under the input statistics of that time; the new statistics shift the first ratios a little away from 1.
        """
        config = self.config
        values = jnp.concatenate([self.residual.value(learner, data.vectors), self.residual.value(learner, last)[None]])
        known = jnp.isfinite(values)
        learned = sound & known[:-1] & (known[1:] | data.done)
        values = jnp.where(known, values, 0.0)
        # brax's advantage is r + gamma * (lambda-return of the next state) - V, as V-trace has it, not GAE's sum
        targets, advantages = compute_gae(
            truncation=1.0 - learned,
            termination=data.done.astype(jnp.float32),
            rewards=data.reward + config.discount * data.bootstrap,
            values=values[:-1],
            bootstrap_value=values[-1],
            lambda_=config.gae_lambda,
            discount=config.discount,
        )
        weight = learned.astype(jnp.float32)
        batch = Batch(data.vectors, data.raw, data.log_prob, advantages, targets, weight)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def loss(self, parameters: dict[str, Any], normalizer, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Clipped surrogate + value error - entropy; advantages are normalized over the minibatch."""
        config = self.config
        learner = Learner(normalizer=normalizer, **parameters)

        def mean(x: jax.Array) -> jax.Array:
            return jnp.sum(batch.weight * x) / jnp.maximum(jnp.sum(batch.weight), 1.0)

        logits = self.residual.logits(learner, batch.vectors)
        log_ratio = self.residual.distribution.log_prob(logits, batch.raw) - batch.log_prob
        log_ratio = jnp.where(batch.weight > 0, log_ratio, 0.0)
        ratio = jnp.exp(log_ratio)
        centred = batch.advantage - mean(batch.advantage)
        advantage = centred / (jnp.sqrt(mean(centred**2)) + 1e-8)
        clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        policy_loss = -mean(jnp.minimum(ratio * advantage, clipped * advantage))
        value_loss = mean((self.residual.value(learner, batch.vectors) - batch.value_target) ** 2)
        entropy = mean(self.residual.distribution.entropy(logits, jax.random.PRNGKey(0)))
        total = policy_loss + config.value_cost * value_loss - config.entropy_cost * entropy
        return total, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "kl": mean(ratio - 1 - log_ratio),
            "clip_fraction": mean(jnp.abs(ratio - 1) > config.clip),
        }


_NEVER = 2**31 - 1


def _without_faults(data: Transition) -> tuple[Transition, dict[str, jax.Array]]:
    """The transitions with zeros in rows that are not finite; which rows are sound [time, env], and how many are not
    because of their vectors, their action, its log-probability, or their reward or bootstrap."""

    def finite(x: jax.Array) -> jax.Array:
        return jnp.all(jnp.isfinite(x).reshape(*data.done.shape, -1), -1)

    vectors = [value for value in data.vectors.values() if jnp.issubdtype(value.dtype, jnp.floating)]
    checks = {
        "bad_vectors": [*vectors],
        "bad_actions": [data.raw],
        "bad_log_probs": [data.log_prob],
        "bad_rewards": [data.reward, data.bootstrap],
    }
    good = {name: jnp.all(jnp.stack([finite(x) for x in parts]), 0) for name, parts in checks.items()}
    sound = jnp.all(jnp.stack([*good.values()]), 0)

    def clean(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(sound.reshape(*sound.shape, *[1] * (x.ndim - 2)), x, 0.0)

    counts = {name: jnp.sum(~rows) for name, rows in good.items()}
    return jax.tree.map(clean, data), {"sound": sound, **counts}


def _counted(statistics, vectors: dict[str, jax.Array], sound: jax.Array):
    """Input statistics with the sound rows of `vectors`; brax divides by zero where there are none."""
    updated = running_statistics.update(statistics, vectors, weights=sound.astype(jnp.float32))
    return jax.tree.map(lambda new, old: jnp.where(jnp.any(sound), new, old), updated, statistics)


def _mean_of_finite(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Means over minibatches; those that were skipped are counted by `_skipped`."""
    return jax.tree.map(jnp.nanmean, metrics)


def _skipped(before: optax.OptState, after: optax.OptState) -> dict[str, jax.Array]:
    """How many steps of the optimizer were left out because a gradient was not finite."""
    return {"skipped_updates": after.total_notfinite - before.total_notfinite}


def _parameters(learner: Learner) -> dict[str, Any]:
    return {"policy": learner.policy, "value": learner.value}
