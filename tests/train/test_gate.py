"""The gate: its verdict, what it measures of a base policy alone, its report, and what it refuses."""

import dataclasses
import json
import re

import imageio.v2 as imageio
import jax.numpy as jnp
import numpy as np
import pytest

from mjx_so101 import ConfigError, HealthError
from mjx_so101.scene import JOINTS
from policies.base import NoCarry, ScriptedPolicy
from train import gate, gate_report
from train.evaluate import Evaluator
from train.gate import CAUTION, PROCEED, STOP, GateFlags, GateSettings, require_gate, run_gate, verdict
from train.gate_trial import Trial, check_joints, measure_actions, training_range
from train.policy import load_policy
from train.statistics import wilson_interval

QUICK = {"episodes": 8, "most_episodes": 8, "num_envs": 8, "video": False}


# -- the verdict ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("successes", "episodes", "name", "between"),
    [
        (0, 100, STOP, (STOP, STOP)),
        (4, 100, STOP, (STOP, CAUTION)),
        (5, 100, CAUTION, (STOP, CAUTION)),  # 5 % is no longer below 5 %
        (12, 100, CAUTION, (CAUTION, CAUTION)),
        (20, 100, CAUTION, (CAUTION, PROCEED)),  # 20 % is not yet above 20 %
        (21, 100, PROCEED, (CAUTION, PROCEED)),
        (40, 100, PROCEED, (PROCEED, PROCEED)),
        (1, 8, CAUTION, (STOP, PROCEED)),
        (30, 1024, STOP, (STOP, STOP)),
        (288, 1024, PROCEED, (PROCEED, PROCEED)),
    ],
)
def test_verdict(successes, episodes, name, between):
    judged = verdict(successes, episodes)
    assert (judged.name, judged.between, judged.decided) == (name, between, between[0] == between[1])
    assert (judged.rate, judged.episodes) == (successes / episodes, episodes)
    assert (judged.low, judged.high) == wilson_interval(successes, episodes)
    undecided = f"undecided between {between[0]} and {between[1]}"
    assert judged.text == (name if judged.decided else f"{name}, {undecided}")
    assert any("--most-episodes" in line for line in judged.advice) != judged.decided


@pytest.mark.parametrize(
    ("successes", "alpha"), [(0, 0.7), (19, 0.7), (20, 0.5), (25, 0.5), (30, 0.5), (31, 0.3), (100, 0.3)]
)
def test_suggested_alpha(successes, alpha):
    assert verdict(successes, 100).suggested_alpha == alpha


class CannedTrial:
    """Succeeds in `percent` of its episodes."""

    def __init__(self, percent):
        self.percent, self.count, self.rounds = percent, 0, []

    def run(self, episodes):
        self.count = episodes
        self.rounds.append(episodes)

    def successes(self, tolerance_mm):
        assert tolerance_mm == 5.0
        return self.count * self.percent // 100


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
def test_undecided_verdict_asks_for_more_episodes(percent, name, rounds):
    trial = CannedTrial(percent)
    judged = gate._judge(trial, GateSettings())
    assert trial.rounds == rounds
    assert judged.name == name
    assert judged.decided == (rounds[-1] < 1024)


# -- bad input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes is 0; it must be at least 1"),
        ({"num_envs": 0}, "num_envs is 0; it must be at least 1"),
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


@pytest.mark.parametrize("given", [np.zeros((2, 5)), (np.ones(6), np.zeros(6)), (np.zeros(6), np.full(6, np.nan))])
def test_training_range_that_is_none_is_refused(zero, given):
    class Base:
        name = "odd"
        training_range = given

    assert training_range(zero.base) is None
    with pytest.raises(ConfigError, match="training_range of base 'odd'"):
        training_range(Base())


# -- what to try -----------------------------------------------------------------------------------------------------
def measured(clipped=0.0, unusual=None, jumps=0.0, moved=1.0, bad=0, rates=(0.1, 0.1, 0.2), problems=None):
    return {
        "actions": {"clipped": clipped, "outside_training": unusual, "jumps": jumps, "moved_rad": moved,
                    "joints": {"shoulder_pan": {"clipped": 0.0}, "gripper": {"clipped": clipped}}},
        "results": {"nonfinite_episodes": bad, "overflow_episodes": 0,
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
        ({"rates": (0.1, 0.2, 0.6)}, "within 20 mm in 60% of the episodes and within 5 mm in 10%"),
        ({"problems": ["too dark"]}, "Pictures: too dark."),
    ],
)
def test_each_fault_has_its_advice(fault, message):
    assert gate_report.advice(measured(), 5.0) == []
    (line,) = gate_report.advice(measured(**fault), 5.0)
    assert re.search(message, line)


# -- real runs -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def oracle():
    return load_policy(None, "oracle", {"physics": "native"}, (5.0, 20.0))


