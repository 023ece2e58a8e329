"""bench.train pools the episodes of its seeds, names figures after what was trained, and takes no foreign run."""

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import train
from bench.train import TrainBenchConfig, kind_of, pooled, run
from mjx_so101 import ConfigError
from train.provenance import source
from train.statistics import wilson_interval

CONFIG = {"obs": "state", "base": "jacobian", "sheet_friction": "dry", "num_envs": 4}


def result(rate, at_end, episodes=100):
    return {"episodes": episodes, "success": {"5": {"rate": rate}}, "success_at_end": {"5": {"rate": at_end}}}


def report(words, rate=0.9, device="NVIDIA H100 80GB HBM3", **config):
    """report.json as `so101 train` with these words writes it."""
    policies = {"base": 0.3, "mean": rate, "sample": 0.8, "noise": 0.5}
    return {
        **source()._asdict(), "command": shlex.join(["so101", *words]), "device": device, "driver": "580",
        "time_utc": "2026-01-01T00:00:00+00:00", "config": {**CONFIG, **config}, "finished": True, "steps": 10,
        "environment": {"randomization": {"name": "plain"}}, "seconds": {"total": 9.0, "compile": 4.0},
        "steps_per_second": 100.0 * rate, "peak_memory_bytes": 1, "evaluations": [], "taught": None,
        "results": {name: result(value, value - 0.1) for name, value in policies.items()},
    }  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
    """Every `so101 train` that was called; each leaves a report. Rates by seed: 0.9, 0.8 ...; 0.2 less if blind."""
    calls = []

    def call(command):
        assert command[:3] == [sys.executable, "-m", "train.cli"]
        words = command[3:]
        calls.append(words)
        seed, out, blind = int(words[words.index("--seed") + 1]), words[words.index("--out") + 1], "--blind" in words
        pixels = {"obs": "pixels", "privileged_base": True, "blind": blind} if "pixels" in words else {}
        folder = Path(out)
        folder.mkdir(parents=True)
        held = report(words, 0.9 - 0.1 * seed - 0.2 * blind, **pixels)
        (folder / "report.json").write_text(json.dumps(held))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(train, "subprocess", SimpleNamespace(run=call))
    return calls


def headline(path):
    return {entry["name"]: entry for entry in json.loads(path.read_text())["headline"]}


def test_seeds_are_pooled_over_all_their_episodes(trained, tmp_path):
    config = TrainBenchConfig(seeds=(0, 1), folder=tmp_path / "runs", out=tmp_path / "a.json")
    train.main(config, ["--preset", "gpu"])
    assert [words[:3] for words in trained] == [["train", "--preset", "gpu"]] * 2
    found = headline(config.out)
    ever, at_end = found["h100_train_success_5mm"], found["h100_train_success_at_end_5mm"]
    assert (ever["value"], ever["unit"]) == (170 / 200, "fraction")
    assert (ever["low"], ever["high"]) == wilson_interval(170, 200)
    assert at_end["value"] == pytest.approx(150 / 200)
    for start in ("sampled_", "base_", "noise_"):
        assert {f"h100_train_{start}success_5mm", f"h100_train_{start}success_at_end_5mm"} <= set(found)
    assert found["h100_train_steps_per_s"]["value"] == pytest.approx(80.0)  # of the slower seed
    record = json.loads(config.out.read_text())
    assert (record["device"], record["seeds"], record["num_envs"]) == ("NVIDIA H100 80GB HBM3", [0, 1], [4])


def test_rates_of_unequal_counts_are_weighed():
    runs = [{"results": {"mean": result(1.0, 1.0, 300)}}, {"results": {"mean": result(0.0, 0.0, 100)}}]
    assert pooled(runs, "mean", "success", "5")["value"] == 0.75


