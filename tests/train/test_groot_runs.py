"""GR00T's tiny checkpoint through gate, eval and train, as a user runs them, and how the GPU's memory is shared."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mjx_so101 import CheckpointError, TaskConfig
from policies.base import make_base
from policies.model import ModelOptions
from policies.residual import Residual, ResidualConfig
from train import checkpoint as checkpoints
from train import config as train_config
from train import gate, report
from train.cli import _share_gpu_with_torch, main
from train.loop import REPORT_SEED, Trainer
from train.policy import Policy
from train.rollout import BASE, SAMPLE, Roller
from train.run_folder import saved_config

pytestmark = pytest.mark.slow

SHORT = 20
"""Control steps of an evaluation episode, where not the real 400."""
SMALL = ("--base-width", "64", "--base-height", "48")
"""What the model is shown, where it does not matter; drawn in a tenth of the time."""
FRACTION = "XLA_CLIENT_MEM_FRACTION"
TRAIN_FLAGS = [
    *(
        "--num-envs",
        "4",
        "--unroll",
        "4",
        "--minibatches",
        "2",
        "--epochs",
        "1",
        "--steps",
        "48",
        "--hidden",
        "16",
        "16",
    ),
    *("--episode-steps", "10", "--horizon", "4", "--eval-every", "1", "--eval-episodes", "1", "--report-episodes", "1"),
    *("--no-video", "--hidden", "16", "16", "--preset", "cpu"),
]


def so101(*arguments, episode_steps=SHORT) -> SimpleNamespace:
    """Run the command in this process, short and small and without videos of the gate: exit status, out and err."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv(FRACTION, "0.2")  # or the command would set it for the rest of the session
        patch.setattr(train_config, "TaskConfig", functools.partial(TaskConfig, episode_steps=episode_steps))
        patch.setattr(Policy, "write_video", lambda *_, **__: [])
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
    return SimpleNamespace(code=code, out=out.getvalue(), err=" ".join(err.getvalue().split()))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of the tiny checkpoint. One thread, because two wait for each other longer than they compute."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from policies.groot.make_checkpoint import make_checkpoint

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def groot(checkpoint) -> list[str]:
    """Flags of the base policy."""
    return ["--base", "groot", "--checkpoint", str(checkpoint), "--physics", "native", "--home", "checkpoint", *SMALL]


# -- the base alone ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def evaluated(groot, read_json) -> dict:
    """What `so101 eval` says of an episode of full length; nothing but JSON may be on standard output."""
    done = so101("eval", *groot, "--episodes", 1, "--json", "-", episode_steps=400)
    assert done.code == 0, done.err
    assert "GR00T N1.5 on cpu" in done.err
    return read_json(done.out)


def test_eval_reports_three_tolerances(evaluated):
    assert (evaluated["policy"], evaluated["episodes"]) == ("groot", 1)
    assert list(evaluated["success"]) == ["5", "10", "20"]
    assert evaluated["nonfinite_episodes"] == evaluated["overflow_episodes"] == evaluated["mean_residual_rad"] == 0
    assert evaluated["environment"]["physics"] == "native"


@pytest.fixture(scope="module")
def gated(groot, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates") / "gate"
    done = so101(
        *("gate", *groot, "--base-width", 320, "--base-height", 240),
        *("--episodes", 1, "--most-episodes", 1, "--no-video", "--out", folder),
    )
    return done, folder


def test_gate_stops_a_model_of_random_weights(gated, read_json):
    done, folder = gated
    assert done.code == gate.EXIT_STATUS[gate.STOP] == 3, done.err
    assert done.out.splitlines()[-1] == f"Report: {folder / 'report.md'}"
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "frames.png"}
    found = read_json((folder / "report.json").read_text())
    assert (found["verdict"]["name"], found["verdict"]["success"]["rate"], found["results"]["episodes"]) == (
        "STOP",
        0.0,
        1,
    )
    assert (folder / "report.md").read_text().startswith("# Gate of groot: STOP")


