"""Teaching the pose network, and runs whose base and residual see the sheet through it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from mjx_so101 import CheckpointError, ConfigError
from mjx_so101.errors import Interrupted
from policies.base import make_base
from train.cli import main
from train.config import TrainConfig
from train.policy import base_alone, load_policy
from train.report import saw
from train.teach import TeachConfig, Teacher, errors_in_words, load_pose_network, measure

TINY = TeachConfig(updates=24, unroll=4, minibatches=4, channels=8, hidden=32, learning_rate=3e-3)
FLAGS = [
    *("--num-envs", "32", "--width", "32", "--height", "32", "--updates", "24", "--minibatches", "4", "--unroll", "4"),
    *("--channels", "8", "--hidden", "32", "--episodes", "8"),
]
RUN = [
    *("--preset", "cpu", "--sheet-pose", "camera", "--num-envs", "32", "--unroll", "8", "--steps", "512"),
    *("--eval-every", "1", "--eval-episodes", "4", "--eval-batch", "4", "--report-episodes", "4", "--no-video"),
    *("--width", "32", "--height", "32", "--teach.channels", "8", "--teach.hidden", "32", "--hidden", "16"),
]


@pytest.fixture(scope="module")
def config():
    render = dataclasses.replace(TrainConfig().render, width=32, height=32)
    return TrainConfig(sheet_pose="camera", num_envs=32, teach=TINY, render=render)


@pytest.fixture(scope="module")
def taught(config):
    """Teacher, residual, learner before and learner after."""
    env = config.environment(32, training=True)
    base = make_base("jacobian", env.task)
    residual = config.make_residual(base.num_features)
    teacher = Teacher(TINY, env, base, residual)
    before = residual.init(jax.random.PRNGKey(0))
    after, loss = teacher.teach(before, jax.random.PRNGKey(1), progress=False)
    return teacher, residual, before, after, loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `so101 teach-pose` writes. Read only."""
    path = tmp_path_factory.mktemp("teach") / "pose"
    main(["teach-pose", *FLAGS, "--out", str(path)])
    return path


def test_teaching_changes_the_pose_network_and_nothing_else(taught):
    _, _, before, after, loss = taught
    assert 0 < loss < 10
    for name in ("policy", "value", "normalizer"):
        same = jax.tree.map(np.array_equal, getattr(before, name), getattr(after, name))
        assert all(jax.tree.leaves(same)), name
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before.pose, after.pose)
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_a_taught_network_sees_better_than_before_and_than_on_blank_pictures(config, taught):
    _, residual, before, after, _ = taught
    env = config.environment(8, training=False)
    base = make_base("jacobian", env.task)
    first, last = (measure(env, base, residual, learner, 8) for learner in (before, after))
    assert last["all"]["median_mm"] < 0.7 * first["all"]["median_mm"]
    assert last["all"]["median_mm"] < 0.7 * last["blank"]["median_mm"]
    assert last["pictures"] == 8 * 400 and last["all"]["p95_mm"] > last["all"]["median_mm"]
    assert "mm" in errors_in_words(last) and "on blank pictures" in errors_in_words(last)


def test_half_of_the_lessons_are_without_noise(taught):
    """What a base does undisturbed must be known too."""
    teacher, _, _, learner, _ = taught
    assert np.asarray(teacher.roller.mix.sample).ravel().tolist() == [0.0, 1.0] * 16
    pending = teacher.roller.act(learner, teacher.roller.start(jax.random.PRNGKey(2)), teacher.roller.mix)
    noisy = np.abs(np.asarray(pending.residual)).max(1) > 0
    np.testing.assert_array_equal(noisy, np.arange(32) % 2 == 1)  # a fresh residual's mean is 0


def test_lessons_are_of_the_same_moment(taught):
    """The picture of a lesson is that of the state whose joints and sheet stand beside it."""
    teacher, _, _, learner, _ = taught
    carry = teacher.roller.start(jax.random.PRNGKey(2))
    truth = np.asarray(carry.state.physics.qpos[:, 6:])
    picture = np.asarray(teacher.roller.eyes.renderer.render(carry.state))[:, 0]
    _, lessons = teacher.roller.roll(learner, carry, 2)
    np.testing.assert_array_equal(lessons["pictures"]["pixels/top"][0], picture)
    np.testing.assert_array_equal(lessons["truth"][0], truth)
    assert lessons["joints"].shape == (2, 32, 6)


def test_measuring_can_be_stopped(config, taught):
    _, residual, learner, *_ = taught
    env = config.environment(2, training=False)
    with pytest.raises(Interrupted):
        measure(env, make_base("jacobian", env.task), residual, learner, 2, stopped=lambda: True)


def test_teaching_can_be_stopped(taught):
    teacher, _, before, _, _ = taught
    teacher.roller.stopped = lambda: True
    try:
        with pytest.raises(Interrupted):
            teacher.teach(before, jax.random.PRNGKey(1), progress=False)
    finally:
        teacher.roller.stopped = lambda: False


