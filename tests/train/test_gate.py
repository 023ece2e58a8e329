"""The gate: its verdict, what it measures of a base policy alone, its report, and what it refuses."""

import contextlib
import dataclasses
import functools
import json
import re

import imageio.v2 as imageio
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import ConfigError, HealthError
from mjx_so101.scene import JOINTS
from mjx_so101.task import TaskConfig
from policies.base import NoCarry, ScriptedPolicy
from train import config as train_config
from train import gate, gate_report, gate_trial
from train.evaluate import Episodes, Evaluator
from train.gate import CAUTION, PROCEED, STOP, GateFlags, GateSettings, require_gate, run_gate
from train.gate_trial import Trial, check_joints, measure_actions, training_range
from train.gate_verdict import Counts
from train.outcomes import line, outcomes
from train.policy import load_policy

pytestmark = pytest.mark.slow

QUICK = {"episodes": 8, "most_episodes": 8, "eval_batch": 4, "video": False}


# -- how many episodes ---------------------------------------------------------------------------------------------
class CannedTrial:
    """Succeeds in `percent` of its episodes; its records are numbers."""

    def __init__(self, percent):
        self.percent, self.count, self.rounds = percent, 0, []

    def run(self, episodes):
        self.count = episodes
        self.rounds.append(episodes)

    def episodes(self):
        return list(range(self.count))

    def counts(self, tolerance_mm):
        assert tolerance_mm == 5.0
        return Counts(self.count, self.count * self.percent // 100, 0, 0)


@pytest.mark.parametrize(
    ("percent", "name", "rounds"),
    [
        (0, STOP, [100]),
        (3, STOP, [100, 200, 400, 800]),
        (10, CAUTION, [100]),
        (20, CAUTION, [100, 200, 400, 800, 1024]),  # never decided
        (90, PROCEED, [100]),
    ],
)
def test_undecided_verdict_asks_for_more_episodes(percent, name, rounds, monkeypatch, capsys):
    monkeypatch.setattr(gate, "outcomes", lambda episodes, first: episodes[first:])
    monkeypatch.setattr(gate, "table", lambda rows: "\n".join(map(str, rows)))
    monkeypatch.setattr(gate, "line", str)
    trial = CannedTrial(percent)
    judged = gate._judge(trial, GateSettings())
    assert capsys.readouterr().out.split() == [str(i) for i in range(rounds[-1])]  # a line for each, once
    assert trial.rounds == rounds
    assert judged.name == name
    assert judged.decided == (rounds[-1] < 1024)


# -- bad input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes is 0; it must be at least 1"),
        ({"eval_batch": -1}, "eval_batch is -1; give at least 1 episode, or 0 for the default"),
        ({"video_episodes": 0}, "video_episodes is 0; give 1 to 100"),
        ({"episodes": 50, "most_episodes": 49}, r"most_episodes is 49; it must be at least episodes \(50\): raise it"),
        ({"verdict_tolerance_mm": 0.0}, "verdict_tolerance_mm is 0.0; it must be greater than 0"),
        ({"verdict_tolerance_mm": -5.0}, "verdict_tolerance_mm is -5.0"),
        ({"verdict_tolerance_mm": float("inf")}, "verdict_tolerance_mm is inf"),
        ({"expected_brightness": (80.0, 256.0)}, "expected_brightness is .*256.*0 to 255"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        GateSettings(**changes)


@pytest.fixture(scope="module")
def zero():
    """The base policy that holds the arm, alone."""
    return load_policy(None, "zero", {"physics": "native"})


@pytest.mark.parametrize("expected", [(80.0,), (80.0, 90.0, 100.0)])
def test_brightness_for_other_cameras_is_refused(see, tmp_path, expected):
    settings = GateSettings(**QUICK, expected_brightness=expected)
    with pytest.raises(ConfigError, match=f"expected_brightness has {len(expected)} values.*one grey level for each"):
        run_gate(see(), settings, tmp_path / "gate")
    assert not (tmp_path / "gate").exists()  # nothing was written, so nothing is left


def test_brightness_without_cameras_is_refused(zero, tmp_path):
    with pytest.raises(ConfigError, match=r"base 'zero' sees no pictures; leave it out"):
        run_gate(zero, GateSettings(**QUICK, expected_brightness=(80.0,)), tmp_path / "gate")


def test_folder_that_is_not_empty_is_refused(zero, tmp_path):
    (tmp_path / "report.md").write_text("dear to me")
    with pytest.raises(ConfigError, match="not empty; give another --out"):
        run_gate(zero, GateSettings(**QUICK), tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["dear to me"]


@pytest.mark.parametrize("joints", [np.zeros(6), np.full(6, 0.3), [0.0, -1.1, np.nan, 1.4, 1.6, 0.0]])
def test_joints_that_are_no_arms_are_refused(joints):
    home = np.array([0.0, -1.1, 0.8, 1.45, 1.6, -0.07])
    check_joints(np.stack([home, home]))
    with pytest.raises(HealthError, match="joint_pos of env 1 at the first step"):
        check_joints(np.stack([home, joints]))


# -- what the base asks of the joints --------------------------------------------------------------------------------
LIMITS = (np.full(6, -1.0), np.full(6, 1.0))


def test_actions_are_measured_joint_by_joint():
    targets = np.zeros((11, 2, 6))
    targets[:, 0, 2] = np.linspace(-0.5, 0.5, 11)
    targets[1:, 1, 5] = 1.5  # a jump, then beyond the limit
    found = measure_actions(targets, LIMITS, np.array([[-0.25] * 6, [1.6] * 6]))
    elbow, gripper = found["joints"]["elbow_flex"], found["joints"]["gripper"]
    assert tuple(found["joints"]) == JOINTS
    assert (elbow["min"], elbow["max"], elbow["limits"]) == (-0.5, 0.5, [-1.0, 1.0])
    assert elbow["min"] < elbow["p1"] < elbow["p99"] < elbow["max"]
    assert (elbow["clipped"], gripper["clipped"]) == (0.0, pytest.approx(10 / 22))
    assert found["clipped"] == pytest.approx(10 / 22 / 6)
    assert found["steps_clipped"] == pytest.approx(10 / 22)
    assert (elbow["outside_training"], gripper["outside_training"]) == (pytest.approx(3 / 22), 0.0)
    assert found["outside_training"] == pytest.approx(3 / 22 / 6)
    assert found["jumps"] == 1 / 20
    assert found["moved_rad"] == 1.5


def test_rounding_at_a_limit_is_not_clipped():
    assert measure_actions(np.full((2, 1, 6), 1.0 + 1e-6), LIMITS)["clipped"] == 0.0
    assert measure_actions(np.full((2, 1, 6), 1.0), LIMITS)["outside_training"] is None


def test_targets_that_are_not_finite_are_left_out():
    targets = np.zeros((5, 2, 6))
    targets[2:, 1, 4], targets[:, :, 5] = np.inf, np.nan
    found = measure_actions(targets, LIMITS)
    assert found["first_bad_target"] == "nan rad of gripper in step 0 of episode 0"
    assert found["joints"]["gripper"]["min"] is None and found["joints"]["wrist_roll"]["max"] == 0.0
    assert (found["clipped"], found["jumps"], found["moved_rad"]) == (0.0, 0.0, 0.0)
    assert "NaN" not in json.dumps(found) and "Infinity" not in json.dumps(found)


@pytest.mark.parametrize("given", [np.zeros((2, 5)), (np.ones(6), np.zeros(6)), (np.zeros(6), np.full(6, np.nan))])
def test_training_range_that_is_none_is_refused(zero, given):
    class Base:
        name = "odd"
        training_range = given

    assert training_range(zero.base) is None
    with pytest.raises(ConfigError, match="training_range of base 'odd'"):
        training_range(Base())


# -- what to try -----------------------------------------------------------------------------------------------------
def measured(clipped=0.0, unusual=None, jumps=0.0, moved=1.0, bad=0, odd=0, rates=(0.1, 0.1, 0.2), problems=None):
    return {
        "actions": {"clipped": clipped, "outside_training": unusual, "jumps": jumps, "moved_rad": moved,
                    "first_bad_target": "nan rad",
                    "joints": {"shoulder_pan": {"clipped": 0.0}, "gripper": {"clipped": clipped}}},
        "results": {"nonfinite_episodes": bad + odd, "overflow_episodes": 0, "bad_target_episodes": odd, "episodes": 8,
                    "success": {mm: {"rate": rate} for mm, rate in zip(("5", "10", "20"), rates, strict=True)}},
        "images": problems and {"problems": problems},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"clipped": 0.3}, "30% of the targets lie outside the joint limits.*most of gripper.*joint map"),
        ({"unusual": 0.2}, "20% of the targets lie outside the range of the training data"),
        ({"jumps": 0.1}, "jump by more than 0.5 rad in 10.0% of the steps"),
        ({"moved": 0.0}, "does not move the arm"),
        ({"bad": 3}, "simulation failed in 3 episodes"),
        ({"odd": 2}, "targets that are not finite in 2 of 8 episodes, first for nan rad: they count as invalid"),
        ({"rates": (0.1, 0.2, 0.6)}, "within 20 mm in 60% of the episodes and within 5 mm in 10%"),
        ({"problems": ["too dark"]}, "Pictures: too dark."),
    ],
)
def test_each_fault_has_its_advice(fault, message):
    assert gate_report.advice(measured(), 5.0) == []
    (line,) = gate_report.advice(measured(**fault), 5.0)
    assert re.search(message, line)