def test_gate_describes_model_and_pictures(gated, checkpoint, read_json):
    found = read_json((gated[1] / "report.json").read_text())
    model, images, speed = found["model"], found["images"], found["speed"]
    assert (model["checkpoint"], model["device"], model["dtype"]) == (str(checkpoint), "cpu", "float32")
    assert model["cameras"] == list(images["cameras"]) == ["top", "wrist"]
    assert (images["width"], images["height"], images["order"], images["problems"]) == (320, 240, "as named", [])
    assert all(camera["brightness"] > 5 for camera in images["cameras"].values())
    assert speed["inference"]["inferences"] == -(-SHORT // 16) and speed["inference"]["latency_s_median"] > 0
    assert found["actions"]["outside_training"] is not None  # metadata.json tells the range


# -- training ------------------------------------------------------------------------------------------------------
def test_train_refuses_what_the_gate_stops(groot, tmp_path, monkeypatch):
    monkeypatch.setattr(gate.GateSettings, "most_episodes", 1)
    folder = tmp_path / "run"
    done = so101("train", *groot, *TRAIN_FLAGS, "--gate-episodes", 1, "--out", folder)
    assert done.code == 2
    assert "Gate: STOP" in done.out and "error: base 'groot' did not pass the gate" in done.err
    assert str(folder / "gate" / "report.md") in done.err and "--force" in done.err
    assert sorted(path.name for path in folder.iterdir() if path.name != "lock") == ["gate"]
    assert json.loads((folder / "gate" / "report.json").read_text())["verdict"]["name"] == "STOP"


def test_train_with_force_goes_on_after_the_gate(groot, tmp_path, monkeypatch):
    """Until the trainer is made: what comes then is the same as without a gate."""

    class Enough(Exception):
        pass

    def trainer(config, folder):
        raise Enough(config.base, json.loads((folder / "gate" / "report.json").read_text())["verdict"]["name"])

    monkeypatch.setattr(gate.GateSettings, "most_episodes", 1)
    monkeypatch.setattr("train.loop.Trainer", trainer)
    with pytest.raises(Enough, match=r"groot.*STOP"):
        so101("train", *groot, "--force", "--gate-episodes", 1, "--out", tmp_path / "run", episode_steps=2)


@pytest.fixture(scope="module")
def trained(groot, tmp_path_factory) -> Path:
    """Run folder of three iterations, 16 control steps each, without a gate. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "groot"
    done = so101("train", *groot, *TRAIN_FLAGS, "--force", "--gate-episodes", 0, "--out", folder)
    assert done.code == 0, done.err
    assert "No gate: --gate-episodes 0 --force" in done.out
    return folder


def test_train_updates_checkpoints_and_reports(trained, checkpoint, read_json):
    assert not (trained / "gate").exists()
    records = [read_json(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert [record["steps"] for record in train] == [16, 32, 48]
    assert all(record["overflow"] == record["nonfinite"] == 0 for record in train)
    assert sum(record["episodes"] for record in train) >= 4, "no reset: the run shows too little"
    assert [record["steps"] for record in records if record["kind"] == "evaluation"] == [0, 48]
    assert checkpoints.read_meta(trained / "checkpoints" / "last")["steps"] == 48
    assert (trained / "checkpoints" / "best").is_dir()
    written = read_json((trained / "report.json").read_text())
    assert (written["finished"], written["steps"]) == (True, 48)
    assert written["config"]["model"]["checkpoint"] == str(checkpoint)
    assert set(written["results"]) == {"base", "mean", "sample", "noise"}
    assert "groot" in (trained / "report.md").read_text()


@pytest.fixture(scope="module")
def first_third(trained, tmp_path_factory) -> Trainer:
    """The same run made with a Trainer and left after its first iteration, with a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_config, "TaskConfig", functools.partial(TaskConfig, episode_steps=SHORT))
        trainer = Trainer(saved_config(trained), tmp_path_factory.mktemp("third"))
    trainer.iterate()
    trainer.save("last")
    shutil.copy(trained / "config.json", trainer.out)
    return trainer


def test_resumed_run_ends_bit_for_bit_like_the_uninterrupted_one(
    trained, first_third, current_state, differences, monkeypatch
):
    begun = current_state(first_third)

    def last(run: Path) -> dict:
        return {name: checkpoints.restore(run / "checkpoints" / "last", name, begun[name]) for name in begun}

    assert not differences(last(first_third.out), begun)
    results = json.loads((trained / "report.json").read_text())["results"]
    monkeypatch.setattr(report, "compare_policies", lambda *_, **__: (results, None))  # saves time
    done = so101("train", "--resume", first_third.out)
    assert done.code == 0, done.err
    assert "Resumed at 16 steps" in done.out
    assert not (first_third.out / "gate").exists()
    assert not differences(last(trained), last(first_third.out))
    changed = differences(begun, last(trained))
    for part in ("['learner'].policy", "['learner'].value", "['opt_state']", "['carry'].base.targets"):
        assert any(part in name for name in changed), part
    assert (first_third.out / "report.md").exists()


# -- a run somewhere else ------------------------------------------------------------------------------------------
def mean_of_eval(*arguments, file) -> dict:
    done = so101("eval", *arguments, "--episodes", 1, "--seed", REPORT_SEED, "--json", file)
    assert done.code == 0, done.err
    return json.loads(file.read_text())


def test_eval_of_a_run_gives_the_numbers_of_its_report(trained, tmp_path):
    reported = json.loads((trained / "report.json").read_text())["results"]["mean"]
    record = mean_of_eval("--run", trained, file=tmp_path / "result.json")
    assert record["policy"] == str(trained)
    assert record["success"] == reported["success"]
    for name in ("final_distance_mm", "final_yaw_deg", "mean_return", "mean_residual_rad"):
        assert record[name] == pytest.approx(reported[name], rel=1e-5), name


