"""The report of a run: what it holds and where it is written."""

import dataclasses
import json
import re
import shlex

import imageio.v2 as imageio
import pytest

from mjx_so101 import ConfigError
from mjx_so101.params import load_randomization
from train import doctor, provenance, report
from train.config import TrainConfig

NAMES = ("base", "mean", "sample", "noise")


# -- the tables ----------------------------------------------------------------------------------------------------
def summary(rate, **changes):
    entry = {"rate": rate, "low": rate / 2, "high": (1 + rate) / 2, "median_steps": None}
    end = {**entry, "rate": rate / 4}
    values = {"success": {"5": entry, "10": entry}, "success_at_end": {"5": end, "10": end}, "mean_return": 1.25,
              "final_distance_mm": 3.14, "final_yaw_deg": 2.5, "mean_residual_rad": 0.0123, "invalid_episodes": 0,
              "bad_target_episodes": 0, "nonfinite_episodes": 0, "overflow_episodes": 0}  # fmt: skip
    return {**values, **changes}


def test_table_has_a_line_for_each_policy():
    lines = report.table({"base": summary(0.25), "mean": summary(1.0)}).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| policy | success 5 mm | at the end 5 mm | success 10 mm | at the end 10 mm |")
    assert lines[2].startswith("| base | 25.0% (12.5%-62.5%) | 6.2% (12.5%-62.5%) | 25.0%")
    assert lines[2].endswith("| - |")
    for value in ("100.0%", "1.25", "3.1", "2.50", "12.3"):
        assert value in lines[3]


def test_faults_are_counted_in_the_table():
    odd = summary(0.5, invalid_episodes=3, bad_target_episodes=2, overflow_episodes=1)
    assert report.table({"mean": odd}).endswith("| 3 invalid, 2 bad target, 1 overflow |")


# -- who saw what --------------------------------------------------------------------------------------------------
class Base:
    sees = ("joints", "sheet_pose")


@pytest.mark.parametrize(
    ("config", "words", "hidden"),
    [
        (TrainConfig(), "joints, sheet_pose, base_plan", False),
        (TrainConfig(obs="pixels", privileged_base=True), "joints, pictures; base sees the true pose", True),
        (TrainConfig(obs="pixels", privileged_base=True, blind=True),
         "joints, blank pictures; base sees the true pose", True),
    ],
)  # fmt: skip
def test_what_actor_and_base_saw(config, words, hidden):
    saw = report.saw(config, Base)
    assert saw["base"] == ["joints", "sheet_pose"] and "parameters" in saw["critic"]
    assert (report.seen(saw), report.privileged(saw)) == (words, hidden)


def test_base_that_sees_pictures_is_not_privileged():
    class Sees:
        sees = ("joints", "pictures")

    saw = report.saw(TrainConfig(base="zero", obs="pixels"), Sees)
    assert saw["actor"] == ["joints", "pictures", "base_plan"] and not report.privileged(saw)


class Canned:
    """Evaluator whose episodes are a record of how it was asked."""

    def __init__(self, sees_pictures, asked=()):
        self.sees_pictures, self.asked = sees_pictures, asked

    def variant(self, mode, noise=0.0, blind=False):
        return Canned(self.sees_pictures, (mode, noise, blind))

    def __call__(self, learner, episodes, seed):
        self.call = (episodes, seed)
        return self

    def summary(self):
        return {"asked": (*self.asked, *self.call), "residual_rms": 0.25}


def test_policy_with_pictures_is_evaluated_blind_too():
    results, shown = report.compare_policies(Canned(True), None, 8, 5)
    assert {name: result["asked"] for name, result in results.items()} == {
        "base": ("base", 0.25, False, 8, 5),
        "mean": ("mean", 0.0, False, 8, 5),
        "sample": ("sample", 0.25, False, 8, 5),
        "noise": ("noise", 0.25, False, 8, 5),
        "blind": ("mean", 0.0, True, 8, 5),
    }
    assert shown.asked == ("mean", 0.0, False)
    assert "blind" not in report.compare_policies(Canned(False), None, 8, 5)[0]


def test_ranges_in_words():
    assert report.ranges_text({"sheet_mass_scale": [1.0, 1.0]}) == "every value is the usual one"
    text = report.ranges_text(load_randomization("real").to_dict()["ranges"])
    assert "fingertip_friction 0.3 to 0.8" in text and "sheet_position_noise 0.003," in text
    assert "light" not in text