@pytest.fixture(scope="module")
def passed(oracle, tmp_path_factory):
    """The gate of `oracle`, with a verdict at a tolerance that the policy was not loaded with."""
    settings = GateSettings(**{**QUICK, "video": True}, verdict_tolerance_mm=7.5, seed=3)
    patch = pytest.MonkeyPatch()
    videos = []
    patch.setattr(type(oracle), "write_video", lambda self, out, seed: videos.append((out, seed)) or [out / "grid.mp4"])
    result = run_gate(oracle, settings, tmp_path_factory.mktemp("gates") / "oracle")
    patch.undo()
    assert videos == [(result.folder, 3)]
    return result


@pytest.fixture(scope="module")
def stopped(zero, tmp_path_factory):
    """The gate of `zero`, which is not decided by its first 40 episodes."""
    settings = GateSettings(episodes=40, most_episodes=1000, num_envs=40, video=False, frames=False)
    return run_gate(zero, settings, tmp_path_factory.mktemp("gates") / "zero")


def test_oracle_passes(passed):
    assert passed.verdict.name == PROCEED and passed.verdict.decided
    assert passed.verdict.rate > 0.8 and passed.verdict.episodes == 8
    assert passed.line.startswith("PROCEED: ") and "of 8 episodes within 7.5 mm" in passed.line
    require_gate(passed)


def test_zero_is_stopped(stopped):
    assert stopped.verdict.name == STOP and stopped.verdict.decided
    assert (stopped.verdict.rate, stopped.verdict.suggested_alpha) == (0.0, 0.7)
    assert stopped.verdict.episodes == 80  # 40 were not enough: 0 of 40 may be 8.8 %
    assert stopped.report["results"]["episodes"] == 80
    assert any("does not move the arm" in line for line in stopped.verdict.advice)
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
    assert report["results"]["success"]["7.5"]["rate"] == report["verdict"]["rate"]
    assert report["results"]["mean_residual_rad"] == 0
    assert (report["verdict"]["name"], report["verdict"]["tolerance_mm"]) == (PROCEED, 7.5)
    assert report["actions"]["clipped"] == 0 and report["actions"]["moved_rad"] > 0.1
    assert report["speed"]["control_steps_per_second"] > 10 and not report["speed"]["with_compilation"]
    assert report["speed"]["inference"] is report["images"] is None
    assert report["videos"] == ["grid.mp4"]


def test_report_can_be_read(passed):
    text = (passed.folder / "report.md").read_text()
    assert text.startswith("# Gate of oracle: PROCEED\n")
    for part in ("## What to try", "| 7.5 mm |", "| shoulder_pan |", "## Speed", "(frames.png)", "(grid.mp4)"):
        assert part in text
    assert passed.report["command"] in text and passed.report["commit"] in text
    assert all(line in text for line in passed.verdict.advice)


def test_frames_show_four_episodes_at_three_moments(passed):
    picture = imageio.imread(passed.folder / "frames.png")
    assert picture.shape == (4 * (240 + 2), 3 * 2 * (320 + 2), 3)
    assert picture.std() > 10


def test_episodes_are_those_of_eval_and_repeat(oracle, passed):
    """Whatever the batch size: the gate ran two batches of four."""
    again = Evaluator(oracle.environment(8), oracle.base, oracle.residual)(oracle.learner, 8, 3).summary()
    for name in ("final_distance_mm", "final_yaw_deg"):
        assert again[name] == pytest.approx(passed.report["results"][name], rel=1e-6)
    for mm in ("5", "20"):
        assert again["success"][mm] == passed.report["results"]["success"][mm]


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
    assert any("most of shoulder_pan" in line for line in sighted.verdict.advice)


def test_pictures_are_judged(sighted):
    images = sighted.report["images"]
    assert (images["width"], images["height"]) == (32, 24)
    assert images["cameras"]["left"]["brightness"] == pytest.approx(60, abs=1)
    (problem,) = images["problems"]  # 60 is near 70, 120 is not near 200
    assert "camera 'right' has a mean grey level of 120, its training data 200" in problem
    assert any(problem in line for line in sighted.verdict.advice)
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
        raise ConfigError("MuJoCo cannot draw here")

    monkeypatch.setattr(gate_report, "MujocoRenderer", refuse)
    env, start = four
    record = views_of(zero, env).measure([start], tmp_path / "frames.png")
    assert record == {"images": None, "frames": None, "without_frames": "MuJoCo cannot draw here"}
    monkeypatch.setattr(type(zero), "write_video", refuse)
    report = {"videos": []}
    gate_report.add_videos(report, zero, 0, tmp_path)
    assert report == {"videos": [], "without_videos": "MuJoCo cannot draw here"}


class Blown(Sighted):
    """Asks for NaN at the wrist from the fourth step on."""

    name = "blown"

    def act(self, carry, observation):
        wrist = jnp.where(carry.unused < 3, 1.0, jnp.nan)
        return NoCarry(carry.unused + 1), observation.target.at[3].set(wrist)


def test_targets_that_are_not_finite_are_refused(see, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to a file
    with pytest.raises(HealthError, match="base 'blown' asks for nan rad of wrist_flex in step 3 of episode 0"):
        Trial(see(Blown), 4, 0).run(4)


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
