"""bench.pose teaches under each randomization in a process of its own and names its figures after what was shown."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import pose
from bench.pose import PoseBenchConfig
from mjx_so101 import ConfigError

ERRORS = {"median_mm": 1.0, "p95_mm": 3.0, "median_mrad": 5.0, "p95_mrad": 9.0}


@pytest.fixture
def taught(monkeypatch):
    """Every `so101 teach-pose` that was called; the second takes longer and sees worse."""
    calls = []

    def call(command):
        words = command[3:]
        calls.append(words)
        worse = len(calls)
        found = {
            "all": {name: worse * value for name, value in ERRORS.items()}, "seconds": 10.0 * worse,
            "success": {"5": {"rate": 0.9, "low": 0.8, "high": 0.95}}, "device": "NVIDIA H100 80GB HBM3",
            "config": {"num_envs": 4096},
        }  # fmt: skip
        (Path(words[words.index("--out") + 1]) / "teach.json").write_text(json.dumps(found))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(pose, "subprocess", SimpleNamespace(run=call))
    return calls


def headline(path):
    return {entry["name"]: entry["value"] for entry in json.loads(path.read_text())["headline"]}


def test_figures_are_of_each_randomization_and_of_the_base_under_the_first(taught, tmp_path):
    config = PoseBenchConfig(out=tmp_path / "a.json")
    pose.main(config)
    assert [words[words.index("--randomization") + 1] for words in taught] == ["plain", "real+looks"]
    assert all("--blind" not in words for words in taught)
    found = headline(config.out)
    assert found["h100_pose_error_plain_median_mm"] == 1.0 and found["h100_pose_error_plain_p95_mm"] == 3.0
    assert found["h100_pose_error_real_looks_median_mm"] == 2.0 and found["h100_pose_error_real_looks_p95_mm"] == 6.0
    assert found["h100_pose_teach_seconds"] == 20.0  # the slower one
    assert found["h100_oracle_camera_success_5mm"] == 0.9


def test_the_control_has_names_of_its_own(taught, tmp_path):
    config = PoseBenchConfig(randomization=("plain",), blind=True, out=tmp_path / "a.json")
    pose.main(config)
    assert "--blind" in taught[0]
    found = headline(config.out)
    assert {"h100_pose_blind_error_plain_median_mm", "h100_oracle_blind_success_5mm"} <= set(found)
    assert not any("camera" in name for name in found)


def test_a_teaching_that_fails_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(pose, "subprocess", SimpleNamespace(run=lambda _: SimpleNamespace(returncode=2)))
    with pytest.raises(ConfigError, match=r"so101 teach-pose .* failed \(2\)"):
        pose.main(PoseBenchConfig(out=tmp_path / "a.json"))
    assert not (tmp_path / "a.json").exists()


def test_nothing_to_teach_is_refused():
    with pytest.raises(ConfigError, match="randomization is empty"):
        PoseBenchConfig(randomization=())
