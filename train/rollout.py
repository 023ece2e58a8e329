"""The rollout: observe, base chunk, residual, blend, physics, reward, reset, for a batch of environments.

`act` and `settle` are the two pure halves of a control step around physics. On a jittable backend a whole rollout is
one scan; on `native` a host loop alternates physics with the same jitted halves. So it does where a base policy's model
or a renderer works outside jit: then each step begins on the host.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mjx_so101.env import PaperReturnEnv, StepResult
from mjx_so101.errors import Interrupted, require_choice
from mjx_so101.render.base import Array
from mjx_so101.task import State
from policies.base import BasePolicy
from policies.residual import Learner, Residual, actor_vector, blend, critic_vector
from train.eyes import Eyes

MEAN, SAMPLE, NOISE, BASE = "mean", "sample", "noise", "base"
"""How r is chosen: the mean, a sample, as a control white noise as large as a given residual, or not at all."""


PIECE = 50
"""Control steps of a jitted evaluation between two looks at `Roller.stopped`."""


class Mix(NamedTuple):
    """The same choice as numbers, so that one compiled rollout serves them all."""

    mean: float
    sample: float | jax.Array  # times the policy's own deviation from its mean; or [env, 1]
    noise: float  # standard deviation of white noise
    authority: float  # rad, correction of a joint target at r = 1
    sight: bool = True  # False: the actor's pictures are blank

    @classmethod
    def of(cls, mode: str, authority: float, noise: float = 0.0, blind: bool = False) -> Mix:
        """The numbers of a mode by name."""
        require_choice("mode", mode, (MEAN, SAMPLE, NOISE, BASE))
        return {
            MEAN: cls(1.0, 0.0, 0.0, authority, not blind),
            SAMPLE: cls(1.0, 1.0, 0.0, authority, not blind),
            NOISE: cls(0.0, 0.0, noise, authority, not blind),
            BASE: cls(1.0, 0.0, 0.0, 0.0, not blind),
        }[mode]


@flax.struct.dataclass
class Carry:
    """What goes from one control step to the next."""

    state: State
    base: Any
    last_residual: jax.Array  # [env, 6]
    key: jax.Array  # uint32 [2]


@flax.struct.dataclass
class Pending:
    """A control step that waits for physics."""

    carry: Carry
    fields: dict[str, jax.Array]
    ctrl: jax.Array  # [env, substeps, 6]
    pictures: dict[str, jax.Array]  # {'pixels/CAMERA': uint8 [env, height, width, 3]}, if the policy sees any
    vectors: dict[str, jax.Array]
    raw: jax.Array  # [env, 6] unclipped residual
    log_prob: jax.Array  # [env] of `raw` for the policy that acted
    residual: jax.Array  # [env, 6] r, 0 where it is not finite
    base_target: jax.Array  # [env, 6]
    asked: jax.Array  # [env, 6] base_target with the residual, before the clip to the joint limits
    older_target: jax.Array  # [env, 6] `previous_target` before this step, which `carry` no longer knows


class Transition(NamedTuple):
    """What PPO stores of one control step, each [env, ...]; time is stacked in front. No next observations."""

    vectors: dict[str, jax.Array]
    raw: jax.Array
    log_prob: jax.Array  # of the policy that acted
    reward: jax.Array
    bootstrap: jax.Array  # V(last state of the episode) where time ran out, else 0
    done: jax.Array


class ResidualCosts(NamedTuple):
    """Costs that the learner adds to the task's reward terms."""

    size: float = 0.0
    change: float = 0.0


