"""The training loop: rollout, update, log, evaluate, checkpoint; stops cleanly and resumes bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mjx_so101.errors import Interrupted
from policies.base import SEES_POSE, make_base
from policies.model import OF_THE_MACHINE, ModelOptions
from policies.residual import Learner
from train import checkpoint
from train.config import TrainConfig
from train.evaluate import Evaluator
from train.eyes import check_memory, picture_faults
from train.health import UpdateWatch, count_faults, refuse_faults, refuse_pictures
from train.log import Log
from train.ppo import PPO
from train.provenance import command
from train.rollout import SAMPLE, Carry, ResidualCosts, Roller
from train.signals import Stop, last_words
from train.teach import Teacher, errors_in_words, load_pose_network, measure, taught

SELECTION_SEED = 1_000_003
"""Seeds of the episodes that choose the best checkpoint; the reported ones use REPORT_SEED."""
REPORT_SEED = 2_000_003
TEACHING = 1 << 20
"""Tells the key of the teaching from those of the training."""


class Trainer:
    """One training run in one folder."""

    def __init__(self, config: TrainConfig, out: Path):
        self.config, self.out = config.resolve(), Path(out)
        self.stop = Stop(saved=lambda: self.steps == self.saved_steps)
        randomization = self.config.load_randomization()
        eval_envs = config.evaluation_batch()
        if config.pictures:
            sizes = (config.num_envs, config.ppo.unroll, config.ppo.minibatches, eval_envs)
            print(check_memory(config.pictures, *sizes))

        self.env = config.environment(config.num_envs, training=True, randomization=randomization)
        self.base = make_base(config.base, self.env.task, config.model)
        self.residual = config.make_residual(self.base.num_features)
        updates = -(-config.steps // (config.num_envs * config.ppo.unroll))
        self.ppo = PPO(config.ppo, self.residual, updates)
        costs = ResidualCosts(config.ppo.residual_cost, config.ppo.residual_change_cost)
        keep = functools.partial(_keep, replay=config.strict)
        self.roller = Roller(self.env, self.base, self.residual, keep, mode=SAMPLE, costs=costs, blind=config.blind)
        self.eval_env = config.environment(eval_envs, training=False, randomization=randomization)
        self.evaluator = Evaluator(self.eval_env, self.base, self.residual, blind=config.blind)
        self._watch = UpdateWatch(config.num_envs * config.ppo.unroll)
        self._picture_faults = jax.jit(picture_faults)
        self._start_fresh()

    def _start_fresh(self) -> None:
        key = jax.random.PRNGKey(self.config.seed)
        key_learner, key_carry, key_age, self.key = jax.random.split(key, 4)
        self.learner: Learner = self.residual.init(key_learner)
        self.taught: dict[str, Any] | None = None
        """How the pose network was taught, and how good it is."""
        if self.config.pose_network and not (self.out / "checkpoints" / "last").exists():  # else it is in there
            self.learner = load_pose_network(Path(self.config.pose_network), self.learner, self.config)
        self.opt_state = self.ppo.init(self.learner)
        carry = self.roller.start(key_carry)
        # episodes begin at different ages, or all would time out together
        age = jax.random.randint(key_age, (self.config.num_envs,), 0, self.config.episode_steps)
        self.carry: Carry = carry.replace(state=carry.state.replace(step=age.astype(jnp.int32)))
        self.steps, self.saved_steps = 0, -1
        self.best = -1.0
        self.evaluations: list[dict[str, Any]] = []
        self.seconds = {"rollout": 0.0, "update": 0.0, "evaluation": 0.0, "compile": 0.0, "teaching": 0.0}
        self.ended = ""

    def teach(self) -> None:
        """Teach the pose network unless there is one already, and measure it."""
        begin, base = time.perf_counter(), self.base
        if base.name not in SEES_POSE:
            base = make_base("jacobian", self.env.task)
        record: dict[str, Any] = {}
        if not self.config.pose_network:
            teacher = Teacher(self.config.teach, self.env, base, self.residual, self.config.blind)
            key = jax.random.fold_in(jax.random.PRNGKey(self.config.seed), TEACHING)
            self.learner, record = taught(teacher, self.learner, key, self.roller.stopped)
        count = min(self.config.eval_episodes, self.eval_env.num_envs)
        found = measure(self.eval_env, base, self.residual, self.learner, count, self.config.blind, self.roller.stopped)
        self.taught = {**record, **found}
        self.seconds["teaching"] += time.perf_counter() - begin
        print(errors_in_words(found), flush=True)

    # -- one iteration ---------------------------------------------------------------------------------------------
    def iterate(self) -> dict[str, float]:
        """One rollout and one update; gives the metrics."""
        compiling = self.seconds["rollout"] == 0.0
        begin = time.perf_counter()
        carry, (data, seen) = self.roller.roll(self.learner, self.carry, self.config.ppo.unroll)
        jax.block_until_ready(carry.last_residual)
        rolled = time.perf_counter()
        fault = seen.pop("fault", None)
        if fault is not None:
            refuse_faults(fault, self.out)
        next_key, key = jax.random.split(self.key)
        carry = self.roller.refilled(carry)
        last = self.roller.value_vectors(carry)
        pictures = self._picture_faults(data.vectors) if self.config.pictures and not self.config.blind else {}
        self.learner, self.opt_state, losses = self.ppo.update(self.learner, self.opt_state, data, last, key)
        self.carry, self.key = carry, next_key  # all at once: a rollout that is interrupted has changed nothing
        losses = {name: float(value) for name, value in {**losses, **pictures}.items()}
        done = time.perf_counter()
        if compiling:
            self.seconds["compile"] += done - begin
            self.seconds["rollout"], self.seconds["update"] = 1e-9, 1e-9
        else:
            self.seconds["rollout"] += rolled - begin
            self.seconds["update"] += done - rolled
        self.steps += self.config.num_envs * self.config.ppo.unroll
        return {**_summarize(seen), **losses}

    def evaluate(self) -> dict[str, Any]:
        """Mean-action success at the end of the selection episodes; keeps the best learner."""
        summary = self.evaluator(self.learner, self.config.eval_episodes, SELECTION_SEED).summary()
        self._count_evaluation(summary["seconds"])
        rate = self._training_success(summary["success_at_end"])
        looser = sum(entry["rate"] for entry in summary["success_at_end"].values())
        score = rate + 1e-3 * looser  # among equals the one that is better at the other tolerances wins
        better = score > self.best
        record = {**summary, "steps": self.steps, "wall_seconds": self.wall_seconds, "rate": rate, "best": better}
        self.evaluations.append(record)
        if better:
            self.best = score
            self.save("best", learner_only=True)
        return record

    def _count_evaluation(self, seconds: float) -> None:
        """The first evaluation compiles; what it took longer than the second counts as compilation."""
        if not self.evaluations:
            self.seconds["compile"] += seconds
        elif len(self.evaluations) == 1:
            running = min(seconds, self.seconds["compile"])
            self.seconds["evaluation"] += seconds + running
            self.seconds["compile"] -= running
        else:
            self.seconds["evaluation"] += seconds

    def _training_success(self, success: dict[str, dict[str, float]]) -> float:
        """Rate at the training tolerance, or at the smallest reported one that is not tighter."""
        mm = 1000 * self.config.tolerance
        keys = sorted(success, key=float)
        return success[next((k for k in keys if float(k) >= mm - 1e-9), keys[-1])]["rate"]

    def best_learner(self) -> Learner:
        """The learner of checkpoint `best`."""
        return checkpoint.restore(self.out / "checkpoints" / "best", "learner", self.learner)

    def commands(self) -> str:
        """The command lines that made this run, a resumed one after the other."""
        path = self.out / "commands.txt"
        return " && ".join(path.read_text().split("\n")[:-1]) if path.exists() else command()

    @property
    def wall_seconds(self) -> float:
        """Seconds spent so far, compilation included, over all parts of a resumed run."""
        return sum(self.seconds.values())

    # -- checkpoints -------------------------------------------------------------------------------------------------
    def save(self, name: str, learner_only: bool = False) -> None:
        """Write checkpoint `name` into the run folder, atomically."""
        trees: dict[str, Any] = {"learner": self.learner}
        if not learner_only:
            trees["trainer"] = {"opt_state": self.opt_state, "carry": self.carry, "key": self.key}
        with self.stop.held():
            checkpoint.save(self.out / "checkpoints" / name, trees, self._meta())
        if not learner_only:
            self.saved_steps = self.steps

    def _meta(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "layout": self.residual.layout,
            "physics": self.env.physics.name,
            "steps": self.steps,
            "best": self.best,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "taught": self.taught,
        }

    def resume(self) -> None:
        """Continue from the run folder's last checkpoint. Raises CheckpointError if it does not fit this run.

        The best score is that of checkpoint `best` itself, which may be younger than `last` if the run was killed.
        """
        path, best = (self.out / "checkpoints" / name for name in ("last", "best"))
        meta = checkpoint.read_meta(path)
        now = self._meta()
        checkpoint.check_same(path, comparable(meta["config"]), comparable(now["config"]), "configuration")
        checkpoint.check_same(path, meta["layout"], now["layout"], "observation layout")
        checkpoint.check_same(path, {"physics": meta["physics"]}, {"physics": now["physics"]}, "physics backend")
        learner = checkpoint.restore(path, "learner", self.learner)
        like = {"opt_state": self.opt_state, "carry": self.carry, "key": self.key}
        rest = checkpoint.restore(path, "trainer", like)
        self.best = -1.0
        if meta["evaluations"] or best.exists():  # it is read here, so that damage is known before the training
            self.best_learner()
            self.best = checkpoint.read_meta(best)["best"]
        self.learner = learner
        self.opt_state, self.carry, self.key = rest["opt_state"], rest["carry"], rest["key"]
        self.steps = self.saved_steps = meta["steps"]
        self.evaluations, self.seconds = meta["evaluations"], {**self.seconds, **meta["seconds"]}
        self.taught = meta.get("taught")

    # -- the loop ----------------------------------------------------------------------------------------------------
    def run(self, progress: bool = True) -> bool:
        """Train until the steps are done, success is reached, or a signal asks to stop; True if it finished."""
        if self.config.strict and self.roller.eyes:
            self.roller.eyes.check(self.carry.state)
        if not self.evaluations and progress:
            print("Compiling, and evaluating the base policy; the bar appears afterwards ...", flush=True)
        bar = tqdm(
            total=self.config.steps,
            initial=min(self.steps, self.config.steps),
            unit="step",
            unit_scale=True,
            disable=not progress,
        )
        said = f"Stopped by a signal; saved. Continue with: so101 train --resume {self.out}"
        with Log(self.out, self.steps, self.evaluations) as log, bar, last_words(said), self.stop.listening():
            self.roller.stopped = self.evaluator.stopped = lambda: bool(self.stop)
            with contextlib.suppress(Interrupted):  # a rollout or an evaluation, which the resumed run begins again
                self._train(log, bar)
            log.sync()
            self.save("last")
            stopped = bool(self.stop)
        if stopped:
            print(said, flush=True)
            return False
        self.ended = self._why_ended()
        if progress:
            print(self.ended)
        return True

    def _train(self, log: Log, bar: tqdm) -> None:
        """Iterate and evaluate in turn until the run ends or is to stop."""
        config, recent = self.config, deque[float](maxlen=20)
        if self.residual.pose and not self.taught:
            self.teach()
        while not self.stop:
            if self._evaluation_is_due():
                log.sync()
                self.save("last")  # whatever happens during the evaluation, nothing is lost
                log.evaluation(self.evaluate())
                log.sync()
                self.save("last")
                bar.unpause()
            if self.steps >= config.steps or self._solved():
                return
            before = self.steps
            metrics = self.iterate()
            self._check(metrics)
            if metrics["episodes"]:
                recent.append(metrics["success"])
            metrics["steps_per_second"] = self.steps_per_second
            log.metrics(self.steps, metrics)
            bar.set_postfix(success=f"{np.mean(recent or [0]):.0%}", best=f"{max(self.best, 0):.0%}", refresh=False)
            bar.update(min(self.steps, config.steps) - min(before, config.steps))

    def _evaluation_is_due(self) -> bool:
        """Before the first step, after the last one, and each time that another share of the steps is done."""
        if not self.evaluations:
            return True
        every, last = max(1, int(self.config.eval_every * self.config.steps)), self.evaluations[-1]["steps"]
        return self.steps > last and (self.steps // every > last // every or self.steps >= self.config.steps)

    def _solved(self) -> bool:
        """Whether the last evaluation reached the success at which training stops."""
        trained = len(self.evaluations) > 1
        return trained and self.evaluations[-1]["rate"] >= self.config.stop_at_success

    def _why_ended(self) -> str:
        if not self._solved() or self.steps >= self.config.steps:
            return f"All {self.config.steps:,} steps are done."
        return (
            f"Stopped after {self.steps:,} of {self.config.steps:,} steps: {self.evaluations[-1]['rate']:.1%} success "
            f"on the selection episodes reaches stop_at_success ({self.config.stop_at_success:.1%})."
        )

    @property
    def steps_per_second(self) -> float:
        """Control steps per second of rollout and update together, without the first, compiling iteration."""
        spent = self.seconds["rollout"] + self.seconds["update"]
        first = self.config.num_envs * self.config.ppo.unroll
        return (self.steps - first) / spent if spent > 1e-6 else float("nan")

    def _check(self, metrics: dict[str, float]) -> None:
        if self.config.strict:
            refuse_pictures(metrics)
        self._watch.check(metrics, self.steps)


def _keep(pending, transition, result, replay: bool):
    """What training keeps of each step: the transition and a few counts."""
    solved = result.last.succeeded[:, 0] & ~result.last.invalid
    return transition, {
        "reward": jnp.mean(result.reward),
        "terms": {name: jnp.mean(value) for name, value in result.terms.items()},
        "episodes": jnp.sum(result.done),
        "successes": jnp.sum(result.done & solved),
        "residual": jnp.mean(jnp.abs(pending.residual)),
        **count_faults(pending, result, replay),
    }


def _summarize(seen: dict[str, Any]) -> dict[str, float]:
    seen = jax.tree.map(np.asarray, seen)
    episodes = seen["episodes"].sum()
    out = {
        "reward": float(seen["reward"].mean()),
        "success": float(seen["successes"].sum() / episodes) if episodes else float("nan"),
        "episodes": float(episodes),
        "residual": float(seen["residual"].mean()),
        **{name: float(seen[name].sum()) for name in ("overflow", "nonfinite", "bad_target", "invalid")},
    }
    return {**out, **{f"reward_{name}": float(value.mean()) for name, value in seen["terms"].items()}}


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration's record decides how a run goes; it may be resumed with any other value of the rest."""
    ignored = ("steps", "video", "report_episodes", "stop_at_success", "strict")
    model = {**dataclasses.asdict(ModelOptions()), **config["model"]}
    model = {k: v for k, v in json.loads(json.dumps(model)).items() if k not in OF_THE_MACHINE}
    return {**{k: v for k, v in config.items() if k not in ignored}, "model": model}
