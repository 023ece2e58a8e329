"""The report of a run: what it holds, where it is written, and the comparison of several runs."""

import dataclasses
import json
import re
import shlex

import imageio.v2 as imageio
import numpy as np
import pytest

from mjx_so101 import CheckpointError, ConfigError
from train import provenance, report, video
from train.compare import compare_runs, read_report

NAMES = ("base", "mean", "sample", "noise")


# -- the tables ----------------------------------------------------------------------------------------------------
def summary(rate, **changes):
    entry = {"rate": rate, "low": rate / 2, "high": (1 + rate) / 2, "median_steps": None}
    values = {"success": {"5": entry, "10": entry}, "mean_return": 1.25, "final_distance_mm": 3.14,
              "final_yaw_deg": 2.5, "mean_residual_rad": 0.0123}  # fmt: skip
    return {**values, **changes}


def test_table_has_a_line_for_each_policy():
    lines = report.table({"base": summary(0.25), "mean": summary(1.0)}).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "success 5 mm" in lines[0] and "success 10 mm" in lines[0]
    assert lines[2].startswith("| base | 25.0% (12.5%-62.5%) | 25.0%")
    for value in ("100.0%", "1.25", "3.1", "2.50", "12.3"):
        assert value in lines[3]


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
    assert tiny_report["config"] == tiny_config.to_dict()  # what the flags mean
    assert tiny_report["environment"]["physics"] == "native"
    assert tiny_report["environment"]["randomization"]["name"] == "plain"
    assert tiny_report["environment"]["sheet_friction"] == "dry"
    assert tiny_report["finished"] is True
    assert tiny_report["steps"] == 5120
    assert tiny_report["peak_memory_bytes"] > 1e8


def test_report_is_json_without_nan(tiny_run, read_json):
    assert read_json((tiny_run / "report.json").read_text())["results"]


def test_times_add_up(tiny_report):
    seconds = dict(tiny_report["seconds"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert min(seconds.values()) > 0
    assert tiny_report["steps_per_second"] > 0


def test_report_compares_base_mean_sample_and_noise(tiny_report):
    results = tiny_report["results"]
    assert tuple(results) == NAMES
    for result in results.values():
        assert result["episodes"] == 8
        assert set(result["success"]) == {"5", "10", "20"}
        assert result["nonfinite_episodes"] == result["overflow_episodes"] == 0
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
    monkeypatch.setattr(report, "compare_policies", lambda *_, **__: tiny_report["results"])
    monkeypatch.setattr(report, "record_episodes", lambda *_: (np.zeros((4, 9, 9)), np.arange(9) == 3))
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

    def write_videos(qpos, folder, large_episode=0, **options):
        calls.append((qpos.shape, folder, large_episode))
        return [folder / "grid.mp4", folder / "episode.mp4"]

    monkeypatch.setattr(report, "write_videos", write_videos)
    text, markdown = written(config={"video": True})
    assert calls == [((4, 9, 9), tmp_path, 3)]  # the large one is an episode that succeeded
    assert json.loads(text)["videos"] == ["grid.mp4", "episode.mp4"]
    assert "(grid.mp4)" in markdown and "(episode.mp4)" in markdown


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


def test_missing_ffmpeg_is_named(monkeypatch, tmp_path):
    def get_writer(*_, **__):
        raise ImportError("To use the imageio ffmpeg plugin you need to 'pip install imageio-ffmpeg'")

    monkeypatch.setattr(video.imageio, "get_writer", get_writer)
    with pytest.raises(ConfigError, match=r"grid.mp4 cannot be written.*pip install 'imageio\[ffmpeg\]'"):
        video.write_videos(np.zeros((2, 1, 9)), tmp_path)


# -- so101 compare -------------------------------------------------------------------------------------------------
@pytest.fixture
def two_runs(tiny_run, tmp_path):
    """The tiny run and a copy of it that did better."""
    other = tmp_path / "other"
    other.mkdir()
    content = json.loads((tiny_run / "report.json").read_text())
    content["results"]["mean"]["success"]["5"]["rate"] = 0.987
    content["config"]["base"] = "oracle"
    (other / "report.json").write_text(json.dumps(content))
    return [tiny_run, other]


def test_comparison_has_a_line_for_each_run(two_runs, tiny_report, tmp_path):
    text = compare_runs(two_runs, tmp_path / "new" / "comparison")
    lines = text.splitlines()
    assert len(lines) == 4
    assert (tmp_path / "new" / "comparison" / "comparison.md").read_text() == text + "\n"
    base = tiny_report["results"]["base"]["success"]["5"]["rate"]
    assert f"{base:.1%} -> 98.7%" in lines[3] and "oracle" in lines[3]
    assert "jacobian" in lines[2] and "plain" in lines[2] and "5,120" in lines[2]
    for column in ("5 mm", "distance", "return", "minutes", "memory"):
        assert column in lines[0]
    assert imageio.imread(tmp_path / "new" / "comparison" / "comparison.png").std() > 0


def test_run_without_a_report_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=rf"{tmp_path} is not a run folder"):
        read_report(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{tmp_path} has no report.json.*--resume"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"results": ')
    with pytest.raises(CheckpointError, match="damaged"):
        read_report(tmp_path)


def test_comparison_of_a_missing_run_writes_nothing(tiny_run, tmp_path):
    with pytest.raises(CheckpointError):
        compare_runs([tiny_run, tmp_path / "none"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
