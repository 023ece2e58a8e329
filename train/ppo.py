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
    entropy_cost: float = 1e-3
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


class PPO:
    """The learner's side: optimizer and jitted update for a `Residual`."""

    def __init__(self, config: PPOConfig, residual: Residual, updates: int):
        """updates: calls of `update` in the whole run, over which the learning rate falls."""
        self.config, self.residual = config, residual
        steps = updates * config.epochs * config.minibatches
        rate = optax.linear_schedule(config.learning_rate, config.final_learning_rate, steps)
        self.optimizer = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate))
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
        learner, batch, orders = self._begin(learner, data, last, key)

        def minibatch(carry, rows):
            return self._minibatch(carry, learner.normalizer, batch, rows)

        (parameters, opt_state), metrics = jax.lax.scan(minibatch, (_parameters(learner), opt_state), orders)
        return learner.replace(**parameters), opt_state, jax.tree.map(jnp.mean, metrics)

    def _update_from_host(
        self, learner: Learner, opt_state: optax.OptState, data: Transition, last: dict[str, jax.Array], key: jax.Array
    ) -> tuple[Learner, optax.OptState, dict[str, jax.Array]]:
        """`_update` with one call for each minibatch."""
        learner, batch, orders = self._jitted_begin(learner, data, last, key)
        carry, seen = (_parameters(learner), opt_state), []
        for rows in orders:
            carry, metrics = self._jitted_minibatch(carry, learner.normalizer, batch, rows)
            seen.append(metrics)
        parameters, opt_state = carry
        return learner.replace(**parameters), opt_state, jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *seen)

    def _begin(
        self, learner: Learner, data: Transition, last: dict[str, jax.Array], key: jax.Array
    ) -> tuple[Learner, Batch, jax.Array]:
        """The learner with new statistics, what to learn from, and the rows [epochs * minibatches, rows] to take."""
        counted = {name: data.vectors[name] for name in self.residual.sizes}  # pixels need no statistics
        learner = learner.replace(normalizer=running_statistics.update(learner.normalizer, counted))
        batch = self._batch(learner, data, last)
        rows = batch.raw.shape[0]
        keys = jax.random.split(key, self.config.epochs)
        orders = jnp.stack([jax.random.permutation(key, rows) for key in keys])
        return learner, batch, orders.reshape(self.config.epochs * self.config.minibatches, -1)

    def _minibatch(self, carry: tuple[Any, optax.OptState], normalizer, batch: Batch, rows: jax.Array):
        """One step of the optimizer on some rows; carry: parameters and optimizer state. Gives them and metrics."""
        parameters, opt_state = carry
        part = jax.tree.map(lambda x: x[rows], batch)
        (_, metrics), parameters, opt_state = self._gradient_step(
            parameters, normalizer, part, optimizer_state=opt_state
        )
        return (parameters, opt_state), metrics

    def _batch(self, learner: Learner, data: Transition, last: dict[str, jax.Array]) -> Batch:
        """Log-probabilities, advantages and value targets. A time-out counts as an end here, because its
        bootstrap is already in the reward."""
        config = self.config
        values = self.residual.value(learner, data.vectors)
        targets, advantages = compute_gae(
            truncation=jnp.zeros_like(data.reward),
            termination=data.done.astype(jnp.float32),
            rewards=data.reward,
            values=values,
            bootstrap_value=self.residual.value(learner, last),
            lambda_=config.gae_lambda,
            discount=config.discount,
        )
        log_prob = self._log_prob(learner, data)
        batch = Batch(data.vectors, data.raw, log_prob, advantages, targets)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def _log_prob(self, learner: Learner, data: Transition) -> jax.Array:
        """[time, env]; step by step if there are pictures, whose features would not fit all at once."""

        def of(part: Transition) -> jax.Array:
            return self.residual.distribution.log_prob(self.residual.logits(learner, part.vectors), part.raw)

        return of(data) if self.residual.render is None else jax.lax.map(of, data)

    def loss(self, parameters: dict[str, Any], normalizer, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Clipped surrogate + value error - entropy; advantages are normalized over the minibatch."""
        config = self.config
        learner = Learner(normalizer=normalizer, **parameters)
        logits = self.residual.logits(learner, batch.vectors)
        log_ratio = self.residual.distribution.log_prob(logits, batch.raw) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        policy_loss = -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))
        value_loss = jnp.mean((self.residual.value(learner, batch.vectors) - batch.value_target) ** 2)
        entropy = jnp.mean(self.residual.distribution.entropy(logits, jax.random.PRNGKey(0)))
        total = policy_loss + config.value_cost * value_loss - config.entropy_cost * entropy
        return total, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "kl": jnp.mean(ratio - 1 - log_ratio),
            "clip_fraction": jnp.mean(jnp.abs(ratio - 1) > config.clip),
        }


def _parameters(learner: Learner) -> dict[str, Any]:
    return {"policy": learner.policy, "value": learner.value}
