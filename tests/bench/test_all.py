"""bench.all runs each figure's own command, goes on after one that fails, and keeps its time."""

import importlib
import json
from types import SimpleNamespace

import pytest
import tyro

from bench import all as every
from bench import cameras, fps
from bench.all import FIGURES, AllConfig, Figure
from mjx_so101 import ConfigError

WRITES = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({'run': 2}))"


@pytest.fixture
def figures(monkeypatch):
    """Small programs in place of the measurements; each gets the path of its record."""
    programs = {
        "good": WRITES, "bad": "raise SystemExit('it broke')", "silent": "pass",
        "slow": "import time; time.sleep(60)", "device": "import os; print(os.environ.get('JAX_PLATFORMS'))",
    }  # fmt: skip

    def words(self, out, runs):
        return ["-c", programs[self.command], str(out)]

    monkeypatch.setattr(Figure, "words", words)
    monkeypatch.setattr(every, "FIGURES", {name: Figure(name, cpu=name == "device") for name in programs})


def test_each_is_measured_whatever_the_others_do(figures, tmp_path, capsys):
    (tmp_path / "good.json").write_text("of an earlier run")
    (tmp_path / "bad.json").write_text("of an earlier run")
    assert every.main(AllConfig(only=("bad", "good", "silent", "device"), out=tmp_path)) is False
    said = capsys.readouterr().out
    assert "failed (1), see" in said and "failed: no record was written" in said and "1 of 4 done" in said
    assert json.loads((tmp_path / "good.json").read_text()) == {"run": 2}
    assert not (tmp_path / "bad.json").exists()  # an old record would pass for a new one
    assert "it broke" in (tmp_path / "bad.log").read_text()
    assert (tmp_path / "device.log").read_text() == "cpu\n"
    assert every.main(AllConfig(only=("good",), out=tmp_path)) is True


def test_time_is_kept(figures, tmp_path, capsys):
    assert every.main(AllConfig(only=("slow", "good"), out=tmp_path, minutes=0.02)) is False
    said = capsys.readouterr().out
    assert "stopped after 1 s" in said and "no time left" in said


def test_names_are_checked_and_listed(capsys):
    with pytest.raises(ConfigError, match=r"only is 'h100_fps'.*'h100_state_fps'"):
        AllConfig(only=("cpu_state_fps", "h100_fps"))
    with pytest.raises(ConfigError, match="only is empty"):
        AllConfig()
    assert every.main(AllConfig(list=True))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FIGURES)


CONFIGS = {"bench.fps": "FpsConfig", "bench.cameras": "CamerasConfig", "bench.bases": "BasesConfig",
           "bench.repeat": "RepeatConfig", "bench.train": "TrainBenchConfig",
           "bench.pose": "PoseBenchConfig"}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, figure in FIGURES.items() if "bench.groot" not in figure.command])
def test_commands_of_the_list_can_be_parsed(name, tmp_path):
    _, module, *flags = FIGURES[name].words(tmp_path / "a.json", tmp_path / "runs")
    own = flags[: flags.index("--")] if "--" in flags else flags
    kind = getattr(importlib.import_module(module), CONFIGS[module])
    assert tyro.cli(kind, args=own).out == tmp_path / "a.json"


# -- cameras -----------------------------------------------------------------------------------------------------------
SIZES = {"size": ("64x64", "320x240"), "num_envs": (9, 4), "renderer": ("warp", "madrona")}


def test_renderers_that_are_compared_draw_as_many_environments():
    config = cameras.CamerasConfig(**SIZES, cameras=(1, 2), textures=False)
    drawn = [(c.render.renderer, c.render.width, len(c.render.cameras), c.num_envs[0]) for c in config.measurements()]
    pairs = [(64, 1, 9), (64, 2, 5), (320, 1, 4), (320, 2, 2)]
    assert drawn == [(renderer, *pair) for pair in pairs for renderer in ("warp", "madrona")]


def test_each_measurement_is_the_command_of_bench_fps(tmp_path):
    for one in cameras.CamerasConfig(**SIZES, textures=False, meshes="package", pictures=tmp_path).measurements():
        words = cameras.arguments(one, tmp_path / "a.json")
        parsed = tyro.cli(fps.FpsConfig, args=words)
        assert parsed == fps.dataclasses.replace(one, out=tmp_path / "a.json")


def test_rows_carry_their_count_and_the_device_of_the_measurement(monkeypatch, tmp_path):
    def measured(one):
        row = {
            "num_envs": one.num_envs[0], "env_steps_per_s": 10.0, "render_only_frames_per_s": 20.0,
            "renderer": one.render.renderer,
        }  # fmt: skip
        return {"device": "NVIDIA H200", "rows": [row], "headline": fps.figures(one, "random", row, "NVIDIA H200")}

    monkeypatch.setattr(cameras, "measure", measured)
    monkeypatch.setattr(cameras, "table", lambda rows: "a row")
    config = cameras.CamerasConfig(size=("64x64",), num_envs=(8,), cameras=(1,), renderer=("quad", "warp"),
                                   out=tmp_path / "a.json")  # fmt: skip
    cameras.main(config)
    record = json.loads(config.out.read_text())
    assert [row["num_envs"] for row in record["rows"]] == [8, 8] and record["num_envs"] == [8]
    assert record["device"] == "NVIDIA H200"
    assert [entry["name"] for entry in record["headline"]] == [
        "h200_rgb64x1_env_steps_per_s", "h200_rgb64x1_render_frames_per_s",
        "h200_rgb64x1_warp_env_steps_per_s", "h200_rgb64x1_warp_render_frames_per_s",
    ]  # fmt: skip


def test_ratios_compare_with_the_same_environments_without_pictures_and_with_fixed_looks(monkeypatch, tmp_path):
    speeds = {("rgb", "plain"): 6.0, ("state", "plain"): 8.0, ("rgb", "real"): 5.0, ("rgb", "real+looks"): 4.0}
    measured = []

    def measure(one):
        measured.append((one.render.renderer, one.obs, one.randomization, one.num_envs))
        row = {
            "num_envs": one.num_envs[0], "env_steps_per_s": speeds[one.obs, one.randomization],
            "render_only_frames_per_s": 1.0, "renderer": one.render.renderer,
        }  # fmt: skip
        return {"device": "NVIDIA H100", "rows": [row], "headline": fps.figures(one, "random", row, "NVIDIA H100")}

    monkeypatch.setattr(cameras, "measure", measure)
    monkeypatch.setattr(cameras, "table", lambda rows: "a row")
    config = cameras.CamerasConfig(size=("64x64",), num_envs=(8,), cameras=(1,), ratios=True, out=tmp_path / "a.json")
    cameras.main(config)
    record = json.loads(config.out.read_text())
    values = {entry["name"]: entry["value"] for entry in record["headline"]}
    assert (values["h100_rgb64x1_state_ratio"], values["h100_rgb64x1_looks_ratio"]) == (0.75, 0.8)
    assert not any("warp" in name and "ratio" in name for name in values)
    assert measured[1:4] == [("quad", "state", "plain", (8,)), ("quad", "rgb", "real", (8,)),
                             ("quad", "rgb", "real+looks", (8,))]  # fmt: skip
    assert len(record["rows"]) == 5


def test_a_measurement_that_fails_is_said(monkeypatch):
    failed = SimpleNamespace(DEVNULL=None, run=lambda command, stdout: SimpleNamespace(returncode=1))
    monkeypatch.setattr(cameras, "subprocess", failed)
    with pytest.raises(ConfigError, match=r"bench\.fps --obs state .* failed"):
        cameras.measure(fps.FpsConfig())
