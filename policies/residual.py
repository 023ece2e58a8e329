"""The residual policy: what it sees, its networks, and how it corrects a base policy's target.

    target = base + alpha * residual_scale * r,   r = clip(mean or sample, -1, 1)

Actor and critic read two vectors; `ACTOR_LAYOUT` and `CRITIC_LAYOUT` list their parts in order. The actor sees only
what the robot could know; the critic also sees the truth, which it needs in training alone. An actor that sees pixels
is told nothing of the sheet's pose, nor of the plan of a base policy that reads that pose.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from brax.training.acme import running_statistics, specs
from brax.training.agents.ppo import networks as ppo_networks

from mjx_so101.errors import ConfigError
from mjx_so101.geometry import rotate
from mjx_so101.params import FIELDS
from mjx_so101.render import RenderConfig
from mjx_so101.state25 import STATE25_LAYOUT, state25
from mjx_so101.task import Observation, PaperReturn, State
from policies.pose import PoseNetwork
from policies.vision import vision_network

ACTION_SIZE = 6

ACTOR_LAYOUT: tuple[tuple[str, int, str], ...] = (
    ("joint_pos", 6, "measured joint positions, rad"),
    ("joint_vel", 6, "joint velocities / 5 rad/s"),
    ("goal_vector", 2, "seen sheet centre to goal, x 10 m"),
    ("goal_yaw", 2, "sin and cos of twice the rotation left"),
    ("overshoot", 1, "seen overshoot of the outermost corner, x 10 m"),
    ("sheet_vel", 3, "change of the seen pose over one step, m/s and rad/s"),
    ("effector_on_sheet", 2, "end effector in the seen sheet's frame, x 10 m"),
    ("effector_height", 1, "end effector over the table, x 10 m"),
    ("target_lead", 6, "last target minus measured joints, x 10 rad"),
    ("base_lead", 6, "base target minus measured joints, x 10 rad"),
    ("last_residual", 6, "residual r of the step before"),
    ("base_features", -1, "what the base policy tells of its plan"),
)
_PRIVILEGED = tuple(name for name, field in FIELDS.items() if field.group == "physics")
CRITIC_LAYOUT: tuple[tuple[str, int, str], ...] = (
    ("joint_pos", 6, "true joint positions, rad"),
    ("joint_vel", 6, "joint velocities / 5 rad/s"),
    ("goal_vector", 2, "true sheet centre to goal, x 10 m"),
    ("goal_yaw", 2, "sin and cos of twice the true rotation left"),
    ("distance", 2, "true distance d and its square root, x 10 m"),
    ("overshoot", 1, "true overshoot, x 10 m"),
    ("sheet_vel", 3, "true velocity, x 10 m/s, rad/s"),
    ("effector_on_sheet", 2, "true end effector in the true sheet's frame, x 10 m"),
    ("effector_height", 1, "true end effector over the table, x 10 m"),
    ("held", 1, "share of the hold at the training tolerance"),
    ("succeeded", 1, "1 once the bonus has been paid in this episode"),
    ("target_lead", 6, "last target minus measured joints, x 10 rad"),
    ("params", sum(FIELDS[name].size for name in _PRIVILEGED), "EnvParams but the start"),
    ("base_features", -1, "what the base policy tells of its plan"),
)


Layout = tuple[tuple[str, int, str], ...]
_OF_THE_SHEET = ("goal_vector", "goal_yaw", "overshoot", "sheet_vel", "effector_on_sheet")
"""Parts of ACTOR_LAYOUT that an actor with pixels must find in its pictures."""
_OF_THE_PLAN = ("base_lead", "base_features")
"""Parts that tell such an actor where the sheet is if the base policy reads its true pose."""


def actor_layout(obs: str, base_sees_pose: bool = False) -> Layout:
    """What the actor is told: `ACTOR_LAYOUT` for obs 'state', for 'pixels' the part of it that it gets beside its
    pictures, for 'state25' the published `STATE25_LAYOUT` and nothing else."""
    if obs == "state25":
        return STATE25_LAYOUT
    hidden = () if obs == "state" else (*_OF_THE_SHEET, *(_OF_THE_PLAN if base_sees_pose else ()))
    return tuple(entry for entry in ACTOR_LAYOUT if entry[0] not in hidden)


def layout_sizes(
    num_features: int, render: RenderConfig | None = None, actor: Layout = ACTOR_LAYOUT
) -> dict[str, dict[str, int]]:
    """Size of each part of both vectors for a base policy with num_features features, and of the pictures."""
    layouts = {"state": actor, "privileged_state": CRITIC_LAYOUT}
    sizes = {
        which: {name: num_features if size < 0 else size for name, size, _ in layout}
        for which, layout in layouts.items()
    }
    if render is None:
        return sizes
    return {**sizes, "pixels": dict.fromkeys(render.cameras, 3 * render.width * render.height)}


def actor_vector(
    task: PaperReturn,
    seen: Observation,
    base_target: jax.Array,
    features: jax.Array,
    last_residual: jax.Array,
    layout: Layout = ACTOR_LAYOUT,
) -> jax.Array:
    """The actor's input for one environment, laid out as `layout` (see `actor_layout`)."""
    if layout is STATE25_LAYOUT:
        return state25(seen, task.geometry)
    geometry = task.geometry
    left = geometry.rotation_left(seen.sheet)
    parts = {
        "joint_pos": seen.joint_pos,
        "joint_vel": seen.joint_vel / 5,
        "goal_vector": 10 * geometry.translation_left(seen.sheet),
        "goal_yaw": jnp.stack([jnp.sin(2 * left), jnp.cos(2 * left)]),
        "overshoot": 10 * geometry.overshoot(seen.sheet)[None],
        "sheet_vel": seen.sheet_vel,
        "effector_on_sheet": 10 * rotate(-seen.sheet[2], seen.end_effector[:2] - seen.sheet[:2]),
        "effector_height": 10 * seen.end_effector[2:],
        "target_lead": 10 * (seen.target - seen.joint_pos),
        "base_lead": 10 * (base_target - seen.joint_pos),
        "last_residual": last_residual,
        "base_features": features,
    }
    return jnp.concatenate([parts[name] for name, _, _ in layout])


