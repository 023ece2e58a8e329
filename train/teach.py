"""Teaching the pose network: it looks at live episodes of the base policy that it guides itself, and is told the truth.

At first it sees nothing, so the arm goes anywhere; as it learns, the episodes become those that the policy will meet.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from mjx_so101.env import PaperReturnEnv, StepResult
from mjx_so101.errors import ConfigError
from mjx_so101.geometry import rotate, wrap_half_turn
from mjx_so101.render import RenderConfig
from mjx_so101.render import base as base_renderer
from policies.base import BasePolicy
from policies.residual import Learner, Residual
from train import checkpoint
from train.evaluate import Evaluator
from train.rollout import BASE, SAMPLE, Pending, Roller

if TYPE_CHECKING:
    from train.config import TrainConfig

TEACH_SEED = 3_000_003
"""Seed of the episodes in which a taught network is measured."""


@dataclasses.dataclass(frozen=True)
class TeachConfig:
    """How the pose network is taught, and its size."""

    updates: int = 2400
    """Steps of the optimizer (AdamW)."""
    unroll: int = 8
    """Control steps of each environment between two lots of updates ..."""
    minibatches: int = 8
    """... in which each picture is learned from once, in so many parts."""
    learning_rate: float = 1e-3
    """After 100 updates; it falls to 0 along a cosine."""
    channels: int = 64
    """Of the first two convolutions; the other two have twice as many."""
    hidden: int = 256
    """Units of the two layers behind them."""

    def __post_init__(self) -> None:
        for name in ("updates", "unroll", "minibatches", "channels", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"teach.{name} is {getattr(self, name)}; it must be at least 1.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"teach.learning_rate is {self.learning_rate}; it must be finite and greater than 0.")


class Teacher:
    """Teaches the pose network of a `Residual` in training environments."""

    def __init__(
        self, config: TeachConfig, env: PaperReturnEnv, base: BasePolicy, residual: Residual, blind: bool = False
    ):
        """base: whose episodes are watched. blind: all pictures are blank, the control of what they are worth.

        Raises ConfigError unless the pictures of a lot divide into the minibatches.
        """
        assert residual.pose is not None
        self.config, self.env, self._network = config, env, residual.pose
        self._rows = env.num_envs * config.unroll
        if self._rows % config.minibatches:
            raise ConfigError(
                f"num_envs x teach.unroll = {env.num_envs} x {config.unroll} = {self._rows} pictures do not divide "
                f"into {config.minibatches} teach.minibatches; choose num_envs as a multiple of them."
            )
        self._check_memory(residual.pose.render, base_renderer.available_memory())
        self.roller = Roller(env, base, residual, self._lesson, mode=SAMPLE, blind=blind)
        noisy = (jnp.arange(env.num_envs) % 2).astype(jnp.float32)  # half go the base's way: noise spoils its landings
        self.roller.mix = self.roller.mix._replace(sample=noisy[:, None])
        warm = min(100, config.updates)
        rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warm, max(config.updates, warm + 1))
        self._optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
        self._update = jax.jit(self._updated, donate_argnums=(0, 1))

    def _check_memory(self, render: RenderConfig, free: int) -> None:
        """Raise ConfigError if the pictures of a lot, which are held twice, need more than `free` bytes."""
        need = 2 * self._rows * render.bytes_per_env
        if need > free:
            raise ConfigError(
                f"{self._rows} pictures of {render.width} x {render.height} that are learned from at a time need "
                f"{need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are available; lower num_envs or teach.unroll."
            )

    def teach(self, learner: Learner, key: jax.Array, progress: bool = True) -> tuple[Learner, float]:
        """The learner with a taught pose network, and the mean loss (cm) of the last lot. Raises Interrupted, see
        `Roller.stopped`."""
        config = self.config
        key_start, key = jax.random.split(key)
        parameters = jax.tree.map(jnp.array, learner.pose)  # a copy: the update uses up what it is given
        optimizer = self._optimizer.init(parameters)
        carry, done, loss = self._aged(self.roller.start(key_start)), 0, math.inf
        bar = tqdm(total=config.updates, desc="Teaching the pose network", disable=None if progress else True)
        with bar:
            while done < config.updates:
                carry, lessons = self.roller.roll(learner, carry, config.unroll)
                lessons = jax.tree.map(lambda x: jnp.reshape(x, (self._rows, *x.shape[2:])), lessons)
                order = jax.random.permutation(jax.random.fold_in(key, done), self._rows)
                parts = order.reshape(config.minibatches, -1)[: config.updates - done]
                losses = []
                for rows in parts:
                    parameters, optimizer, one = self._update(parameters, optimizer, lessons, rows)
                    losses.append(one)
                learner = learner.replace(pose=jax.tree.map(jnp.array, parameters))
                done, loss = done + len(parts), float(jnp.mean(jnp.stack(losses)))
                bar.set_postfix(loss=f"{loss:.3f} cm", refresh=False)
                bar.update(len(parts))
        return learner, loss

    def _aged(self, carry):
        """Episodes at different ages, or all would begin together."""
        steps = self.env.task.config.episode_steps
        age = jnp.arange(self.env.num_envs, dtype=jnp.int32) * steps // self.env.num_envs
        return carry.replace(state=carry.state.replace(step=age))

    def _lesson(self, pending: Pending, transition, result: StepResult) -> dict[str, Any]:
        """What is learned from in one control step, each [env, ...]: pictures, measured joints, true poses."""
        del transition, result
        state = pending.carry.state
        joints = jax.vmap(self.env.task.observe)(state).joint_pos
        return {"pictures": pending.pictures, "joints": joints, "truth": state.physics.qpos[:, 6:]}

    def _updated(self, parameters, optimizer, lessons: dict[str, Any], rows: jax.Array):
        """One step of the optimizer on some rows of the lessons."""
        part = jax.tree.map(lambda x: x[rows], lessons)
        loss, gradient = jax.value_and_grad(self._network.loss)(
            parameters, part["pictures"], part["joints"], part["truth"]
        )
        change, optimizer = self._optimizer.update(gradient, optimizer, parameters)
        return optax.apply_updates(parameters, change), optimizer, loss


def measure(
    env: PaperReturnEnv,
    base: BasePolicy,
    residual: Residual,
    learner: Learner,
    episodes: int,
    blind: bool = False,
    stopped: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Errors of a taught network in episodes of the base alone, that it was not taught in, which it guides.

    'all' and 'covered' (the arm's end effector is over the sheet): median and 95 % quantile of the errors of position
    (mm) and yaw (mrad); 'blank': all, of the same network shown blank pictures; 'success': of the base.
    env: built with auto_reset=False. blind: it was taught on blank pictures. stopped: see `Evaluator.stopped`.
    """
    evaluator = Evaluator(env, base, residual, BASE, blind=blind, more=lambda pending, result: _errors(env, pending))
    if stopped:
        evaluator.stopped = stopped
    seen = evaluator(learner, episodes, TEACH_SEED)
    off, covered = np.stack([seen.more["place"], seen.more["turn"]], -1), seen.more["covered"]
    found = {"all": _quantiles(off), "covered": _quantiles(off[covered])}
    if not blind:
        blank = evaluator.variant(BASE, blind=True)(learner, episodes, TEACH_SEED).more
        found["blank"] = _quantiles(np.stack([blank["place"], blank["turn"]], -1))
    return {**found, "pictures": int(off[..., 0].size), "success": seen.summary()["success"]}


