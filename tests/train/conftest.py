"""A tiny training run through the command line, and the same run made step by step with a Trainer."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from train import checkpoint
from train.cli import main
from train.config import PRESETS, TrainConfig
from train.loop import Trainer

TINY_FLAGS = [
    *("--base", "jacobian", "--physics", "native", "--num-envs", "16", "--steps", "5120", "--episode-steps", "40"),
    *(
        "--eval-every",
        "0.25",
        "--eval-episodes",
        "6",
        "--eval-batch",
        "6",
        "--report-episodes",
        "8",
        "--no-video",
        "--hidden",
        "16",
        "16",
    ),
    *("--unroll", "8", "--epochs", "2", "--minibatches", "4", "--stop-at-success", "1.0", "--preset", "cpu"),
]


def state_of(trainer: Trainer) -> dict:
    """All that training changes, as NumPy copies."""
    state = {
        "learner": trainer.learner,
        "trainer": {"opt_state": trainer.opt_state, "carry": trainer.carry, "key": trainer.key},
    }
    return jax.tree.map(np.array, state)


class Uninterrupted:
    """A training run of `tiny_config` that nothing interrupts; `after(n)` is its state after n iterations."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._states = [state_of(trainer)]

    def after(self, iterations: int) -> dict:
        while len(self._states) <= iterations:
            self.trainer.iterate()
            self._states.append(state_of(self.trainer))
        return self._states[iterations]


@pytest.fixture(scope="session")
def tiny_flags() -> list[str]:
    """Flags of `so101 train` for a run of 40 iterations of 128 steps."""
    return list(TINY_FLAGS)


@pytest.fixture(scope="session")
def tiny_config() -> TrainConfig:
    """What `tiny_flags` mean."""
    cpu = PRESETS["cpu"]
    return dataclasses.replace(
        cpu, base="jacobian", physics="native", num_envs=16, steps=5120, episode_steps=40, eval_every=0.25,
        eval_episodes=6, eval_batch=6, report_episodes=8, video=False, stop_at_success=1.0,
        residual=dataclasses.replace(cpu.residual, hidden=(16, 16)),
        ppo=dataclasses.replace(cpu.ppo, unroll=8, epochs=2, minibatches=4),
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """Run folder of `so101 train` with `tiny_flags`. Read only; copy it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = ["train", *TINY_FLAGS, "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/somewhere/bin/so101", *arguments])  # the report names the command
        patch.setattr(sys, "orig_argv", ["python", *sys.argv])
        main(arguments)
    return folder


@pytest.fixture
def copy_of_run(tiny_run, tmp_path) -> Path:
    """A copy of `tiny_run` that a test may change."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


@pytest.fixture(scope="session")
def tiny_report(tiny_run) -> dict:
    """report.json of `tiny_run`."""
    return json.loads((tiny_run / "report.json").read_text())


@pytest.fixture(scope="session")
def uninterrupted(tiny_config, tmp_path_factory) -> Uninterrupted:
    """The same run without evaluations; its folder holds the checkpoint `last` of the second iteration."""
    run = Uninterrupted(Trainer(tiny_config, tmp_path_factory.mktemp("uninterrupted")))
    run.after(2)
    run.trainer.save("last")
    return run


@pytest.fixture(scope="session")
def half_run(uninterrupted) -> Path:
    """Run folder with a checkpoint after two of 40 iterations. Read only."""
    return uninterrupted.trainer.out


@pytest.fixture(scope="session")
def second_trainer(tiny_config, tmp_path_factory) -> Trainer:
    """Another Trainer of `tiny_config`: in no known state, so call `resume` first."""
    return Trainer(tiny_config, tmp_path_factory.mktemp("second"))


@pytest.fixture(scope="session")
def current_state():
    """Function from a Trainer to all that training changes, as NumPy copies."""
    return state_of


@pytest.fixture(scope="session")
def saved_state(second_trainer):
    """Function from a run folder of `tiny_config` to the state in its checkpoint `last`."""
    like = state_of(second_trainer)

    def load(run: Path) -> dict:
        return {name: checkpoint.restore(run / "checkpoints" / "last", name, like[name]) for name in like}

    return load


@pytest.fixture(scope="session")
def differences():
    """Function from two pytrees to the names of the leaves that are not equal bit for bit."""

    def compare(a, b) -> list[str]:
        left, right = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (a, b))
        assert len(left) == len(right)
        return [
            jax.tree_util.keystr(path)
            for (path, x), (_, y) in zip(left, right, strict=True)
            if np.asarray(x).dtype != np.asarray(y).dtype or np.asarray(x).tobytes() != np.asarray(y).tobytes()
        ]

    return compare


@pytest.fixture(scope="session")
def shaken():
    """Function from a learner to one whose policy answers its input: noise of a given size on all parameters."""

    def shake(learner, size):
        rng = np.random.default_rng(1)
        policy = jax.tree.map(lambda x: x + rng.normal(0, size, x.shape).astype(np.float32), learner.policy)
        return learner.replace(policy=policy)

    return shake


@pytest.fixture(scope="session")
def read_json():
    """Function from text to its content, refusing NaN and Infinity, which are not JSON."""

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return lambda text: json.loads(text, parse_constant=refuse)