def critic_vector(task: PaperReturn, state: State, features: jax.Array) -> jax.Array:
    """The critic's input for one environment, laid out as `CRITIC_LAYOUT`."""
    geometry, qpos, qvel = task.geometry, state.physics.qpos, state.physics.qvel
    sheet = qpos[6:]
    left = geometry.rotation_left(sheet)
    distance = geometry.distance(sheet)
    effector = task.kinematics.end_effector_position(qpos[:6])
    params = [jnp.ravel(getattr(state.params, name) / _scale(name)) for name in _PRIVILEGED]
    parts = {
        "joint_pos": qpos[:6],
        "joint_vel": qvel[:6] / 5,
        "goal_vector": 10 * geometry.translation_left(sheet),
        "goal_yaw": jnp.stack([jnp.sin(2 * left), jnp.cos(2 * left)]),
        "distance": 10 * jnp.stack([distance, jnp.sqrt(distance)]),
        "overshoot": 10 * geometry.overshoot(sheet)[None],
        "sheet_vel": qvel[6:] * jnp.array([10.0, 10.0, 1.0]),
        "effector_on_sheet": 10 * rotate(-sheet[2], effector[:2] - sheet[:2]),
        "effector_height": 10 * effector[2:],
        "held": jnp.minimum(state.held[:1] / task.config.hold_steps, 1.0).astype(jnp.float32),
        "succeeded": state.succeeded[:1].astype(jnp.float32),
        "target_lead": 10 * (state.target - state.params.joint_bias - qpos[:6]),
        "params": jnp.concatenate(params),
        "base_features": features,
    }
    return jnp.concatenate([parts[name] for name, _, _ in CRITIC_LAYOUT])


def _scale(name: str) -> float:
    """Brings a privileged parameter to about 1."""
    return {"joint_bias": 0.02, "sheet_position_noise": 0.003, "sheet_yaw_noise": 0.02}.get(name, 1.0)


@dataclasses.dataclass(frozen=True)
class ResidualConfig:
    """Authority and networks of the residual."""

    alpha: float = 0.5
    """Share of residual_scale that the residual may use; 0 gives exactly the base policy."""
    residual_scale: float = 0.1
    """Largest correction of a joint target (rad) at alpha = 1."""
    hidden: tuple[int, ...] = (128, 128)
    """Hidden layers of actor and critic, tanh."""
    initial_std: float = 0.3
    """Standard deviation of r at the start."""

    def __post_init__(self) -> None:
        for name in ("alpha", "residual_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}; it must be a finite number >= 0.")
        if not (math.isfinite(self.initial_std) and self.initial_std > 0):
            raise ConfigError(f"initial_std is {self.initial_std}; it must be finite and greater than 0.")
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden is {self.hidden}; give at least one layer of at least 1 unit.")