def _errors(env: PaperReturnEnv, pending: Pending) -> dict[str, jax.Array]:
    state = pending.carry.state
    true, found = state.physics.qpos[:, 6:], state.seen_sheet
    effector = jax.vmap(env.task.kinematics.end_effector_position)(state.physics.qpos[:, :6])
    local = jax.vmap(rotate)(-true[:, 2], effector[:, :2] - true[:, :2])
    return {
        "place": jnp.linalg.norm(found[:, :2] - true[:, :2], axis=-1),
        "turn": jnp.abs(wrap_half_turn(found[:, 2] - true[:, 2])),
        "covered": jnp.all(jnp.abs(local) < jnp.asarray(env.task.geometry.sheet_half), -1),
    }


def _quantiles(errors: np.ndarray) -> dict[str, float]:
    """Of errors [..., 2] in m and rad."""
    place, turn = 1000 * errors.reshape(-1, 2).T
    if not len(place):
        return {}
    return {
        "median_mm": float(np.median(place)), "p95_mm": float(np.quantile(place, 0.95)),
        "median_mrad": float(np.median(turn)), "p95_mrad": float(np.quantile(turn, 0.95)),
    }  # fmt: skip


def errors_in_words(found: dict[str, Any]) -> str:
    """One line of what `measure` gave."""

    def words(name: str) -> str:
        e = found[name]
        return f"{e['median_mm']:.2f} mm ({e['p95_mm']:.1f}), {e['median_mrad']:.1f} mrad ({e['p95_mrad']:.0f})"

    parts = {"all": "pose error, median (95 %)", "covered": "with the arm over the sheet", "blank": "on blank pictures"}
    return "; ".join(f"{text} {words(name)}" for name, text in parts.items() if found.get(name))


def taught(
    teacher: Teacher, learner: Learner, key: jax.Array, stopped: Callable[[], bool] | None = None
) -> tuple[Learner, dict[str, float]]:
    """`Teacher.teach` with its loss and seconds, for records."""
    if stopped:
        teacher.roller.stopped = stopped
    begin = time.perf_counter()
    learner, loss = teacher.teach(learner, key)
    jax.block_until_ready(learner.pose)
    return learner, {"loss_cm": loss, "seconds": time.perf_counter() - begin}


def save_pose_network(folder: Path, learner: Learner, config: TrainConfig, record: dict[str, Any]) -> None:
    """Write a taught network into `folder`, with what it sees and how good it is."""
    meta = {"sees": seen_by(config), "config": config.to_dict(), **record}
    checkpoint.save(folder / "pose", {"pose": learner.pose}, meta)


def load_pose_network(folder: Path, learner: Learner, config: TrainConfig) -> Learner:
    """The learner with the network of `folder`. Raises CheckpointError if it is none, is damaged, or sees other
    pictures than those of `config`."""
    path = Path(folder) / "pose"
    checkpoint.check_same(path, checkpoint.read_meta(path)["sees"], seen_by(config), "what the pose network sees")
    return learner.replace(pose=checkpoint.restore(path, "pose", learner.pose))


def seen_by(config: TrainConfig) -> dict[str, Any]:
    """What a pose network depends on, as plain JSON types: its pictures, whoever draws them, and its size."""
    render = {name: value for name, value in config.to_dict()["render"].items() if name != "renderer"}
    return {**render, "channels": config.teach.channels, "hidden": config.teach.hidden, "blind": config.blind}
