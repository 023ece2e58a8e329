"""Training: repeatable, resumable bit for bit, stopped cleanly by signals, and logged."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mjx_so101 import CheckpointError, HealthError
from mjx_so101.errors import Interrupted
from train import checkpoint, report
from train.cli import main
from train.evaluate import Evaluator
from train.health import _CAUSES as CAUSES
from train.health import UpdateWatch
from train.loop import Trainer
from train.run_folder import saved_config

ROOT = Path(__file__).resolve().parents[2]


# -- repeatable ----------------------------------------------------------------------------------------------------
def test_same_seed_trains_the_same_bits(uninterrupted, tiny_run, saved_state, differences):
    """Once through the command line, evaluating in between, and once iteration by iteration."""
    assert not differences(saved_state(tiny_run), uninterrupted.after(40))


def test_training_changes_the_whole_learner(uninterrupted, differences):
    before, after = uninterrupted.after(0)["learner"], uninterrupted.after(2)["learner"]
    leaves = len(jax.tree.leaves((before.policy, before.value)))
    assert len([name for name in differences(before, after) if not name.startswith(".normalizer")]) == leaves
    assert int(after.normalizer.count) == 2 * 16 * 8


def test_other_seed_is_another_run(tiny_config, uninterrupted, tmp_path, current_state, differences):
    other = current_state(Trainer(dataclasses.replace(tiny_config, seed=1), tmp_path))
    changed = differences(uninterrupted.after(0), other)
    for part in ("['learner'].policy", "['learner'].value", "['carry'].state.physics.qpos", "['carry'].state.step"):
        assert any(part in name for name in changed), part
    assert "['trainer']['key']" in changed


def test_episodes_begin_at_different_ages(uninterrupted):
    ages = uninterrupted.after(0)["trainer"]["carry"].state.step
    assert len(set(ages.tolist())) > 8
    assert set(ages.tolist()) <= set(range(40))


# -- resume --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def resumed(half_run, second_trainer, current_state, tmp_path_factory):
    """Another Trainer that resumed after two iterations: its state then, and after each of two more."""
    second_trainer.out = shutil.copytree(half_run, tmp_path_factory.mktemp("resumed") / "run")
    second_trainer.resume()
    states = [current_state(second_trainer)]
    for _ in range(2):
        second_trainer.iterate()
        states.append(current_state(second_trainer))
    return second_trainer, states


def test_resume_restores_every_bit(resumed, uninterrupted, differences):
    assert not differences(resumed[1][0], uninterrupted.after(2))
    assert resumed[0].steps == 4 * 16 * 8


def test_half_plus_resume_plus_half_is_the_whole(resumed, uninterrupted, differences):
    assert not differences(resumed[1][2], uninterrupted.after(4))
    assert differences(resumed[1][2], uninterrupted.after(3))


def test_resumed_run_compiles_what_a_fresh_one_does(half_run, second_trainer):
    """A leaf bound to a device would make every jitted function compile for it, and once more without."""
    path, like = half_run / "checkpoints" / "last", second_trainer
    wanted = {"learner": like.learner, "trainer": {"opt_state": like.opt_state, "carry": like.carry, "key": like.key}}
    restored = {name: checkpoint.restore(path, name, tree) for name, tree in wanted.items()}
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    assert [jax.tree_util.keystr(path) for path, leaf in leaves if getattr(leaf, "committed", False)] == []
    assert [jax.tree_util.keystr(path) for path, leaf in leaves if getattr(leaf, "weak_type", False)] == []


@pytest.mark.slow
def test_sigterm_saves_and_resume_ends_like_a_run_without_it(
    tiny_flags, tiny_run, tiny_report, saved_state, differences, read_json, tmp_path, monkeypatch
):
    """A real process, told to stop as soon as its first iteration is logged."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "train.cli", "train", *tiny_flags, "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and '"kind": "train"' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=10)[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert f"so101 train --resume {out}" in printed
    assert checkpoint.read_meta(out / "checkpoints" / "last")["steps"] % 128 == 0
    assert not (out / "report.json").exists()

    monkeypatch.setattr(report, "compare_policies", lambda *_, **__: (tiny_report["results"], None))  # saves time
    main(["train", "--resume", str(out)])
    assert not differences(saved_state(tiny_run), saved_state(out))
    rows = [[read_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (tiny_run, out)]
    train = [[(r["steps"], r["reward"], r["value_loss"]) for r in run if r["kind"] == "train"] for run in rows]
    assert train[0] == train[1]
    rates = [[(r["steps"], r["success"]) for r in run if r["kind"] == "evaluation"] for run in rows]
    assert rates[0] == rates[1]
    written = read_json((out / "report.json").read_text())
    assert written["steps"] == 5120


# -- the loop around the iterations --------------------------------------------------------------------------------
@pytest.fixture
def quick(resumed, tmp_path, monkeypatch):
    """A Trainer whose iterations and evaluations are made up: five evaluations, the second one the best."""
    trainer, rates, seconds = resumed[0], iter([0.25, 0.75, 0.5, 0.5, 0.5]), iter([2.0, 9.0, 1.0, 1.0, 1.0])

    class Summary:
        def summary(self):
            value = next(rates, 0.5)
            entry = {"rate": value, "low": 0.0, "high": 1.0, "median_steps": None}
            rates_mm = {"5": entry, "10": entry, "20": {**entry, "rate": 1.0}}
            return {"success": rates_mm, "success_at_end": rates_mm, "seconds": next(seconds, 1.0)}

    def iterate():
        trainer.steps += 128
        return dict(trainer.metrics)

    monkeypatch.setattr(trainer, "out", tmp_path)
    monkeypatch.setattr(trainer, "steps", 0)
    monkeypatch.setattr(trainer, "best", -1.0)
    monkeypatch.setattr(trainer, "evaluations", [])
    monkeypatch.setattr(trainer, "seconds", dict.fromkeys(trainer.seconds, 0.0))
    monkeypatch.setattr(trainer, "config", dataclasses.replace(trainer.config, steps=640))
    monkeypatch.setattr(trainer, "evaluator", lambda *_: Summary())
    monkeypatch.setattr(trainer, "iterate", iterate)
    healthy = {"success": 0.5, "episodes": 2.0, "overflow": 0.0, "nonfinite": 0.0, "policy_loss": 0.0,
               "value_loss": 0.0, "skipped_updates": 0.0, "bad_rows": 0.0}  # fmt: skip
    monkeypatch.setattr(trainer, "metrics", healthy, raising=False)
    return trainer


def test_run_ends_after_its_steps_with_the_best_checkpoint_kept(quick):
    assert quick.run(progress=False)
    assert quick.steps == 640
    assert [record["steps"] for record in quick.evaluations] == [0, 256, 384, 512, 640]
    assert checkpoint.read_meta(quick.out / "checkpoints" / "best")["steps"] == 256  # 0.75, the highest rate
    assert checkpoint.read_meta(quick.out / "checkpoints" / "last")["steps"] == 640


def test_no_time_is_lost_or_negative_when_a_later_evaluation_is_slower(quick):
    """As in a run that was stopped after its first evaluation and compiles anew when it is resumed."""
    assert quick.run(progress=False)
    assert sum(quick.seconds.values()) == pytest.approx(2 + 9 + 1 + 1 + 1)
    assert min(quick.seconds.values()) >= 0, quick.seconds


def test_run_stops_at_the_success_asked_for(quick, monkeypatch):
    monkeypatch.setattr(quick, "config", dataclasses.replace(quick.config, stop_at_success=0.7))
    assert quick.run(progress=False)
    assert quick.steps == 256
    assert "256 of 640 steps" in quick.ended and "75.0%" in quick.ended and "stop_at_success (70.0%)" in quick.ended
    assert quick.run(progress=False)  # resumed, it has nothing more to do
    assert quick.steps == 256 and len(quick.evaluations) == 2


def test_run_that_did_all_its_steps_says_so(quick):
    assert quick.run(progress=False)
    assert quick.ended == "All 640 steps are done."


class Killed(BaseException):
    """As SIGKILL: nothing is done after it."""


def log_of(run) -> list[tuple[str, int]]:
    return [(r["kind"], r["steps"]) for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


WHOLE_LOG = [("evaluation", 0), ("train", 128), ("train", 256), ("evaluation", 256), ("train", 384),
             ("evaluation", 384), ("train", 512), ("evaluation", 512), ("train", 640), ("evaluation", 640)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", range(1, 11))
def test_run_killed_before_any_write_loses_at_most_an_interval(quick, monkeypatch, kill_at):
    """Before its first, second, ... checkpoint. What is evaluated again may turn out otherwise, as on a GPU: here
    worse. The best score then stays with its learner."""
    save, calls = quick.save, []

    def killed(name, **options):
        calls.append((name, quick.steps))
        if len(calls) == kill_at:
            raise Killed
        save(name, **options)

    monkeypatch.setattr(quick, "save", killed)
    with pytest.raises(Killed):
        quick.run(progress=False)
    monkeypatch.setattr(quick, "save", save)
    reached, last = quick.steps, quick.out / "checkpoints" / "last"
    monkeypatch.setattr(quick, "best", 99.0)  # nothing of the dead process is left
    if last.exists():
        quick.resume()
        assert reached - quick.steps <= 256
    else:
        assert calls == [("last", 0)]
        monkeypatch.setattr(quick, "best", -1.0)
    best = quick.out / "checkpoints" / "best"
    before = checkpoint.read_meta(best) if best.exists() else {"best": -1.0, "steps": 0}
    assert quick.best == before["best"]
    assert quick.run(progress=False)
    assert log_of(quick.out) == WHOLE_LOG
    assert [record["steps"] for record in quick.evaluations] == [0, 256, 384, 512, 640]
    after = checkpoint.read_meta(best)
    assert after["best"] >= before["best"]
    if before["steps"] == 256:  # the best of all was found and written before
        assert (after["steps"], after["best"]) == (256, before["best"])


def test_damaged_best_checkpoint_is_refused_before_the_training_goes_on(quick):
    assert quick.run(progress=False)
    files = [file for file in (quick.out / "checkpoints" / "best" / "learner").rglob("d/*") if file.is_file()]
    data = max(files, key=lambda file: file.stat().st_size)
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(CheckpointError, match=r"best is damaged.*learner"):
        quick.resume()


@pytest.mark.slow
def test_sigterm_in_an_evaluation_saves_at_once_and_evaluates_again_after_the_resume(
    quick, resumed, monkeypatch, saved_state, current_state, differences
):
    """The evaluation is a real one, of 400 control steps; the signal comes in its fifth."""
    evaluator = Evaluator(quick.eval_env, quick.base, quick.residual)
    made_up, step, calls = quick.evaluator, quick.eval_env.physics.step, []

    def interrupted(*arguments):
        calls.append(quick.steps)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(quick.eval_env.physics, "step", interrupted)
    monkeypatch.setattr(quick, "evaluator", lambda *args: (evaluator if quick.steps == 256 else made_up)(*args))
    evaluator.stopped = lambda: bool(quick.stop)
    assert not quick.run(progress=False)
    assert calls == [256] * 5
    meta = checkpoint.read_meta(quick.out / "checkpoints" / "last")
    assert meta["steps"] == 256 and [record["steps"] for record in meta["evaluations"]] == [0]
    assert not differences(saved_state(quick.out), current_state(quick))
    monkeypatch.setattr(quick, "evaluator", made_up)
    quick.resume()
    assert quick.run(progress=False)
    assert log_of(quick.out) == WHOLE_LOG


def test_rollout_that_is_interrupted_changes_nothing(resumed, current_state, differences, monkeypatch):
    trainer, asked = resumed[0], iter([False] * 5 + [True])
    before, steps = current_state(trainer), trainer.steps
    monkeypatch.setattr(trainer.roller, "stopped", lambda: next(asked))
    with pytest.raises(Interrupted):
        trainer.iterate()
    assert not differences(before, current_state(trainer))
    assert trainer.steps == steps


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_after_the_iteration(quick, monkeypatch, which):
    iterate, handler = quick.iterate, signal.getsignal(which)

    def interrupted():
        if quick.steps == 256:
            os.kill(os.getpid(), which)
        return iterate()

    monkeypatch.setattr(quick, "iterate", interrupted)
    assert not quick.run(progress=False)
    assert quick.steps == 384
    assert checkpoint.read_meta(quick.out / "checkpoints" / "last")["steps"] == 384
    assert signal.getsignal(which) == handler


def test_second_signal_stops_at_once(quick, monkeypatch):
    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(quick, "iterate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick.run(progress=False)


def test_other_runs_only_count_overflow(quick):
    quick.metrics.update(overflow=2.0, nonfinite=1.0)
    assert quick.run(progress=False)
    assert '"overflow": 2.0' in (quick.out / "metrics.jsonl").read_text()


def test_updates_that_go_wrong_again_and_again_stop_the_run(quick, monkeypatch):
    monkeypatch.setattr(quick, "_watch", UpdateWatch(128))
    quick.metrics.update(skipped_updates=2.0, **dict.fromkeys(CAUSES, 0.0))
    with pytest.raises(HealthError, match=r"3 updates in a row.*384 steps.*lower --learning-rate"):
        quick.run(progress=False)


def test_bad_physics_is_counted_by_environment_and_does_not_spoil_the_learner(resumed, monkeypatch):
    trainer, step, calls = resumed[0], resumed[0].env.physics.step, []

    def bad(state, fields, ctrl):
        physics = step(state, fields, ctrl)
        calls.append(physics.qpos.copy())
        qpos, overflow = physics.qpos.copy(), physics.overflow.copy()
        if len(calls) == 3:
            qpos[5] = np.nan
        if len(calls) in (4, 6):
            overflow[9] = 1
        return physics.replace(qpos=qpos, overflow=overflow)

    monkeypatch.setattr(trainer.env.physics, "step", bad)
    metrics = trainer.iterate()
    assert (metrics["nonfinite"], metrics["overflow"]) == (1, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainer.learner))
    assert np.isfinite(trainer.carry.state.physics.qpos).all()


# -- logs ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def records(tiny_run, read_json):
    return [read_json(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]


def test_metrics_hold_every_iteration(records):
    train = [record for record in records if record["kind"] == "train"]
    assert [record["steps"] for record in train] == [128 * (i + 1) for i in range(40)]
    wanted = {"reward", "success", "episodes", "residual", "overflow", "nonfinite", "steps_per_second", "policy_loss",
              "value_loss", "entropy", "kl", "clip_fraction"}  # fmt: skip
    for record in train:
        assert wanted <= set(record)
        terms = sum(value for name, value in record.items() if name.startswith("reward_"))
        assert record["reward"] == pytest.approx(terms, abs=1e-5)
        assert record["overflow"] == record["nonfinite"] == 0
        assert (record["success"] is None) == (record["episodes"] == 0)
    assert sum(record["episodes"] for record in train) >= 16 * 7  # 320 steps of 16 environments, at most 40 an episode
    assert all(record["steps_per_second"] > 0 for record in train[1:])


def test_metrics_hold_every_evaluation(records, tiny_run):
    found = [record for record in records if record["kind"] == "evaluation"]
    assert [record["steps"] for record in found] == [0, 1280, 2560, 3840, 5120]
    for record in found:
        assert record["rate"] == record["success_at_end"]["5"]["rate"]  # it trains at 5 mm
        assert record["episodes"] == 6
    times = [record["wall_seconds"] for record in found]
    assert times == sorted(times)
    best = checkpoint.read_meta(tiny_run / "checkpoints" / "best")["steps"]
    score = [record["rate"] + 1e-3 * sum(e["rate"] for e in record["success_at_end"].values()) for record in found]
    assert best == found[int(np.argmax(score))]["steps"]


def test_tensorboard_events_are_written(tiny_run):
    (events,) = (tiny_run / "tensorboard").glob("events.out.tfevents.*")
    content = events.read_bytes()
    for tag in (b"train/reward", b"train/value_loss", b"evaluation/success_5mm"):
        assert tag in content


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"base": 3, "model": null}'])
def test_config_that_is_no_run_s_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json is damaged or of another version"):
        saved_config(tmp_path)
