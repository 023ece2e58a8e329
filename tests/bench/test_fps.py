"""bench/fps.py measures the whole step, honestly, and refuses what would make it look fast."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import fps, fps_loop, targets
from bench.fps import FpsConfig, measure
from bench.fps_loop import count_contacts
from bench.record import checksum
from bench.results import problems
from mjx_so101 import ConfigError, HealthError
from mjx_so101.physics.native import NativePhysics
from mjx_so101.render import RenderConfig, make_renderer
from mjx_so101.task import TaskConfig
from policies.jacobian import JacobianPolicy


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
    assert (written["conditions"]["sheet_friction"], written["conditions"]["randomization"]) == ("dry", "plain")
    assert (written["seeds"], written["num_envs"]) == ([0], [32])
    best = max(written["rows"], key=lambda row: row["env_steps_per_s"])
    assert written["best"] == {"random": {"physics": "native", "num_envs": best["num_envs"]}}
    assert written["checksum"] == checksum(written)
    assert [text for text in problems(written) if "dirty" not in text and "commit" not in text] == []


def test_a_fingertip_is_on_the_sheet_and_the_sheet_moves(record):
    (row,) = record["rows"]
    assert (row["targets"], row["physics"], row["num_envs"]) == ("random", "native", 32)
    assert 0.7 < row["touching_sheet"] <= row["sheet_contacts_per_env"]
    assert 0.5 <= row["touching_sheet_least"] <= row["touching_sheet"]
    assert row["table_contacts_per_env"] < 0.15
    assert row["sheet_moving"] > 0.4


def test_row_is_honest(record):
    (row,) = record["rows"]
    assert row["overflows"] == row["nonfinite"] == 0
    assert row["physics_steps_per_s"] == pytest.approx(8 * row["env_steps_per_s"])
    assert row["compile_s"] >= 0 and row["spread"] >= 0 and row["peak_memory_bytes"] > 0


ROW = {"sheet_contacts_per_env": 1.0, "table_contacts_per_env": 0.0, "compile_s": 1.0}


def test_each_count_backend_and_mode_is_measured_and_the_best_of_a_mode_is_its_headline(monkeypatch, capsys):
    asked = []

    def measured(config, backend, num_envs, mode):
        asked.append((backend, num_envs, mode))
        speed = {4: 100.0, 8: 300.0, 16: 200.0}[num_envs] + (backend == "jax") - 50 * (mode == "jacobian")
        return {**ROW, "targets": mode, "physics": backend, "num_envs": num_envs, "env_steps_per_s": speed,
                "physics_steps_per_s": 8 * speed}  # fmt: skip

    monkeypatch.setattr(fps, "measure", measured)
    record = fps.main(FpsConfig(num_envs=(4, 8, 16), physics=("native", "jax"), targets=("random", "jacobian")))
    wanted = [(p, n, m) for p in ("native", "jax") for n in (4, 8, 16) for m in ("random", "jacobian")]
    assert sorted(asked) == sorted(wanted)
    assert record["headline"] == [
        {"name": "cpu_state_env_steps_per_s", "value": 301.0, "unit": "control steps/s"},
        {"name": "cpu_state_jacobian_env_steps_per_s", "value": 251.0, "unit": "control steps/s"},
    ]
    assert record["best"] == {mode: {"physics": "jax", "num_envs": 8} for mode in ("random", "jacobian")}
    assert len(capsys.readouterr().out.splitlines()) == 13


def test_pictures_add_the_frames_per_second_of_the_best_row(monkeypatch):
    def measured(config, backend, num_envs, mode):
        return {**ROW, "targets": mode, "physics": backend, "num_envs": num_envs, "env_steps_per_s": 10.0 * num_envs,
                "physics_steps_per_s": 1, "renderer": "quad", "cameras": ["top"], "width": 64, "height": 64,
                "render_only_frames_per_s": 70.0 * num_envs}  # fmt: skip

    monkeypatch.setattr(fps, "measure", measured)
    render = RenderConfig(detail="coarse")
    steps, frames = fps.main(FpsConfig(num_envs=(4, 8), physics=("native",), obs="rgb", render=render))["headline"]
    assert (steps["name"], steps["value"]) == ("cpu_rgb64x1_env_steps_per_s", 80.0)
    assert frames == {"name": "cpu_rgb64x1_render_frames_per_s", "value": 560.0, "unit": "frames/s"}


@pytest.mark.parametrize(
    ("config", "mode", "name"),
    [
        (FpsConfig(), "random", "h100_state_env_steps_per_s"),
        (FpsConfig(), "jacobian", "h100_state_jacobian_env_steps_per_s"),
        (FpsConfig(randomization="real", sheet_friction="viscous"), "random",
         "h100_state_real_viscous_env_steps_per_s"),
        (FpsConfig(obs="rgb", render=RenderConfig(width=320, height=240, cameras=("top", "wrist"))), "random",
         "h100_fine_rgb320x240x2_env_steps_per_s"),
        (FpsConfig(num_envs=(8,), obs="rgb", render=RenderConfig(renderer="madrona", detail="coarse")), "random",
         "h100_rgb64x1_madrona_env_steps_per_s"),
        (FpsConfig(obs="rgb", meshes="package", render=RenderConfig(detail="coarse")), "random",
         "h100_meshes_rgb64x1_env_steps_per_s"),
    ],
)  # fmt: skip
def test_names_follow_from_the_command(config, mode, name):
    drawn_by = "madrona" if config.render.renderer == "madrona" else "quad"
    assert fps.headline_name(config, mode, "NVIDIA H100 80GB HBM3", drawn_by) == name


def test_a_name_tells_what_drew_not_what_was_left_open():
    config = FpsConfig(num_envs=(4,), obs="rgb", render=RenderConfig(detail="coarse"))
    row = {"env_steps_per_s": 1.0, "render_only_frames_per_s": 2.0, "renderer": "warp"}
    assert [entry["name"] for entry in fps.figures(config, "random", row, "NVIDIA H100 80GB HBM3")] == [
        "h100_rgb64x1_warp_env_steps_per_s", "h100_rgb64x1_warp_render_frames_per_s",
    ]  # fmt: skip


@pytest.mark.parametrize(("randomization", "sensing"), [("real", False), ("real+looks", True)])
def test_sensor_effects_belong_to_a_step_where_they_vary(make_env, monkeypatch, randomization, sensing):
    monkeypatch.setattr(fps_loop, "sense", lambda rgb, params, keys: rgb * 0)
    env = make_env(4, randomization)
    renderer = make_renderer(RenderConfig(width=16, height=16, detail="coarse"), env.scene, 4, env.task.randomization)
    loop = fps_loop.Loop(env, 0, renderer)
    key = loop.carry["sensor"]
    loop.run(1)
    assert loop.sensing == sensing
    assert (float(loop.carry["pixels"]) == 0) == sensing
    assert not np.array_equal(loop.carry["sensor"], key)


def test_resets_happen_and_are_counted(record):
    """Each environment starts at some age below 400 and does 400 steps, so it is reset at least once."""
    assert TaskConfig().episode_steps == 400
    assert 32 <= record["rows"][0]["resets"] <= 64


def test_table_shows_the_rows(record):
    lines = fps.table(record["rows"]).splitlines()
    assert len(lines) == 2
    assert f"{record['rows'][0]['env_steps_per_s']:,.0f}" in lines[1]
    assert "env steps/s" in lines[0] and "physics steps/s" in lines[0]


# -- targets and contacts ------------------------------------------------------------------------------------------
def test_poses_put_the_fingertip_where_they_should(make_env, kinematics):
    table = targets.RandomDrags(make_env(4, "nominal")).table
    rng = np.random.default_rng(0)
    radius, azimuth = rng.uniform(0.1, 0.32, 200), rng.uniform(-0.1, 1.7, 200)
    points = kinematics.pan_axis + np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth)], 1)
    for height, above in ((0, 0.016), (1, 0.0)):  # over the sheet; 1 mm below its surface
        poses = jax.vmap(lambda point: table(point, height))(jnp.asarray(points, jnp.float32))  # noqa: B023
        tips = jax.vmap(lambda joints: kinematics.gripper_point(joints, kinematics.fixed_fingertip)[0])(poses[:, :5])
        assert np.abs(np.asarray(tips)[:, :2] - points).max() < 1e-4
        assert np.abs(np.asarray(tips)[:, 2] - kinematics.fingertip_radius - above).max() < 1e-4


def test_jacobian_targets_are_those_of_the_base_policy(make_env, monkeypatch):
    env = make_env(4, "nominal")
    state, chunk = env.reset(3), jnp.arange(24.0).reshape(4, 1, 6)
    seen, asked = env.observe(state), []

    def answer(self, carry, observation, key, reset_mask):
        asked.append((carry, observation, reset_mask))
        return "next", chunk

    monkeypatch.setattr(JacobianPolicy, "chunk", answer)
    carry, target = targets.make_targets("jacobian", env).act("carry", state, seen)
    assert carry == "next" and asked == [("carry", seen, seen.new_episode)]
    np.testing.assert_array_equal(target, chunk[:, 0])


def test_contacts_with_the_sheet_and_with_the_table_are_told_apart(model, joints_at, kinematics):
    def touching(finger, sheet, height=0.0):
        point = [*finger, kinematics.fingertip_radius + height]
        qpos = np.append(joints_at(point), [*sheet, 0.3])[None]
        return count_contacts(model, qpos, np.zeros((1, 9)))[:3]

    assert touching((0.25, 0.15), (0.25, 0.15)) == (1.0, 0.0, 1.0)  # pressed 1 mm into the sheet: not on the table
    assert touching((0.25, 0.15), (0.6, 0.6), -0.0005) == (0.0, 1.0, 0.0)
    assert touching((0.25, 0.15), (0.25, 0.15), 0.02) == (0.0, 0.0, 0.0)


# -- refusals ------------------------------------------------------------------------------------------------------
SHORT = FpsConfig(num_envs=(32,), physics=("native",), steps=3, blocks=1)  # 32, as above: compiled only once
REFUSED = "native, 32 envs: a fingertip is on the sheet in only [0-6]% of the environments"


class Held:
    """Holds one pose for all environments."""

    def __init__(self, pose):
        self.pose = jnp.tile(jnp.asarray(pose, jnp.float32), (32, 1))

    def init(self, key):
        return ()

    def act(self, carry, state, seen):
        return carry, self.pose


def test_an_arm_in_the_air_is_refused(monkeypatch):
    monkeypatch.setattr("bench.fps_loop.make_targets", lambda mode, env: Held(TaskConfig().home))
    with pytest.raises(HealthError, match=REFUSED):
        measure(SHORT, "native", 32)


def test_fingers_on_the_bare_table_are_refused(monkeypatch, joints_at, kinematics):
    """Each presses on the table where hardly a sheet starts: contacts enough, but not with a sheet."""
    beside = joints_at([0.14, -0.13, kinematics.fingertip_radius - 0.004])
    monkeypatch.setattr("bench.fps_loop.make_targets", lambda mode, env: Held(beside))
    with pytest.raises(HealthError, match=REFUSED) as refused:
        measure(dataclasses.replace(SHORT, steps=20), "native", 32)
    assert re.search(r"'table_contacts_per_env': (1\.0|0\.9)", str(refused.value))


def test_the_base_policy_needs_no_contacts(monkeypatch):
    """It is on its way to the sheet for some time."""
    monkeypatch.setattr("bench.fps_loop.make_targets", lambda mode, env: Held(TaskConfig().home))
    row = measure(SHORT, "native", 32, "jacobian")
    assert row["targets"] == "jacobian" and row["touching_sheet"] == 0


@pytest.mark.parametrize("what", ["nan", "overflow"])
def test_bad_physics_is_refused(monkeypatch, what):
    step = NativePhysics.step

    def bad(self, state, fields, ctrl):
        physics = step(self, state, fields, ctrl)
        if what == "nan":
            return physics.replace(qpos=np.where(np.arange(32)[:, None] == 2, np.nan, physics.qpos))
        return physics.replace(overflow=np.int32(np.arange(32) == 2))

    monkeypatch.setattr(NativePhysics, "step", bad)
    with pytest.raises(HealthError, match="native, 32 envs: not a valid measurement"):
        measure(SHORT, "native", 32)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"num_envs": ()}, "num_envs"), ({"num_envs": (64, 0)}, "num_envs"), ({"num_envs": (-1,)}, "num_envs"),
        ({"physics": ("bullet",)}, "physics is 'bullet'.*'native'"), ({"steps": 0}, "steps is 0"),
        ({"blocks": 0}, "blocks 0"), ({"physics": ()}, "physics"), ({"targets": ()}, "targets"),
        ({"targets": ("oracle",)}, "targets is 'oracle'.*'jacobian'"),
        ({"obs": "rgb", "targets": ("random", "jacobian"), "render": RenderConfig("madrona"), "num_envs": (8,)},
         "madrona is built once"),
    ],
)  # fmt: skip
def test_bad_values_are_named(bad, words):
    with pytest.raises(ConfigError, match=words):
        FpsConfig(**bad)
