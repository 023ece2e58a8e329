"""bench/fps.py measures the whole step, honestly, and refuses what would make it look fast."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import fps
from bench.fps import FpsConfig, measure
from mjx_so101 import ConfigError, HealthError
from mjx_so101.physics.native import NativePhysics
from mjx_so101.task import TaskConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> FpsConfig:
    """As many steps as an episode has, so that each environment is reset."""
    out = tmp_path_factory.mktemp("fps") / "new" / "result.json"
    return FpsConfig(num_envs=(32,), physics=("native",), steps=50, blocks=4, out=out)


@pytest.fixture(scope="module")
def record(config) -> dict:
    return fps.main(config)


def test_record_is_written_with_where_it_comes_from(record, config):
    written = json.loads(config.out.read_text())
    assert written == json.loads(json.dumps(record))
    (headline,) = written["headline"]
    assert headline["name"] == "cpu_state_env_steps_per_s"
    assert headline["unit"] == "control steps/s"
    assert headline["value"] == max(row["env_steps_per_s"] for row in written["rows"]) > 0
    for name in ("command", "commit", "device"):
        assert isinstance(written[name], str) and written[name]
    assert {"jax", "mujoco", "python"} <= set(written["versions"])
    assert (written["sheet_friction"], written["randomization"]) == ("dry", "plain")
    best = max(written["rows"], key=lambda row: row["env_steps_per_s"])
    assert written["best"] == {"physics": "native", "num_envs": best["num_envs"]}


def test_row_is_honest(record):
    (row,) = record["rows"]
    assert (row["physics"], row["num_envs"]) == ("native", 32)
    assert row["contacts_per_env"] >= 0.5
    assert row["overflows"] == row["nonfinite"] == 0
    assert row["physics_steps_per_s"] == pytest.approx(8 * row["env_steps_per_s"])
    assert row["compile_s"] >= 0 and row["spread"] >= 0 and row["peak_memory_bytes"] > 0


def test_each_count_and_backend_is_measured_and_the_best_is_the_headline(monkeypatch, capsys):
    asked = []

    def measured(config, backend, num_envs):
        asked.append((backend, num_envs))
        speed = {4: 100.0, 8: 300.0, 16: 200.0}[num_envs] + (backend == "jax")
        return {"physics": backend, "num_envs": num_envs, "env_steps_per_s": speed, "physics_steps_per_s": 8 * speed,
                "contacts_per_env": 1.0, "compile_s": 1.0}  # fmt: skip

    monkeypatch.setattr(fps, "measure", measured)
    record = fps.main(FpsConfig(num_envs=(4, 8, 16), physics=("native", "jax"), headline="mine"))
    assert sorted(asked) == sorted((name, n) for name in ("native", "jax") for n in (4, 8, 16))
    assert record["headline"] == [{"name": "mine", "value": 301.0, "unit": "control steps/s"}]
    assert record["best"] == {"physics": "jax", "num_envs": 8}
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_pictures_add_the_frames_per_second_of_the_best_row(monkeypatch):
    def measured(config, backend, num_envs):
        return {"physics": backend, "num_envs": num_envs, "env_steps_per_s": 10.0 * num_envs, "physics_steps_per_s": 1,
                "contacts_per_env": 1.0, "compile_s": 1.0, "renderer": "warp", "cameras": ["top"], "width": 64,
                "height": 64, "render_only_frames_per_s": 70.0 * num_envs}  # fmt: skip

    monkeypatch.setattr(fps, "measure", measured)
    config = FpsConfig(num_envs=(4, 8), physics=("native",), obs="rgb", headline="gpu_rgb64x1_env_steps_per_s")
    steps, frames = fps.main(config)["headline"]
    assert (steps["name"], steps["value"]) == ("gpu_rgb64x1_env_steps_per_s", 80.0)
    assert frames == {"name": "gpu_rgb64x1_frames_per_s", "value": 560.0, "unit": "frames/s"}


def test_resets_happen_and_are_counted(record):
    """Each environment starts at some age below 400 and does 400 steps, so it is reset at least once."""
    assert TaskConfig().episode_steps == 400
    assert 32 <= record["rows"][0]["resets"] <= 64


def test_table_shows_the_rows(record):
    lines = fps.table(record["rows"]).splitlines()
    assert len(lines) == 2
    assert f"{record['rows'][0]['env_steps_per_s']:,.0f}" in lines[1]
    assert "env steps/s" in lines[0] and "physics steps/s" in lines[0]


@pytest.fixture(scope="module")
def poses(make_env):
    return fps.pressed_poses(make_env(4, "nominal"))


def test_pressed_poses_press_and_differ(poses, kinematics):
    tip = jax.jit(jax.vmap(lambda joints: kinematics.gripper_point(joints, kinematics.fixed_fingertip)[0]))
    low = np.asarray(tip(poses[:, :5]))[:, 2] - kinematics.fingertip_radius
    assert (low < 0.001).all() and (low > -0.005).all()  # below the sheet's upper side
    assert np.ptp(np.asarray(poses[:, 0])) > 0.1


# -- refusals ------------------------------------------------------------------------------------------------------
SHORT = FpsConfig(num_envs=(8,), physics=("native",), steps=3, blocks=1)


def test_an_arm_in_the_air_is_refused(monkeypatch):
    home = jnp.tile(jnp.asarray(TaskConfig().home), (256, 1))
    monkeypatch.setattr(fps, "pressed_poses", lambda env: home)
    with pytest.raises(HealthError, match=r"native, 8 envs: only 0\.\d+ contacts per env"):
        measure(SHORT, "native", 8)


@pytest.mark.parametrize("what", ["nan", "overflow"])
def test_bad_physics_is_refused(monkeypatch, poses, what):
    step = NativePhysics.step

    def bad(self, state, fields, ctrl):
        physics = step(self, state, fields, ctrl)
        if what == "nan":
            return physics.replace(qpos=np.where(np.arange(8)[:, None] == 2, np.nan, physics.qpos))
        return physics.replace(overflow=np.int32(np.arange(8) == 2))

    monkeypatch.setattr(NativePhysics, "step", bad)
    monkeypatch.setattr(fps, "pressed_poses", lambda env: poses)  # saves time
    with pytest.raises(HealthError, match="native, 8 envs: not a valid measurement"):
        measure(SHORT, "native", 8)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"num_envs": ()}, "num_envs"), ({"num_envs": (64, 0)}, "num_envs"), ({"num_envs": (-1,)}, "num_envs"),
        ({"physics": ("bullet",)}, "physics is 'bullet'.*'native'"), ({"steps": 0}, "steps is 0"),
        ({"blocks": 0}, "blocks 0"), ({"physics": ()}, "physics"),
    ],
)  # fmt: skip
def test_bad_values_are_named(bad, words):
    with pytest.raises(ConfigError, match=words):
        FpsConfig(**bad)
