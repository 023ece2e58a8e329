"""The protocol of base policies and the registry of those that run inside jit."""

from __future__ import annotations

from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from mjx_so101.env import PaperReturnEnv
from mjx_so101.errors import require_choice
from mjx_so101.geometry import SheetGeometry
from mjx_so101.kinematics import ArmKinematics
from mjx_so101.task import Observation, PaperReturn, State
from policies.model import ModelOptions


class BasePolicy(Protocol):
    """A frozen policy that proposes absolute joint targets; the residual corrects them."""

    name: str
    sees: tuple[str, ...]
    """What it must see: of 'joints', 'sheet_pose' (the pose that the simulation tells) and 'pictures'."""
    horizon: int
    """Targets in a chunk: how many control steps one call covers."""
    jittable: bool
    """False if its model runs outside jit: the host then calls `refill` before each control step."""
    num_features: int
    """Length of what `features` gives for one environment."""
    note: str
    """What a reader of any result must know of it, or nothing."""

    def for_env(self, env: PaperReturnEnv) -> BasePolicy:
        """The same policy, ready for the environments of `env`."""
        ...

    def init(self, num_envs: int) -> Any:
        """Carry for num_envs environments."""
        ...

    def refill(self, carry: Any, state: State) -> Any:
        """What must be done on the host before `chunk`; only called if not `jittable`."""
        ...

    def chunk(self, carry: Any, observation: Observation, key: jax.Array, reset_mask: jax.Array) -> tuple[Any, Any]:
        """New carry and targets float32 [env, horizon, 6] (rad). Rows of `carry` where `reset_mask` [env] is True
        belong to an ended episode and are started anew."""
        ...

    def features(self, carry: Any) -> jax.Array:
        """[env, num_features] what the residual and the critic may know of the plan, roughly in [-1, 1]."""
        ...


class ScriptedPolicy:
    """Base of policies written as a pure function of one environment's carry and observation."""

    name: str
    sees: tuple[str, ...] = ("joints", "sheet_pose")
    horizon = 1
    jittable = True
    num_features = 0
    note = ""

    def __init__(self, kinematics: ArmKinematics, geometry: SheetGeometry):
        self.kinematics = kinematics
        self.geometry = geometry

    def start(self) -> Any:
        """Carry of one environment at the start of an episode."""
        raise NotImplementedError

    def act(self, carry: Any, observation: Observation) -> tuple[Any, jax.Array]:
        """New carry and target [6] of one environment."""
        raise NotImplementedError

    def features_of(self, carry: Any) -> jax.Array:
        """Features of one environment."""
        return jnp.zeros(0)

    def for_env(self, env: PaperReturnEnv) -> ScriptedPolicy:
        """Itself: it works for any number of environments of its task."""
        del env
        return self

    def refill(self, carry: Any, state: State) -> Any:
        """Nothing to do."""
        del state
        return carry

    def init(self, num_envs: int) -> Any:
        """See `BasePolicy.init`."""
        return jax.vmap(lambda _: self.start())(jnp.arange(num_envs))

    def chunk(self, carry: Any, observation: Observation, key: jax.Array, reset_mask: jax.Array) -> tuple[Any, Any]:
        """See `BasePolicy.chunk`; scripted plans use no randomness."""
        del key

        def one(carry, observation, new):
            carry = jax.tree.map(lambda a, b: jnp.where(new, a, b), self.start(), carry)
            carry, target = self.act(carry, observation)
            return carry, target[None]

        return jax.vmap(one)(carry, observation, reset_mask)

    def features(self, carry: Any) -> jax.Array:
        """See `BasePolicy.features`."""
        return jax.vmap(self.features_of)(carry)


@flax.struct.dataclass
class NoCarry:
    """Carry of a policy without memory; one unused entry per environment keeps the batch axis."""

    unused: jax.Array


class ZeroPolicy(ScriptedPolicy):
    """Holds the arm where it was last told to be: the base for learning from nothing."""

    name = "zero"
    sees = ("joints",)

    def start(self) -> NoCarry:
        """See `ScriptedPolicy.start`."""
        return NoCarry(jnp.zeros(()))

    def act(self, carry: NoCarry, observation: Observation) -> tuple[NoCarry, jax.Array]:
        """See `ScriptedPolicy.act`."""
        return carry, observation.target


SCRIPTED = ("zero", "jacobian", "oracle")
BASES = (*SCRIPTED, "groot", "remote")
SEES_POSE = ("jacobian", "oracle")
"""Base policies that read the sheet's pose from the simulation, which no camera tells them."""


def make_base(name: str, task: PaperReturn, model: ModelOptions | None = None) -> BasePolicy:
    """Build a base policy by name for a task. `model` says what 'groot' and 'remote' run.

    Raises ConfigError for an unknown name, what the model cannot do or lacks, or a start pose that it never saw.
    """
    require_choice("base", name, BASES)
    if name not in SCRIPTED:
        from policies.chunked import ChunkedPolicy

        model = model or ModelOptions()
        size = (model.base_width, model.base_height)
        policy = ChunkedPolicy(
            model.load(name), model.horizon, model.base_renderer, size=size, any_start=model.any_start
        )
        policy.check_start(task.config.home)
        return policy
    from policies.jacobian import JacobianPolicy
    from policies.oracle import OraclePolicy

    kinds: dict[str, type[ScriptedPolicy]] = {p.name: p for p in (ZeroPolicy, JacobianPolicy, OraclePolicy)}
    return kinds[name](task.kinematics, task.geometry)