class Roller:
    """Runs a base policy with a residual on top in an environment."""

    def __init__(
        self,
        env: PaperReturnEnv,
        base: BasePolicy,
        residual: Residual,
        keep: Callable[[Pending, Transition, StepResult], Any],
        mode: str = SAMPLE,
        costs: ResidualCosts | None = None,
        noise: float = 0.0,
        blind: bool = False,
    ):
        """keep: what to keep of each step, a pytree. mode: 'mean', 'sample', 'base' or 'noise' (`noise` is then the
        standard deviation of r). blind: the actor's pictures are never drawn, but blank."""
        self.env, self.base, self.residual, self.keep = env, base.for_env(env), residual, keep
        self.costs = costs or ResidualCosts()
        self.mix = Mix.of(mode, residual.authority, noise)
        self.eyes = Eyes(residual.shown, env, blind) if residual.shown else None
        self._from_host = not (self.base.jittable and (self.eyes is None or self.eyes.jittable))
        self.stopped: Callable[[], bool] = lambda: False
        """Asked between control steps, and between pieces of a jitted evaluation; True raises Interrupted."""
        self._act = jax.jit(self.act)
        self._last = jax.jit(self._settle_and_keep)
        self._between = jax.jit(self._settle_and_act)
        self._step = jax.jit(self._whole_step)
        # the old carry's buffers become the new one's: Warp then meets few sets of buffers, see `graphs.graph_mode`
        self._scan = jax.jit(self._scan_steps, static_argnames="steps", donate_argnames="carry")
        self._stack = jax.jit(lambda kept: jax.tree.map(lambda *rows: jnp.stack(rows), *kept))
        self.value_vectors = jax.jit(lambda carry: self.value_vectors_of(carry.base, carry.state))
        """The critic's input in the state of a carry, for the value after the last step of a rollout."""

    def variant(self, mode: str, noise: float = 0.0, blind: bool = False) -> Roller:
        """The same roller in another mode; what is compiled is shared, so nothing but `mix` may differ."""
        other = copy.copy(self)
        other.mix = Mix.of(mode, self.residual.authority, noise, blind)
        return other

    def start(self, key: jax.Array, episode_keys: jax.Array | None = None) -> Carry:
        """First carry. episode_keys: uint32 [env, 2], one per environment; default drawn from `key`."""
        key, key_reset = jax.random.split(key)
        n = self.env.num_envs
        state = self.env.reset(key_reset if episode_keys is None else episode_keys)
        return Carry(state=state, base=self.base.init(n), last_residual=jnp.zeros((n, 6)), key=key)

    # -- the two halves of a control step --------------------------------------------------------------------------
    def act(self, learner: Learner, carry: Carry, mix: Mix, rgb: Array | None = None) -> Pending:
        """Look, observe, ask the base policy, add the residual; gives what physics needs. rgb: see `Eyes.drawn`."""
        task = self.env.task
        key, key_base, key_residual, key_picture = jax.random.split(carry.key, 4)
        pictures = self.eyes(carry.state, key_picture, mix.sight, rgb) if self.eyes else {}
        carry = carry.replace(state=self._looked(learner, carry.state, pictures))
        seen = jax.vmap(task.observe)(carry.state)
        base_carry, chunk = self.base.chunk(carry.base, seen, key_base, seen.new_episode)
        base_target = chunk[:, 0]
        features = self.base.features(base_carry)
        last = jnp.where(seen.new_episode[:, None], 0.0, carry.last_residual)
        vectors = {
            "state": jax.vmap(lambda *x: actor_vector(task, *x, layout=self.residual.actor_layout))(
                seen, base_target, features, last
            ),
            "privileged_state": jax.vmap(lambda *x: critic_vector(task, *x))(carry.state, features),
        }
        if self.residual.render:
            vectors |= pictures
        raw, log_prob = self._raw_residual(learner, vectors, key_residual, mix)
        r = jnp.clip(raw, -1.0, 1.0)
        asked = blend(base_target, r, mix.authority)  # a NaN stays one: `command` does not take it, and says so
        r = jnp.where(jnp.isfinite(r), r, 0.0)
        older_target = carry.state.previous_target
        state, fields, ctrl = self.env.begin_step(carry.state, asked)
        carry = Carry(state=state, base=base_carry, last_residual=last, key=key)
        return Pending(carry, fields, ctrl, pictures, vectors, raw, log_prob, r, base_target, asked, older_target)

    def _looked(self, learner: Learner, state: State, pictures: dict[str, jax.Array]) -> State:
        """The state whose seen sheet poses are those that the pose network finds in the pictures, if there is one."""
        if self.residual.pose is None:
            return state
        joints = jax.vmap(self.env.task.observe)(state).joint_pos
        return self.residual.pose.look(learner.pose, state, pictures, joints)

    def _raw_residual(
        self, learner: Learner, vectors: dict[str, jax.Array], key: jax.Array, mix: Mix
    ) -> tuple[jax.Array, jax.Array]:
        """Unclipped r [env, 6] and its log-probability [env]."""
        key_sample, key_noise = jax.random.split(key)
        logits = self.residual.logits(learner, vectors)
        mean = self.residual.distribution.mode(logits)
        deviation = self.residual.distribution.sample_no_postprocessing(logits, key_sample) - mean
        raw = mix.mean * mean + mix.sample * deviation + mix.noise * jax.random.normal(key_noise, mean.shape)
        return raw, self.residual.distribution.log_prob(logits, raw)

    def settle(self, learner: Learner, pending: Pending, physics) -> tuple[Carry, Transition, StepResult]:
        """Take in the state after physics: reward, bootstrap of time-outs, automatic reset."""
        state, result = self.env.finish_step(pending.carry.state, physics)
        change = pending.residual - pending.carry.last_residual
        terms = {
            **result.terms,
            "residual_size": -self.costs.size * jnp.sum(pending.residual**2, -1),
            "residual_change": -self.costs.change * jnp.sum(change**2, -1),
        }
        result = result.replace(terms=terms, reward=sum(terms.values(), jnp.zeros(self.env.num_envs)))
        out_of_time = result.truncated & ~result.terminated
        terminal = self.value_vectors_of(pending.carry.base, result.last)
        value = self.residual.value(learner, terminal)
        carry = pending.carry.replace(state=state, last_residual=pending.residual)
        transition = Transition(
            vectors=pending.vectors,
            raw=pending.raw,
            log_prob=pending.log_prob,
            reward=result.reward,
            bootstrap=jnp.where(out_of_time, value, 0.0),
            done=result.done,
        )
        return carry, transition, result

    def value_vectors_of(self, base_carry: Any, state: State) -> dict[str, jax.Array]:
        """The critic's input in `state`, with what the base policy would tell of its plan once it has seen it.

        A model's chunk that is used up cannot be renewed here; its features then tell just that. Nothing is drawn here:
        the plan is that for the simulated pose, of which the critic knows anyway.
        """
        task = self.env.task
        seen = jax.vmap(task.observe)(state)
        base_carry, _ = self.base.chunk(base_carry, seen, None, seen.new_episode)
        features = self.base.features(base_carry)
        return {"privileged_state": jax.vmap(lambda s, f: critic_vector(task, s, f))(state, features)}

    def refilled(self, carry: Carry) -> Carry:
        """The carry with chunks renewed where they are due; `value_vectors` then knows the plan to come."""
        if self.base.jittable:
            return carry
        return carry.replace(base=self.base.refill(carry.base, carry.state))

    # -- whole rollouts ----------------------------------------------------------------------------------------------
    def roll(self, learner: Learner, carry: Carry, steps: int) -> tuple[Carry, Any]:
        """`steps` control steps; gives the new carry and what `keep` kept of each step, stacked over time. On a
        jittable backend the given carry is used up. Raises Interrupted, see `stopped`."""
        if self._from_host:
            return self._roll_from_host(learner, carry, steps)
        if self.env.jittable:
            return self._roll_in_pieces(learner, carry, steps)
        kept = []
        pending = self._act(learner, carry, self.mix)
        for t in _counted(steps):
            self._go_on()
            physics = self._physics(pending)
            if t + 1 < steps:
                pending, keep = self._between(learner, pending, physics, self.mix)
            else:
                carry, keep = self._last(learner, pending, physics)
            kept.append(keep)
        return carry, _stacked(kept)

    def _go_on(self) -> None:
        if self.stopped():
            raise Interrupted

    def _roll_in_pieces(self, learner: Learner, carry: Carry, steps: int) -> tuple[Carry, Any]:
        """Scans of an evaluation's 400 steps in pieces that end within seconds; in training, whose carry is used up,
        one scan."""
        if self.env.auto_reset or steps <= PIECE:
            return self._scan(learner, carry, self.mix, steps=steps)
        kept = []
        for first in range(0, steps, PIECE):
            self._go_on()
            carry, keep = self._scan(learner, carry, self.mix, steps=min(PIECE, steps - first))
            kept.append(jax.block_until_ready(keep))
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)

    def _roll_from_host(self, learner: Learner, carry: Carry, steps: int) -> tuple[Carry, Any]:
        """The base policy's model or the renderer works on the host between control steps."""
        kept = []
        if not self.base.jittable:
            self.base.stopped = self.stopped
        for _ in _counted(steps):
            self._go_on()
            carry = self.refilled(carry)
            rgb = self.eyes.drawn(carry.state) if self.eyes else None
            if self.env.jittable:
                carry, keep = self._step(learner, carry, self.mix, rgb)
            else:
                pending = self._act(learner, carry, self.mix, rgb)
                carry, keep = self._last(learner, pending, self._physics(pending))
            kept.append(keep)
        # a training rollout's pictures are gigabytes, which stay on the device where they are
        on_device = self.eyes and self.env.jittable and self.env.auto_reset
        return carry, self._stack(kept) if on_device else _stacked(kept)

    def _physics(self, pending: Pending):
        return self.env.physics.step(pending.carry.state.physics, pending.fields, pending.ctrl)

    def _settle_and_keep(self, learner: Learner, pending: Pending, physics) -> tuple[Carry, Any]:
        carry, transition, result = self.settle(learner, pending, physics)
        return carry, self.keep(pending, transition, result)

    def _settle_and_act(self, learner: Learner, pending: Pending, physics, mix: Mix) -> tuple[Pending, Any]:
        carry, keep = self._settle_and_keep(learner, pending, physics)
        return self.act(learner, carry, mix), keep

    def _whole_step(self, learner: Learner, carry: Carry, mix: Mix, rgb: Array | None = None) -> tuple[Carry, Any]:
        pending = self.act(learner, carry, mix, rgb)
        return self._settle_and_keep(learner, pending, self._physics(pending))

    def _scan_steps(self, learner: Learner, carry: Carry, mix: Mix, steps: int) -> tuple[Carry, Any]:
        return jax.lax.scan(lambda carry, _: self._whole_step(learner, carry, mix), carry, None, length=steps)


def _counted(steps: int) -> tqdm:
    """The steps; with a bar of their own if they are many, as in an evaluation, which can take minutes on a CPU."""
    quiet = None if steps >= 100 else True  # None: only where there is a terminal
    return tqdm(range(steps), "control steps", delay=5, leave=False, disable=quiet)


def _stacked(kept: list[Any]) -> Any:
    """What was kept of each step, stacked over time on the host."""
    return jax.tree.map(lambda *rows: np.stack([np.asarray(row) for row in rows]), *kept)