def test_eval_of_a_run_whose_checkpoint_was_moved(trained, checkpoint, tmp_path):
    """Only the place is replaced: the horizon remains that of the run."""
    run, moved = shutil.copytree(trained, tmp_path / "run"), shutil.copytree(checkpoint, tmp_path / "moved")
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(str(checkpoint), str(tmp_path / "gone")))
    refused = so101("eval", "--run", run, "--episodes", 1)
    assert refused.code == 2 and f"{tmp_path / 'gone'} is no folder here" in refused.err
    reported = json.loads((trained / "report.json").read_text())["results"]["mean"]
    record = mean_of_eval("--run", run, "--checkpoint", moved, file=tmp_path / "result.json")
    for name in ("final_distance_mm", "final_yaw_deg", "mean_return", "mean_residual_rad"):
        assert record[name] == pytest.approx(reported[name], rel=1e-5), name


# -- alpha 0 -------------------------------------------------------------------------------------------------------
def test_alpha_zero_is_the_base_bit_for_bit(checkpoint, make_env, shaken):
    """Whatever the residual answers: its learner is shaken, and samples."""
    env = make_env(2, "plain")
    options = ModelOptions(checkpoint=str(checkpoint), base_width=64, base_height=48, any_start=True)
    base = make_base("groot", env.task, options)
    assert "unlike the training data: shoulder_lift" in base.note and base.render_config.width == 64
    residual = Residual(ResidualConfig(alpha=0.0), base.num_features)
    learner = shaken(residual.init(jax.random.PRNGKey(0)), 0.5)

    def keep(pending, transition, result):
        del transition
        return {
            "base": pending.base_target,
            "command": pending.carry.state.target,
            "r": pending.residual,
            "qpos": result.last.physics.qpos,
        }

    sampled = Roller(env, base, residual, keep, mode=SAMPLE)
    zero, alone = (
        roller.roll(learner, roller.start(jax.random.PRNGKey(1)), 5)[1] for roller in (sampled, sampled.variant(BASE))
    )
    assert np.abs(zero["r"]).max() > 0.1 and not np.array_equal(zero["r"], alone["r"])
    low, high = (np.asarray(x, np.float32) for x in (env.task.kinematics.lower, env.task.kinematics.upper))
    np.testing.assert_array_equal(zero["command"], np.clip(zero["base"], low, high))
    for name in ("base", "command", "qpos"):
        np.testing.assert_array_equal(zero[name], alone[name])
    assert np.ptp(zero["base"], axis=0).max() > 1e-3


# -- refusals ------------------------------------------------------------------------------------------------------
@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("command", ["train", "train --force --gate-episodes 0", "gate", "eval", "play"])
def test_groot_without_a_checkpoint_is_refused(command, own_folder):
    done = so101(*command.split(), "--base", "groot")
    assert done.code == 2 and "base 'groot' needs --checkpoint" in done.err
    assert not list(own_folder.iterdir())


@pytest.mark.parametrize("command", ["train", "train --force", "train --force --gate-episodes 0", "gate", "eval"])
def test_checkpoint_that_is_not_there_is_refused(command, own_folder):
    pytest.importorskip("torch")
    missing = own_folder / "not" / "there"
    done = so101(*command.split(), "--base", "groot", "--checkpoint", missing, "--physics", "native")
    assert done.code == 2 and f"{missing} is no folder here" in done.err
    assert [path for path in own_folder.rglob("*") if path.name != "runs"] == []


def test_no_gate_needs_force(own_folder):
    given = ("--base", "groot", "--checkpoint", own_folder)
    done = so101("train", *given, "--gate-episodes", 0, "--out", own_folder / "run")
    assert done.code == 2 and "--gate-episodes 0 leaves out the gate; it needs --force" in done.err
    done = so101("train", *given, "--gate-episodes", -1, "--force", "--out", own_folder / "run")
    assert done.code == 2 and "episodes is -1" in done.err
    assert not list(own_folder.iterdir())


MIDDLE = (0.02, 0.559, -0.28, 0.745, -1.542, 0.044)
"""Of the states of the tiny checkpoint."""


def test_start_pose_is_recorded(trained, evaluated, checkpoint):
    """As numbers: the checkpoint may change under its name."""
    config = json.loads((trained / "config.json").read_text())
    assert config["home"] == pytest.approx(MIDDLE, abs=1e-3)
    assert evaluated["environment"]["home"] == config["home"]
    assert (config["model"]["base_width"], config["model"]["base_height"]) == (64, 48)