def test_the_command_writes_network_and_record(folder):
    record = json.loads((folder / "teach.json").read_text())
    assert record["all"]["median_mm"] > 0 and record["success"]["5"]["rate"] <= 1
    assert record["config"]["sheet_pose"] == "camera" and record["seconds"] > 0
    assert (folder / "pose" / "meta.json").exists()


def test_a_run_uses_the_network_and_keeps_it(folder, tmp_path, capsys):
    """Through the command line: the network comes from the folder, goes into the checkpoint, and is what eval uses."""
    main(["train", *RUN, "--pose-network", str(folder), "--out", str(tmp_path / "run")])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["taught"]["all"]["median_mm"] > 0 and "blind" in report["results"]
    assert report["saw"]["actor"] == ["joints", "sheet_pose from pictures", "base_plan"]
    assert report["saw"]["base"] == ["joints", "sheet_pose from pictures"]
    assert "Pose network: pose error" in (tmp_path / "run" / "report.md").read_text()
    policy = load_policy(tmp_path / "run", None)
    alone = base_alone(dataclasses.replace(policy.config, pose_network=str(folder)))
    for one, other in zip(jax.tree.leaves(policy.learner.pose), jax.tree.leaves(alone.learner.pose), strict=True):
        np.testing.assert_array_equal(one, other)
    main(["eval", "--run", str(tmp_path / "run"), "--episodes", "4", "--json", str(tmp_path / "eval.json")])
    assert json.loads((tmp_path / "eval.json").read_text())["episodes"] == 4


@pytest.mark.slow
def test_a_run_teaches_its_own_network_first(tmp_path, capsys):
    words = [*RUN, "--teach.updates", "8", "--teach.unroll", "4", "--teach.minibatches", "4"]
    main(["train", *words, "--out", str(tmp_path / "run")])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["taught"]["loss_cm"] > 0 and report["seconds"]["teaching"] > 0
    policy = load_policy(tmp_path / "run", None)
    fresh = policy.residual.init(jax.random.split(jax.random.PRNGKey(0), 4)[0])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), policy.learner.pose, fresh.pose)
    assert min(jax.tree.leaves(moved)) > 0


def test_another_size_of_pictures_is_refused(folder, config):
    other = dataclasses.replace(config, render=dataclasses.replace(config.render, width=64))
    learner = other.make_residual(6).init(jax.random.PRNGKey(0))
    with pytest.raises(CheckpointError, match=r"what the pose network sees.*width"):
        load_pose_network(folder, learner, other)


def test_a_folder_without_a_network_is_refused(tmp_path, config):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_pose_network(tmp_path, config.make_residual(6).init(jax.random.PRNGKey(0)), config)


def test_a_base_alone_needs_a_network_that_was_taught(config):
    with pytest.raises(ConfigError, match="no pose network is given: teach one with so101 teach-pose --out DIR"):
        base_alone(config)


@pytest.mark.parametrize("name", ["updates", "unroll", "minibatches", "channels", "hidden", "learning_rate"])
def test_settings_that_cannot_teach_are_refused(name):
    with pytest.raises(ConfigError, match=rf"teach.{name} is 0"):
        TeachConfig(**{name: 0})


def test_minibatches_that_do_not_divide_are_refused(taught):
    teacher, residual, *_ = taught
    with pytest.raises(ConfigError, match=r"32 x 4 = 128 pictures do not divide into 7 teach.minibatches"):
        Teacher(dataclasses.replace(TINY, minibatches=7), teacher.env, teacher.roller.base, residual)


def test_pictures_that_do_not_fit_are_refused(taught, monkeypatch):
    teacher, residual, *_ = taught
    monkeypatch.setattr("mjx_so101.render.base.available_memory", lambda: 700_000)  # 128 x 3,072 bytes, twice: 0.79 MB
    with pytest.raises(ConfigError, match=r"128 pictures of 32 x 32 .* need 0.0 GiB.* lower num_envs or teach.unroll"):
        Teacher(TINY, teacher.env, teacher.roller.base, residual)


@pytest.mark.slow
def test_a_run_goes_on_without_the_folder_of_its_network(folder, tmp_path, capsys):
    """Its checkpoint holds the network."""
    moved = tmp_path / "pose"
    shutil.copytree(folder, moved)
    main(["train", *RUN, "--pose-network", str(moved), "--out", str(tmp_path / "run")])
    shutil.rmtree(moved)
    main(["train", "--resume", str(tmp_path / "run"), "--steps", "768"])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] == 768 and report["taught"]["all"]["median_mm"] > 0
    main(["eval", "--run", str(tmp_path / "run"), "--episodes", "4", "--json", str(tmp_path / "eval.json")])
    assert json.loads((tmp_path / "eval.json").read_text())["episodes"] == 4


def test_a_blind_run_says_so(config):
    base = make_base("jacobian", config.environment(1, training=False).task)
    told = saw(dataclasses.replace(config, blind=True), base)
    assert told["base"] == ["joints", "sheet_pose from blank pictures"]