def test_learning_curve_is_a_picture(tmp_path):
    evaluations = [{"steps": 0, **summary(0.2)}, {"steps": 100, **summary(0.9)}]
    report.learning_curve(evaluations, summary(0.2), tmp_path / "a.png")
    report.learning_curve(evaluations[:1], summary(0.2), tmp_path / "b.png")
    pictures = [imageio.imread(tmp_path / name) for name in ("a.png", "b.png")]
    assert pictures[0].shape[:2] == pictures[1].shape[:2]
    assert (pictures[0] != pictures[1]).any()


# -- the report of a real run --------------------------------------------------------------------------------------
def test_report_says_how_its_numbers_came_to_be(tiny_run, tiny_report, tiny_flags, tiny_config):
    assert shlex.split(tiny_report["command"]) == ["so101", "train", *tiny_flags, "--out", str(tiny_run)]
    assert re.fullmatch("[0-9a-f]{40}|unknown", tiny_report["commit"]) and "dirty" in tiny_report
    assert tiny_report["device"] == provenance.device()
    assert tiny_report["versions"] == provenance.versions()
    assert tiny_report["config"] == tiny_config.resolve().to_dict()  # what the flags mean
    assert tiny_report["environment"]["physics"] == "native"
    assert tiny_report["environment"]["randomization"]["name"] == "plain"
    assert tiny_report["environment"]["sheet_friction"] == "dry"
    assert tiny_report["finished"] is True
    task = tiny_report["task"]
    assert (task["episodes"], task["sheet_friction"], task["rules"]["episode_steps"]) == (8, "dry", 400)
    assert task["ranges"] == tiny_report["environment"]["randomization"]["ranges"]
    assert task["rules"]["report_tolerances"] == [0.005, 0.01, 0.02]
    assert tiny_report["saw"]["base"] == ["joints", "sheet_pose"]
    assert tiny_report["steps"] == 5120
    assert tiny_report["peak_memory_bytes"] > 1e8


def test_report_is_json_without_nan(tiny_run, read_json):
    assert read_json((tiny_run / "report.json").read_text())["results"]