def test_blind_control_stands_beside_the_run_from_pixels(trained, tmp_path):
    config = TrainBenchConfig(seeds=(0, 1), blind_seeds=(0, 1), folder=tmp_path / "runs", out=tmp_path / "a.json")
    train.main(config, ["--obs", "pixels", "--privileged-base"])
    assert ["--blind" in words for words in trained] == [False, False, True, True]
    found = headline(config.out)
    assert found["h100_pixels_privileged_success_5mm"]["value"] == pytest.approx(0.85)
    assert found["h100_pixels_privileged_blind_success_5mm"]["value"] == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("config", "randomization", "kind"),
    [
        ({}, "plain", "train"), ({"base": "oracle"}, "real", "train_oracle_real"),
        ({"sheet_friction": "viscous"}, "My file.1", "train_my_file_1_viscous"),
        ({"obs": "pixels"}, "plain+looks", "pixels_plain_looks"), ({"obs": "state25"}, "plain", "state25"),
        ({"sheet_pose": "camera"}, "plain", "pixels_train"),
        ({"sheet_pose": "camera", "blind": True}, "plain", "pixels_blind"),
        ({"sheet_pose": "camera", "render": {"renderer": "madrona"}}, "real+looks", "madrona_train_real_looks"),
    ],
)  # fmt: skip
def test_names_follow_from_what_was_trained(config, randomization, kind):
    held = {"config": {**CONFIG, **config}, "environment": {"randomization": {"name": randomization}}}
    assert kind_of(held) == kind


def test_finished_runs_of_the_folder_are_taken(trained, tmp_path):
    for seeds in ((0,), (0, 1), (0, 1)):
        config = TrainBenchConfig(seeds=seeds, folder=tmp_path / "runs", out=tmp_path / "a.json")
        train.main(config, [])
    assert [words[words.index("--seed") + 1] for words in trained] == ["0", "1"]
    assert headline(config.out)["h100_train_success_5mm"]["value"] == 170 / 200


def test_speed_is_given_over_that_of_another_record(trained, tmp_path):
    state = TrainBenchConfig(seeds=(0,), folder=tmp_path / "state", out=tmp_path / "h100_train.json")
    train.main(state, [])
    config = TrainBenchConfig(seeds=(0,), over=state.out, folder=tmp_path / "runs", out=tmp_path / "a.json")
    train.main(config, ["--obs", "pixels", "--privileged-base"])
    assert headline(config.out)["h100_pixels_privileged_steps_per_s_over_h100_train"]["value"] == 1.0
    state.out.write_text(json.dumps({**json.loads(state.out.read_text()), "device": "NVIDIA H200"}))
    with pytest.raises(ConfigError, match="is of NVIDIA H200, these runs are of NVIDIA H100 80GB HBM3; measure it on"):
        train.main(config, ["--obs", "pixels", "--privileged-base"])


@pytest.mark.parametrize(
    ("settings", "message"), [({"blind_seeds": (2,)}, "blind_seeds is .2,.; give some"), ({"over": Path("no")}, "'no'")]
)
def test_controls_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainBenchConfig(seeds=(0, 1), **settings)


@pytest.mark.parametrize("name", ["command", "source_sha256", "commit", "finished"])
def test_a_run_of_something_else_is_refused(trained, tmp_path, name):
    run(0, tmp_path / "seed0", [])
    path = tmp_path / "seed0" / "report.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, name: None}))
    with pytest.raises(ConfigError, match=rf"{name} of .*report\.json is None.*name another --folder"):
        run(0, tmp_path / "seed0", [])


def test_a_run_that_fails_is_said(monkeypatch, tmp_path):
    failed = SimpleNamespace(run=lambda command: SimpleNamespace(returncode=3))
    monkeypatch.setattr(train, "subprocess", failed)
    with pytest.raises(ConfigError, match=r"so101 train --seed 0 .* failed \(3\)"):
        run(0, tmp_path / "seed0", [])


def test_runs_of_several_devices_do_not_make_one_record(trained, tmp_path):
    runs = [run(seed, tmp_path / f"seed{seed}", []) for seed in (0, 1)]
    runs[1]["device"] = "CPU, 2 cores"
    with pytest.raises(ConfigError, match="several devices: CPU, 2 cores, NVIDIA H100"):
        train.record(TrainBenchConfig(out=tmp_path / "a.json"), [], [runs])


@pytest.mark.parametrize("seeds", [(), (0, 0)])
def test_bad_seeds_are_named(seeds):
    with pytest.raises(ConfigError, match="seeds is"):
        TrainBenchConfig(seeds=seeds)