@contextlib.contextmanager
def short_episodes():
    """Episodes of 20 control steps, where nothing has to be solved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_config, "TaskConfig", functools.partial(TaskConfig, episode_steps=20))
        yield


# -- real runs -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def oracle():
    return load_policy(None, "oracle", {"physics": "native"}, (5.0, 20.0))


@pytest.fixture(scope="module")
def passed(oracle, tmp_path_factory):
    """The gate of `oracle`, with a verdict at a tolerance that the policy was not loaded with."""
    settings = GateSettings(**{**QUICK, "video": True}, verdict_tolerance_mm=7.5, seed=3, video_episodes=5)
    videos = []

    def write_videos(episodes, out, tiles):
        videos.append((len(episodes), episodes.qpos.shape, out, tiles))
        return [out / "grid.mp4", out / "videos.md"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_report, "write_videos", write_videos)
        result = run_gate(oracle, settings, tmp_path_factory.mktemp("gates") / "oracle")
    assert videos == [(8, (400, 4, 9), result.folder, 5)]  # the states of the first batch
    return result


@pytest.fixture(scope="module")
def stopped(zero, tmp_path_factory):
    """The gate of `zero`, which is not decided by its first 40 episodes."""
    settings = GateSettings(episodes=40, most_episodes=1000, eval_batch=40, video=False, frames=False)
    with short_episodes():
        return run_gate(zero, settings, tmp_path_factory.mktemp("gates") / "zero")


def test_oracle_passes(passed):
    assert passed.verdict.name == PROCEED and passed.verdict.decided
    assert passed.verdict.success.rate > 0.8 and passed.verdict.episodes == 8
    assert passed.line.startswith("PROCEED: ") and "of 8 episodes within 7.5 mm" in passed.line
    assert "within 20 mm in 100.0%" in passed.line
    require_gate(passed)


def test_zero_is_stopped(stopped):
    assert stopped.verdict.name == STOP and stopped.verdict.decided
    assert (stopped.verdict.success.rate, stopped.verdict.suggested_alpha) == (0.0, 0.7)
    assert stopped.verdict.episodes == 80  # 40 were not enough: 0 of 40 may be 8.8 %
    assert stopped.report["results"]["episodes"] == 80
    assert any("does not move the arm" in text for text in stopped.verdict.advice)
    assert any("--base jacobian" in text for text in stopped.verdict.advice)
    assert stopped.report["results"]["median_gained_mm"] == pytest.approx(0, abs=1e-3)
    with pytest.raises(ConfigError, match=r"base 'zero' did not pass.*0\.0%.*zero/report\.md.*--force"):
        require_gate(stopped)
    require_gate(stopped, force=True)


def test_report_holds_everything(passed, read_json):
    report = read_json((passed.folder / "report.json").read_text())
    assert report == passed.report
    assert {"command", "commit", "device", "versions"} <= set(report)
    assert (report["base"], report["model"], report["settings"]["seed"]) == ("oracle", None, 3)
    assert report["environment"]["physics"] == "native"
    assert set(report["results"]["success"]) == {"5", "7.5", "20"}
    assert report["results"]["success"]["7.5"]["rate"] == report["verdict"]["success"]["rate"]
    assert set(report["results"]["success_at_end"]) == {"5", "7.5", "20"}
    assert report["results"]["median_gained_mm"] > 30
    assert report["task"]["episodes"] == 8 and report["task"]["seed"] == 3
    assert report["saw"] == {"base": ["joints", "sheet_pose"]}
    assert report["results"]["mean_residual_rad"] == 0
    assert (report["verdict"]["name"], report["verdict"]["tolerance_mm"]) == (PROCEED, 7.5)
    assert report["actions"]["clipped"] == 0 and report["actions"]["moved_rad"] > 0.1
    assert report["speed"]["control_steps_per_second"] > 10 and not report["speed"]["with_compilation"]
    assert report["speed"]["inference"] is report["images"] is None
    assert report["videos"] == ["grid.mp4", "videos.md"]


def test_report_can_be_read(passed):
    text = (passed.folder / "report.md").read_text()
    assert text.startswith("# Gate of oracle: PROCEED\n")
    for part in (
        "## What to try",
        "| 7.5 mm |",
        "| shoulder_pan |",
        "## Speed",
        "(frames.png)",
        "(grid.mp4)",
        "(videos.md)",
        "base sees the true pose",
        "at the end",
    ):
        assert part in text
    assert passed.report["command"] in text and passed.report["commit"] in text
    assert all(advice in text for advice in passed.verdict.advice)


def test_each_episode_is_written(oracle, passed):
    rows = passed.report["episodes"]
    assert [row["episode"] for row in rows] == list(range(8))
    solved = [row["success"]["7.5"] is not None for row in rows]
    assert sum(solved) / 8 == passed.verdict.success.rate
    assert np.mean([row["final_distance_mm"] for row in rows]) == pytest.approx(
        passed.report["results"]["final_distance_mm"]
    )
    text = (passed.folder / "report.md").read_text()
    assert all(line(row) in text for row in rows)


def test_frames_show_four_episodes_at_three_moments(passed):
    picture = imageio.imread(passed.folder / "frames.png")
    assert picture.shape == (4 * (240 + 2), 3 * 2 * (320 + 2), 3)
    assert picture.std() > 10


def test_episodes_are_those_of_eval_and_repeat(oracle, passed):
    """Bit for bit, with the same batch."""
    again = outcomes(Evaluator(oracle.environment(4), oracle.base, oracle.residual)(oracle.learner, 8, 3))
    assert [row["final_distance_mm"] for row in again] == [r["final_distance_mm"] for r in passed.report["episodes"]]
    for mm in ("5", "20"):
        assert [row["success"][mm] for row in again] == [row["success"][mm] for row in passed.report["episodes"]]


def test_going_on_simulates_no_episode_twice(zero, monkeypatch):
    """Three, then six, in batches of four: the last of the first batch were simulated before they counted."""
    calls = []

    class Canned:
        """Episode i ends i mm from its goal."""

        def __init__(self, env, base, residual, mode, more):
            self.base = base

        def __call__(self, learner, episodes, seed, first):
            calls.append((episodes, seed, first))
            return numbered(first, episodes)

    monkeypatch.setattr(gate_trial, "Evaluator", Canned)
    trial = Trial(zero, 4, 3)
    for count in (3, 6):
        trial.run(count)
        rows = outcomes(trial.episodes())
        assert [row["final_distance_mm"] for row in rows] == pytest.approx(range(count), abs=1e-3)
        assert trial.targets()[0, :, 0].tolist() == list(range(count))
    assert calls == [(4, 3, 0), (4, 3, 4)]
    assert trial.episodes().qpos.shape == (2, 4, 9)
    trial.run(7)
    assert len(calls) == 2 and len(trial.episodes()) == 7


def numbered(first, count):
    """Episodes whose every figure is their index: mm at the end, and the target of the first joint."""
    i, no = np.arange(first, first + count), np.zeros(count, bool)
    column = np.zeros((count, 3), bool)
    return Episodes(
        succeeded=column, at_end=column, success_step=np.full((count, 3), -1), start_distance=np.full(count, 0.1),
        final_distance=i / 1000, final_yaw=0.0 * i, total_reward=0.0 * i, residual=0.0 * i, residual_rms=0.0 * i,
        invalid=no, bad_target=no, nonfinite=no, overflow=no, tolerances=(0.005, 0.01, 0.02), seconds=1.0,
        qpos=np.zeros((2, count, 9)), more={"target": np.tile(i[None, :, None], (2, 1, 6))},
    )  # fmt: skip


def test_what_is_counted(zero, monkeypatch):
    episodes = dataclasses.replace(
        numbered(0, 4),
        start_distance=np.full(4, 0.06),
        final_distance=np.array([0.001, 0.011, 0.009, 0.0]),  # gained 59, 49, 51 and 60 mm
        succeeded=np.array([[1, 1, 1], [0, 0, 1], [0, 1, 1], [0, 0, 0]], bool),
        invalid=np.arange(4) == 3,
    )
    monkeypatch.setattr(Trial, "episodes", lambda self: episodes)
    trial = Trial(zero, 4, 0)
    trial.count = 4
    assert trial.counts(5.0) == Counts(episodes=4, solved=1, near=3, gained=2)  # an invalid one gained nothing
    assert trial.counts(10.0).solved == 2


# -- a base policy that sees ---------------------------------------------------------------------------------------
class Sighted(ScriptedPolicy):
    """Turns the pan beyond its limit and swings the elbow, with pictures made of noise around a grey level."""

    name = "sighted"
    cameras = ("left", "right")
    training_range = (np.full(6, -2.0), np.full(6, 2.0))
    grey, size = (60, 120), (24, 32)

    def start(self):
        return NoCarry(jnp.zeros(()))

    def act(self, carry, observation):
        swing = jnp.where(carry.unused % 2 == 0, 0.4, -0.4)
        return NoCarry(carry.unused + 1), observation.target.at[0].set(3.0).at[2].set(swing)

    def pictures(self, state):
        rng = np.random.default_rng(0)
        return np.stack([rng.integers(g - 9, g + 10, (3, *self.size, 3), np.uint8) for g in self.grey], 1)

    def inference_stats(self):
        return {"passes": 5, "inferences": 10, "latency_s_median": 0.25, "inferences_per_s": 8.0}


@pytest.fixture(scope="module")
def see(zero):
    """Function that gives a policy with a `Sighted` base, attributes changed."""
    task = zero.environment(1).task

    def make(kind=Sighted, **attributes):
        base = kind(task.kinematics, task.geometry)
        for name, value in attributes.items():
            setattr(base, name, value)
        return dataclasses.replace(zero, base=base)

    return make


@pytest.fixture(scope="module")
def sighted(see, tmp_path_factory):
    settings = GateSettings(**QUICK, expected_brightness=(70.0, 200.0))
    with short_episodes():
        return run_gate(see(), settings, tmp_path_factory.mktemp("gates") / "sighted")


def test_targets_beyond_limits_and_training_data_are_counted(sighted):
    actions = sighted.report["actions"]
    assert actions["joints"]["shoulder_pan"]["clipped"] == 1.0
    assert actions["joints"]["elbow_flex"]["clipped"] == 0.0
    assert actions["clipped"] == pytest.approx(1 / 6)
    assert (actions["steps_clipped"], actions["jumps"]) == (1.0, 1.0)
    assert actions["joints"]["shoulder_pan"]["max"] == 3.0  # before the clip
    assert actions["joints"]["shoulder_pan"]["training_range"] == [-2.0, 2.0]
    assert actions["outside_training"] == pytest.approx(1 / 6)
    assert any("most of shoulder_pan" in text for text in sighted.verdict.advice)


def test_pictures_are_judged(sighted):
    images = sighted.report["images"]
    assert (images["width"], images["height"]) == (32, 24)
    assert images["cameras"]["left"]["brightness"] == pytest.approx(60, abs=1)
    (problem,) = images["problems"]  # 60 is near 70, 120 is not near 200
    assert "camera 'right' has a mean grey level of 120, its training data 200" in problem
    assert any(problem in text for text in sighted.verdict.advice)
    assert images["order"].startswith("not checked: left, right not in the scene")
    assert imageio.imread(sighted.folder / "frames.png").shape == (3 * 26, 3 * 2 * 34, 3)


def test_inference_of_the_base_is_reported(sighted):
    assert sighted.report["speed"]["inference"] == {
        "inferences": 10.0, "inferences_per_s": 8.0, "latency_s_median": 0.25,
    }  # fmt: skip
    assert "10 inferences; it makes 8.0 a second, median latency 0.2500 s" in (sighted.folder / "report.md").read_text()


def views_of(policy, env, **attributes):
    return gate_report.Views(policy.base, env, **attributes)


@pytest.fixture(scope="module")
def four(zero):
    """An environment of four episodes and its start."""
    env = zero.environment(4)
    return env, env.reset(0)


def test_pictures_that_blind_are_refused(see, four):
    env, start = four
    for rgb, message in [
        (np.zeros((2, 2, 8, 8, 3), np.uint8), "picture of camera 'left' is constant"),
        (np.tile(np.arange(192, dtype=np.uint8).reshape(8, 8, 3), (2, 2, 1, 1, 1)), "'left' and 'right' give the same"),
    ]:
        with pytest.raises(HealthError, match=message):
            views_of(see(pictures=lambda state, rgb=rgb: rgb), env).check(start)
    with pytest.raises(ConfigError, match=r"pictures are float32 \[2, 1, 8, 8, 3\]; they must be uint8"):
        views_of(see(pictures=lambda state: np.zeros((2, 1, 8, 8, 3), np.float32)), env).check(start)


def test_aspect_and_order_of_the_cameras_are_checked(see, four):
    env, start = four
    drawn = gate_report.Views(see(cameras=("top", "wrist")).base, env)._drawn(start, 4, 64, 64)

    def judged(rgb):
        policy = see(cameras=("top", "wrist"), pictures=lambda state: rgb)
        return views_of(policy, env).measure([start], None)["images"]

    right, swapped = judged(drawn), judged(drawn[:, ::-1])
    assert right["order"] == "as named" and len(right["problems"]) == 1
    assert "64 x 64, an aspect of 1.00" in right["problems"][0]
    assert swapped["order"] == "wrong"
    assert "camera 'top' looks like that of 'wrist'" in swapped["problems"][1]


def test_machine_that_cannot_draw_still_has_a_report(zero, four, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise ConfigError("nothing can draw here")

    monkeypatch.setattr(gate_report, "make_renderer", refuse)
    env, start = four
    record = views_of(zero, env).measure([start], tmp_path / "frames.png")
    assert record == {"images": None, "frames": None, "without_frames": "nothing can draw here"}
    monkeypatch.setattr(gate_report, "write_videos", refuse)
    report = {"videos": []}
    gate_report.add_videos(report, None, tmp_path, 9)
    assert report == {"videos": [], "without_videos": "nothing can draw here"}


class Blown(Sighted):
    """Asks for NaN at the wrist in the fourth step of each episode whose sheet is turned to the left."""

    name = "blown"

    def act(self, carry, observation):
        wrist = jnp.where((carry.unused == 3) & (observation.sheet[2] > 1.57), jnp.nan, 1.0)
        return NoCarry(carry.unused + 1), observation.target.at[3].set(wrist)


@pytest.fixture(scope="module")
def blown(see, tmp_path_factory):
    settings = GateSettings(**QUICK, frames=False)
    with short_episodes():
        return run_gate(see(Blown), settings, tmp_path_factory.mktemp("gates") / "blown")


def test_targets_that_are_not_finite_make_an_episode_invalid(blown):
    report = blown.report
    bad = [row["episode"] for row in report["episodes"] if row["bad_target"]]
    assert 0 < len(bad) < 8
    assert [row["episode"] for row in report["episodes"] if row["invalid"]] == bad
    assert report["results"]["bad_target_episodes"] == report["results"]["invalid_episodes"] == len(bad)
    first = f"nan rad of wrist_flex in step 3 of episode {bad[0]}"
    assert report["actions"]["first_bad_target"] == first
    assert any(f"not finite in {len(bad)} of 8 episodes" in text and first in text for text in blown.verdict.advice)
    assert f"{len(bad)} bad target" in (blown.folder / "report.md").read_text()
    assert report["actions"]["joints"]["wrist_flex"]["max"] == 1.0  # of those that are finite


def test_strict_refuses_targets_that_are_not_finite(see, blown):
    first = blown.report["actions"]["first_bad_target"]
    with short_episodes(), pytest.raises(HealthError, match=f"base 'blown' asks for {first}; .*leave out --strict"):
        Trial(see(Blown), 4, 0, strict=True).run(8)


# -- the command -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "status"), [("stopped", 3), ("passed", 0)])
def test_command_ends_with_the_verdict(request, monkeypatch, capsys, name, status, tmp_path):
    result = request.getfixturevalue(name)
    calls = []
    monkeypatch.setattr(gate, "run_gate", lambda policy, settings, out: calls.append((policy, settings, out)) or result)
    flags = GateFlags(base="zero", physics="native", out=tmp_path / "new", settings=GateSettings(episodes=9))
    assert gate.gate_main(flags) == status
    ((policy, settings, out),) = calls
    assert (policy.name, policy.config.physics, settings.episodes, out) == ("zero", "native", 9, tmp_path / "new")
    printed = capsys.readouterr().out
    assert printed.startswith(result.line) and str(result.folder / "report.md") in printed


def test_result_is_json(stopped):
    assert json.loads((stopped.folder / "report.json").read_text())["frames"] is None
    assert "No sample frames: not asked for." in (stopped.folder / "report.md").read_text()