@flax.struct.dataclass
class Learner:
    """Everything that is learned: parameters and input statistics of the residual, and what was taught before it."""

    policy: Any
    value: Any
    normalizer: running_statistics.RunningStatisticsState
    pose: Any = None
    """Parameters of the pose network, which PPO leaves as they are."""


class Residual:
    """Networks of the residual over a base policy, as pure functions of a `Learner`."""

    def __init__(
        self,
        config: ResidualConfig,
        num_features: int,
        render: RenderConfig | None = None,
        actor: Layout | None = None,
        pose: PoseNetwork | None = None,
    ):
        """render: the pictures that the actor sees, if any. actor: what it is told besides (see `actor_layout`);
        default all, or beside pictures all but the sheet's pose. pose: what tells the sheet's pose from pictures to
        all that ask for it; None leaves that to the simulation."""
        self.config, self.render, self.pose = config, render, pose
        self.actor_layout = actor or actor_layout("pixels" if render else "state")
        sizes = self.layout = layout_sizes(num_features, render, self.actor_layout)
        self.sizes = {name: sum(sizes[name].values()) for name in ("state", "privileged_state")}
        networks = ppo_networks.make_ppo_networks(
            {name: (size,) for name, size in self.sizes.items()},
            ACTION_SIZE,
            preprocess_observations_fn=_normalize,
            policy_hidden_layer_sizes=config.hidden,
            value_hidden_layer_sizes=config.hidden,
            activation=jnp.tanh,
            policy_obs_key="state",
            value_obs_key="privileged_state",
            distribution_type="normal",
            noise_std_type="log",
            init_noise_std=config.initial_std,
            mean_kernel_init_fn=lambda: jax.nn.initializers.zeros,  # step 0 is exactly the base policy
        )
        self._value, self.distribution = networks.value_network, networks.parametric_action_distribution
        self._policy = networks.policy_network
        if render is not None:
            self._policy = vision_network(
                render, self.sizes["state"], ACTION_SIZE, config.hidden, config.initial_std, _normalize
            )

    def init(self, key: jax.Array) -> Learner:
        """Fresh parameters; the mean residual is zero for every input."""
        key_policy, key_value = jax.random.split(key)
        shapes = {name: specs.Array((size,), jnp.dtype("float32")) for name, size in self.sizes.items()}
        learner = Learner(
            policy=self._policy.init(key_policy),
            value=self._value.init(key_value),
            normalizer=running_statistics.init_state(shapes),
            pose=self.pose.init(jax.random.fold_in(key, 1)) if self.pose else None,
        )
        # through NumPy, because weakly typed leaves would make every jitted function compile twice
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), learner)

    @property
    def shown(self) -> RenderConfig | None:
        """The pictures that somebody sees: the actor, or the pose network, which sees the same."""
        return self.render or (self.pose.render if self.pose else None)

    def logits(self, learner: Learner, vectors: dict[str, jax.Array]):
        """Parameters of the action distribution for vectors {'state': [..., size], ...} and, for an actor that sees,
        {'pixels/CAMERA': uint8 [..., height, width, 3]}."""
        return self._policy.apply(learner.normalizer, learner.policy, vectors)

    def value(self, learner: Learner, vectors: dict[str, jax.Array]) -> jax.Array:
        """Value estimate [...] from vectors['privileged_state']."""
        return self._value.apply(learner.normalizer, learner.value, vectors)

    @property
    def authority(self) -> float:
        """Correction of a joint target at r = 1: alpha * residual_scale, rad."""
        return self.config.alpha * self.config.residual_scale


def blend(base_target: jax.Array, r: jax.Array, authority: float | jax.Array) -> jax.Array:
    """Corrected joint target (rad), before the clip to the joint limits that every target gets."""
    return base_target + authority * r


def _normalize(batch: jax.Array, statistics) -> jax.Array:
    return running_statistics.normalize(batch, statistics, max_abs_value=5.0)