def test_resume_from_another_start_pose_is_refused(first_third, monkeypatch):
    monkeypatch.setattr(first_third, "config", dataclasses.replace(first_third.config, home="task"))
    with pytest.raises(CheckpointError, match=r"home: saved \[0\.02.*now 'task'"):
        first_third.resume()


@pytest.mark.parametrize("command", ["train", "train --force --gate-episodes 0", "gate", "eval"])
def test_start_pose_that_the_checkpoint_never_saw_is_refused(command, checkpoint, own_folder):
    done = so101(*command.split(), "--base", "groot", "--checkpoint", checkpoint, "--physics", "native", *SMALL)
    assert done.code == 2
    for words in ("shoulder_lift starts at -1.100 rad", "wrist_roll", "gripper", "--home checkpoint", "--any-start"):
        assert words in done.err
    assert [path for path in own_folder.rglob("*") if path.name != "runs"] == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--home chekpoint", "home is 'chekpoint'; give 'task', 'checkpoint' or six angles"),
        ("--home 0.1 0.2", "one finite angle (rad) for each of the 6 joints"),
        ("--base-width 4", "base_width is 4; give 16 to 2048 pixels"),
        ("--base-height 9999", "base_height is 9999; give 16 to 2048 pixels"),
    ],
)
def test_bad_flags_of_a_model_are_named(flags, words, checkpoint, own_folder):
    done = so101("gate", "--base", "groot", "--checkpoint", checkpoint, "--physics", "native", *flags.split())
    assert done.code == 2 and words in done.err.replace("\u2502 ", "").replace("  ", " ")


# -- memory of the GPU ---------------------------------------------------------------------------------------------
@pytest.fixture
def fraction_after(monkeypatch, tmp_path):
    """Function from a command line, saved run and environment to XLA_CLIENT_MEM_FRACTION as JAX would find it."""
    (tmp_path / "run").mkdir()

    def fraction(line: str, config: str | None = None, **environment: str) -> str | None:
        for name in (FRACTION, "XLA_PYTHON_CLIENT_MEM_FRACTION"):
            monkeypatch.setenv(name, "0.9")  # so that its absence is restored, too
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if config is not None:
            (tmp_path / "run" / "config.json").write_text(config)
        _share_gpu_with_torch(line.replace("RUN", str(tmp_path / "run")).split())
        return os.environ.get(FRACTION)

    return fraction


@pytest.mark.parametrize(
    ("line", "config", "fraction"),
    [
        ("train --base groot", None, "0.2"),
        ("gate --steps 3 --base=groot --jax-memory 0.3", None, "0.3"),
        ("eval --run RUN", '{"base": "groot", "model": {"jax_memory": 0.25}}', "0.25"),
        ("eval --run RUN --jax-memory=0.4", '{"base": "groot", "model": {"jax_memory": 0.25}}', "0.4"),
        ("train --resume RUN", '{"base": "groot", "model": {"jax_memory": 0.25}}', "0.25"),
        ("play --run RUN", '{"base": "groot"}', "0.2"),
        ("eval --run RUN", '{"base": "jacobian", "model": {"jax_memory": 0.25}}', None),
        ("eval --run RUN", '{"base": "groot", "mod', None),  # damaged
        ("eval --run RUN", "[]", None),
        ("eval --run RUN", '{"base": "groot", "model": null}', "0.2"),
        ("train --base groot --jax_memory 0.5", None, "0.5"),
        ("eval --run RUN", None, None),
        ("train --base jacobian --jax-memory 0.3", None, None),
        ("train --base remote", None, None),
        ("doctor", None, None),
    ],
)
def test_jax_leaves_memory_to_torch_for_groot_only(fraction_after, line, config, fraction):
    assert fraction_after(line, config) == fraction


def test_what_the_user_set_for_jax_stays(fraction_after):
    assert fraction_after("train --base groot --jax-memory 0.3", XLA_CLIENT_MEM_FRACTION="0.6") == "0.6"
    assert fraction_after("train --base groot", XLA_PYTHON_CLIENT_MEM_FRACTION="0.6") is None


def test_the_command_line_asks_for_it(fraction_after, capsys):
    assert fraction_after("doctor") is None
    with pytest.raises(SystemExit):
        main(["eval", "--base", "groot"])
    assert os.environ[FRACTION] == "0.2" and "--checkpoint" in capsys.readouterr().err


def test_resume_takes_a_moved_checkpoint_but_no_other_horizon(first_third, monkeypatch):
    def with_model(**changes):
        model = dataclasses.replace(first_third.config.model, **changes)
        monkeypatch.setattr(first_third, "config", dataclasses.replace(first_third.config, model=model))

    with_model(checkpoint="elsewhere", micro_batch=3, jax_memory=0.5)
    first_third.resume()
    with_model(horizon=first_third.config.model.horizon - 1)
    with pytest.raises(CheckpointError, match=r"model.*horizon"):
        first_third.resume()
