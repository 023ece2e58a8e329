"""`PaperReturnEnv`: a batch of paper-return environments over any physics backend."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from mjx_so101.errors import ConfigError, HealthError
from mjx_so101.geometry import SheetGeometry
from mjx_so101.kinematics import ArmKinematics
from mjx_so101.params import Randomization, load_randomization
from mjx_so101.physics import Physics, default_backend, make_physics
from mjx_so101.physics.fields import ModelFields
from mjx_so101.scene import SceneConfig, load_model
from mjx_so101.state25 import state25
from mjx_so101.task import Observation, PaperReturn, State, TaskConfig, check_home, check_starts


@flax.struct.dataclass
class StepResult:
    """What a control step gave, each [env]. `last` is the state before any automatic reset."""

    reward: jax.Array
    terms: dict[str, jax.Array]  # named reward terms; they add up to `reward`
    terminated: jax.Array
    truncated: jax.Array
    success: jax.Array
    invalid: jax.Array
    last: State

    @property
    def done(self) -> jax.Array:
        """Whether the episode ended in this step."""
        return self.terminated | self.truncated


class PaperReturnEnv:
    """Thousands of paper-return episodes at once.

    With `auto_reset`, an environment whose episode ends starts a new one, drawn anew, in the same step; without,
    episodes run on for evaluation. On a jittable backend (`warp`, `jax`) `reset`, `step` and `observe` may be
    traced inside jit and scan; on `native` call `step` from the host.
    """

    def __init__(
        self,
        num_envs: int,
        physics: str = "auto",
        randomization: str | Path | Randomization = "plain",
        scene: SceneConfig | None = None,
        task: TaskConfig | None = None,
        auto_reset: bool = True,
        strict: bool = False,
        host_stepped: bool = False,
        physics_options: dict | None = None,
    ):
        """strict: every `step` called from the host checks for NaN and overflow and raises HealthError.
        host_stepped: one control step is jitted at a time and called from the host, as beside a model in torch; on
        a GPU `warp` then records its CUDA graphs in another way.

        Raises ConfigError for num_envs < 1, an unknown backend or preset, or a randomization whose start ranges
        are unreachable or already solved.
        """
        self.scene = scene or SceneConfig(visual=False)
        backend = default_backend() if physics == "auto" else physics
        if backend == "native":
            self.scene = self.scene.with_acceleration_sensors()
        self.num_envs = num_envs
        self.auto_reset = auto_reset
        self.strict = strict
        self.model: mujoco.MjModel = load_model(self.scene)
        options = dict(physics_options or {})
        if host_stepped and backend != "native":
            options["host_stepped"] = True
        self.physics: Physics = make_physics(backend, self.model, num_envs, **options)
        self.task = PaperReturn(
            config=task or TaskConfig(),
            randomization=load_randomization(randomization),
            geometry=SheetGeometry.from_scene(self.scene),
            kinematics=ArmKinematics.from_model(self.model),
            control_hz=self.scene.control_hz,
            substeps=self.scene.substeps,
        )
        check_home(self.task)
        check_starts(self.task)
        self.fields = ModelFields(self.model)
        self._reset = jax.jit(jax.vmap(self.task.reset))
        self._observe = jax.jit(jax.vmap(self.task.observe))
        self._observe_state25 = jax.jit(jax.vmap(lambda s: state25(self.task.observe(s), self.task.geometry)))
        self._begin = jax.jit(self.begin_step)
        self._finish = jax.jit(self.finish_step)
        self._jitted_step = jax.jit(self._traced_step)

    @property
    def jittable(self) -> bool:
        """Whether a whole control step may be traced inside jit."""
        return self.physics.jittable

    def reset(self, seed: int | jax.Array = 0) -> State:
        """Start num_envs episodes. seed: an integer, or a key (uint32 [2]), or one key per env (uint32 [env, 2])."""
        key = jax.random.PRNGKey(int(seed)) if np.ndim(seed) == 0 else jnp.asarray(seed)
        if key.ndim == 1:
            key = jax.random.split(key, self.num_envs)
        return self._reset(key)

    def observe(self, state: State) -> Observation:
        """Observations of the batch, leading axis [env]."""
        return self._observe(state)

    def observe_state25(self, state: State) -> jax.Array:
        """The published observation [env, 25] float32, laid out as `state25.STATE25_LAYOUT`, SI units.

        It holds what `observe` gives without the last target, the sheet's velocity and the mark of a new episode.
        """
        return self._observe_state25(state)

    def step(self, state: State, target: jax.Array) -> tuple[State, StepResult]:
        """One control step towards absolute joint targets [env, 6] (rad).

        Called from the host, it refuses an action of wrong shape (ConfigError) and one with NaN or inf (HealthError).
        """
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, target))):
            return self._traced_step(state, target)
        self.check_action(target)
        if self.jittable:
            new, result = self._jitted_step(state, target)
        else:
            begun, fields, ctrl = self._begin(state, target)
            new, result = self._finish(begun, self.physics.step(begun.physics, fields, ctrl))
        if self.strict:
            self.check_health(state, target, result.last)
        return new, result

    # -- the two pure halves of a step, for loops that fuse them with their own work ------------------------------
    def begin_step(self, state: State, target: jax.Array) -> tuple[State, dict[str, jax.Array], jax.Array]:
        """Before physics: state with the new target, model fields [env, ...], motor targets [env, substeps, 6]."""
        state, ctrl = jax.vmap(self.task.command)(state, target)
        return state, jax.vmap(self.fields)(state.params), ctrl

    def finish_step(self, state: State, physics) -> tuple[State, StepResult]:
        """After physics: judge the step and, with auto_reset, start ended episodes anew."""
        last, verdict = jax.vmap(self.task.advance)(state, physics)
        result = StepResult(
            reward=sum(verdict.terms.values(), jnp.zeros(self.num_envs)),
            terms=verdict.terms,
            terminated=verdict.terminated,
            truncated=verdict.truncated,
            success=verdict.success,
            invalid=verdict.invalid,
            last=last,
        )
        if not self.auto_reset:
            return last, result
        fresh = jax.vmap(self.task.reset)(last.key)

        def pick(new, old):
            return jnp.where(result.done.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return jax.tree.map(pick, fresh, last), result

    def _traced_step(self, state: State, target: jax.Array) -> tuple[State, StepResult]:
        if not self.jittable:
            raise ConfigError(
                f"physics {self.physics.name!r} runs on the host and cannot be traced inside jit; call step outside "
                "jit, or choose physics 'warp' or 'jax'."
            )
        state, fields, ctrl = self.begin_step(state, target)
        return self.finish_step(state, self.physics.step(state.physics, fields, ctrl))

    # -- health --------------------------------------------------------------------------------------------------
    def check_action(self, target) -> None:
        """Raise ConfigError for a wrong shape and HealthError for NaN or inf, naming the first bad environment."""
        shape = np.shape(target)
        if shape != (self.num_envs, 6):
            raise ConfigError(f"action has shape {shape}; it must be ({self.num_envs}, 6): [env, joint] in rad.")
        bad = ~np.isfinite(np.asarray(target)).all(1)
        if bad.any():
            env = int(np.argmax(bad))
            raise HealthError(f"action of env {env} is not finite: {np.asarray(target)[env].tolist()}.")

    def check_health(self, before: State, target, after: State, folder: str | Path | None = None) -> None:
        """Raise HealthError if an environment overflowed a buffer or became non-finite; save a replay file first.

        folder: where `save_replay` puts the file; default a new temporary folder.
        """
        overflow = np.asarray(after.physics.overflow)
        lost = ~np.isfinite(np.asarray(after.physics.qpos)).all(1) | np.asarray(after.nonfinite)
        bad = (overflow != 0) | lost
        if not bad.any():
            return
        env = int(np.argmax(bad))
        row = jax.tree.map(lambda x: np.asarray(x)[env], before)
        fault = describe_fault(int(overflow[env]), bool(np.asarray(after.bad_target)[env]))
        path = save_replay(folder or tempfile.mkdtemp(prefix="so101_replay_"), env, row, np.asarray(target)[env])
        raise HealthError(f"env {env} ({int(bad.sum())} of {self.num_envs} envs): {fault}; replay saved to {path}.")

    def describe(self) -> dict:
        """What this environment is, for the record beside a result."""
        return {
            "num_envs": self.num_envs,
            "physics": self.physics.name,
            "sheet_friction": self.scene.sheet_friction,
            "home": list(self.task.config.home),
            "randomization": json.loads(json.dumps(self.task.randomization.to_dict())),
        }


def describe_fault(overflow: int, bad_target: bool) -> str:
    """What went wrong in one environment's control step, in words, with the fix."""
    if overflow:
        return (
            f"buffer overflow (flags {overflow}): give the warp backend larger contacts_per_env or constraints_per_env"
        )
    if bad_target:
        return "its target was not finite: look at what the base policy and the residual answer"
    return "physics ended in a non-finite state"


def save_replay(folder: str | Path, env: int, before: State, action: np.ndarray) -> Path:
    """Write replay_env{env}.npz (with a number added if it exists) into `folder`; returns its path.

    before: the environment's own State (no leading axis) at the start of the control step. The file holds qpos, qvel,
    warmstart, the last two targets, params.* and the action.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    taken = len(list(folder.glob(f"replay_env{env}*.npz")))
    path = folder / f"replay_env{env}{f'-{taken + 1}' if taken else ''}.npz"
    params = {f"params.{name}": value for name, value in vars(before.params).items()}
    np.savez(
        path, qpos=before.physics.qpos, qvel=before.physics.qvel, warmstart=before.physics.warmstart,
        target=before.target, previous_target=before.previous_target, action=action, **params,
    )  # fmt: skip
    return path