def test_times_add_up(tiny_report):
    seconds = dict(tiny_report["seconds"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert seconds.pop("teaching") == 0  # nothing was taught
    assert min(seconds.values()) > 0
    assert tiny_report["steps_per_second"] > 0


def test_report_compares_base_mean_sample_and_noise(tiny_report):
    results = tiny_report["results"]
    assert tuple(results) == NAMES
    for result in results.values():
        assert result["episodes"] == 8
        assert set(result["success"]) == {"5", "10", "20"}
        assert result["nonfinite_episodes"] == result["overflow_episodes"] == result["bad_target_episodes"] == 0
        for mm, entry in result["success_at_end"].items():
            assert 0 <= entry["low"] <= entry["rate"] <= entry["high"] <= 1
            assert entry["rate"] <= result["success"][mm]["rate"]
    assert results["base"]["mean_residual_rad"] == 0
    assert results["sample"]["mean_residual_rad"] > results["mean"]["mean_residual_rad"]
    assert results["sample"]["mean_return"] != results["mean"]["mean_return"]
    assert results["noise"]["residual_rms"] == pytest.approx(results["mean"]["residual_rms"], rel=0.1)
    moved = results["mean"]["mean_residual_rad"] > 0  # not if the best checkpoint is that of step 0
    assert (results["mean"]["mean_return"] != results["base"]["mean_return"]) == moved
    assert (results["mean"]["mean_return"] != results["noise"]["mean_return"]) == moved


def test_report_can_be_read(tiny_run, tiny_report):
    text = (tiny_run / "report.md").read_text()
    assert text.startswith("# jacobian + residual under plain (dry sheet)")
    assert tiny_report["command"] in text and tiny_report["commit"] in text and tiny_report["device"] in text
    assert report.table(tiny_report["results"]) in text
    assert "(learning_curve.png)" in text
    assert "actor sees joints, sheet_pose, base_plan; base sees joints, sheet_pose; critic sees" in text
    assert "Randomization plain: " in text and "start_yaw -0.5 to 0.5" in text
    assert imageio.imread(tiny_run / "learning_curve.png").std() > 0


def test_learner_reported_is_the_best_checkpoint(uninterrupted, tiny_run, monkeypatch, differences):
    trainer = uninterrupted.trainer
    monkeypatch.setattr(trainer, "out", tiny_run)
    best = trainer.best_learner()
    steps = json.loads((tiny_run / "checkpoints" / "best" / "meta.json").read_text())["steps"]
    assert not differences(best, uninterrupted.after(steps // 128)["learner"])


# -- parts that need no evaluation ---------------------------------------------------------------------------------
@pytest.fixture
def written(uninterrupted, tiny_report, tmp_path, monkeypatch):
    """Function that writes a report into tmp_path with canned results and fields of the trainer and its config."""
    trainer = uninterrupted.trainer
    monkeypatch.setattr(report, "compare_policies", lambda *_, **__: (tiny_report["results"], "the episodes"))
    monkeypatch.setattr(trainer, "out", tmp_path)
    monkeypatch.setattr(trainer, "evaluations", tiny_report["evaluations"])

    def write(finished=True, config=None, **fields):
        monkeypatch.setattr(trainer, "config", dataclasses.replace(trainer.config, **(config or {})))
        for name, value in fields.items():
            monkeypatch.setattr(trainer, name, value)
        report.write_report(trainer, trainer.learner, finished)
        return (tmp_path / "report.json").read_text(), (tmp_path / "report.md").read_text()

    return write


def test_run_of_one_iteration_has_a_report_in_json(written, read_json):
    """Its speed is not known, because the only iteration compiled."""
    text, _ = written(steps=128, seconds={"rollout": 1e-9, "update": 1e-9, "evaluation": 1.0, "compile": 9.0})
    assert read_json(text)["steps"] == 128


def test_report_links_its_videos(written, monkeypatch, tmp_path):
    calls = []

    def write_videos(*given):
        calls.append(given)
        return [tmp_path / "grid.mp4", tmp_path / "videos.md"]

    monkeypatch.setattr(report, "write_videos", write_videos)
    text, markdown = written(config={"video": True, "video_episodes": 4})
    assert calls == [("the episodes", tmp_path, 4)]  # the very ones that were counted
    assert json.loads(text)["videos"] == ["grid.mp4", "videos.md"]
    assert "Video: [grid.mp4](grid.mp4)" in markdown and "What they show: [videos.md](videos.md)" in markdown


def test_run_without_a_renderer_still_has_its_report(written, monkeypatch, capsys):
    def write_videos(*_, **__):
        raise ConfigError("MuJoCo cannot draw here")

    monkeypatch.setattr(report, "write_videos", write_videos)
    text, _ = written(config={"video": True})
    assert json.loads(text)["videos"] == []
    assert "MuJoCo cannot draw here" in capsys.readouterr().out


def test_videos_that_break_lose_nothing_of_the_report(written, monkeypatch, tmp_path):
    def write_videos(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(report, "write_videos", write_videos)
    with pytest.raises(RuntimeError):
        written(config={"video": True})
    assert json.loads((tmp_path / "report.json").read_text())["results"]
    assert "| mean |" in (tmp_path / "report.md").read_text()


def test_report_names_every_command_of_a_resumed_run(written, tmp_path):
    (tmp_path / "commands.txt").write_text("so101 train --seed 1\nso101 train --resume here\n")
    assert json.loads(written()[0])["command"] == "so101 train --seed 1 && so101 train --resume here"


@pytest.mark.parametrize(
    ("best", "words"),
    [
        ([True, False, False], ("the policy before any training", "30.0%")),
        ([True, True, False], ("the one after 1,000 steps", "40.0%")),
    ],
)
def test_the_checkpoint_that_is_reported_is_named(best, words):
    rates = [0.3, 0.4, 0.2]
    evaluations = [{"steps": 1000 * i, "rate": rates[i], "best": best[i]} for i in range(3)]
    (line,) = report._chosen(evaluations)
    assert line == (
        f"Reported is {words[0]}, the best of 3 on the selection episodes: {words[1]} at the end; the last one 20.0%."
    )
    assert report._chosen([{"steps": 0, "rate": 0.3}]) == []  # of a run from before this was kept


@pytest.mark.parametrize(("name", "fix"), [("torch", ""), ("gs-madrona", ""), ("brax", "pip install brax")])
def test_doctor_misses_no_optional_package(monkeypatch, name, fix):
    monkeypatch.setattr(provenance, "versions", lambda: {"jax": "1.0", name: "not installed"})
    (finding,) = doctor._versions()
    assert finding.fix == fix and f"{name} not installed" in finding.found
