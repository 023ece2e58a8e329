"""Randomization: presets, files, draws, and a clear error for every bad range."""

import json

import jax
import numpy as np
import pytest

from mjx_so101 import PRESETS, ConfigError, PaperReturnEnv, Randomization, SceneConfig, load_randomization
from mjx_so101.params import FIELDS


def draws(randomization, count=4000):
    return jax.vmap(randomization.sample)(jax.random.split(jax.random.PRNGKey(0), count))


def write(folder, text, name="mine.json"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["nominal", "plain", "real", "wild"])
def test_presets_exist_and_stay_in_range(name):
    randomization = load_randomization(name)
    params = draws(randomization)
    for field, value in vars(params).items():
        low, high = randomization.range(field)
        assert low - 1e-6 <= np.min(value) and np.max(value) <= high + 1e-6, field
        if high > low:
            assert np.ptp(np.asarray(value)) > 0.9 * (high - low), field


@pytest.mark.parametrize("name", list(PRESETS))
def test_friction_of_the_sheet_is_dry_in_every_preset(name, model):
    assert SceneConfig().sheet_friction == "dry"
    sheet = model.joint("paper_x").dofadr[0]
    assert model.dof_frictionloss[sheet] * load_randomization(name).range("sheet_friction_scale")[0] > 0


def test_nominal_randomizes_only_the_start():
    varied = {name for name, (low, high) in PRESETS["nominal"].to_dict()["ranges"].items() if low < high}
    assert varied == {"start_distance", "start_direction", "start_yaw", "start_joint_offset"}


def test_plain_and_real_hold_the_numbers_of_the_design():
    plain, real = PRESETS["plain"], PRESETS["real"]
    physics = ("sheet_mass_scale", "sheet_friction_scale", "sheet_damping_scale", "fingertip_friction", "kp_scale")
    for name in (*physics, "force_limit_scale", "joint_damping_scale"):
        assert plain.range(name) == (0.75, 1.25)
    assert plain.range("action_delay") == (0, 2)
    assert real.range("joint_bias") == (-0.02, 0.02)
    assert real.range("sheet_position_noise") == (0.003, 0.003)
    assert real.range("sheet_yaw_noise") == (0.02, 0.02)
    assert real.range("sensing_latency") == (0, 3)  # 100 ms at 30 Hz
    assert real.range("fingertip_friction") == (0.3, 0.8)


def test_wild_is_nowhere_narrower_than_plain():
    for name in FIELDS:
        (low, high), (wild_low, wild_high) = PRESETS["plain"].range(name), PRESETS["wild"].range(name)
        assert wild_low <= low and high <= wild_high, name


def test_whole_numbers_include_both_ends():
    params = draws(Randomization("mine", {"action_delay": (3, 5), "sensing_latency": (0, 6)}))
    assert set(np.unique(params.action_delay)) == {3, 4, 5}
    assert set(np.unique(params.sensing_latency)) == set(range(7))
    assert params.action_delay.dtype == np.int32


def test_vector_entries_are_drawn_apart():
    bias = np.asarray(draws(PRESETS["real"]).joint_bias)
    assert bias.shape == (4000, 6)
    assert np.abs(np.corrcoef(bias.T) - np.eye(6)).max() < 0.1


def test_unnamed_fields_keep_their_default():
    params = draws(Randomization("mine", {"kp_scale": (0.5, 0.6)}), count=10)
    assert (params.sheet_mass_scale == 1).all() and (params.action_delay == 0).all()
    assert (params.kp_scale < 0.6001).all()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine.json", '{"base": "plain", "action_delay": [1, 4], "kp_scale": [0.9, 0.9]}'),
        ("mine.toml", 'base = "plain"\naction_delay = [1, 4]\nkp_scale = [0.9, 0.9]\n'),
    ],
)
def test_files_change_a_base_preset(tmp_path, name, text):
    loaded = load_randomization(write(tmp_path, text, name))
    assert loaded.name == "mine"
    assert tuple(loaded.range("action_delay")) == (1, 4)
    assert tuple(loaded.range("kp_scale")) == (0.9, 0.9)
    assert loaded.range("sheet_mass_scale") == (0.75, 1.25)


def test_file_without_base_starts_from_nominal(tmp_path):
    loaded = load_randomization(str(write(tmp_path, '{"kp_scale": [0.9, 1.1]}')))
    assert loaded.range("sheet_mass_scale") == (1.0, 1.0)


def test_to_dict_names_every_range(tmp_path):
    record = json.loads(json.dumps(PRESETS["wild"].to_dict()))
    assert record["name"] == "wild"
    assert set(record["ranges"]) == set(FIELDS)
    reloaded = load_randomization(write(tmp_path, json.dumps(record["ranges"])))
    assert reloaded.to_dict()["ranges"] == record["ranges"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kp_scael", [0.9, 1.1]),  # unknown
        ("kp_scale", [1.1, 0.9]),  # inverted
        ("kp_scale", []),
        ("kp_scale", [1.0]),
        ("kp_scale", 1.0),
        ("kp_scale", "ab"),
        ("kp_scale", ["low", "high"]),
        ("kp_scale", [None, 1.0]),
        ("kp_scale", [float("nan"), 1.0]),
        ("kp_scale", [1.0, float("inf")]),
        ("kp_scale", [0.0, 1.0]),  # outside its limits
        ("joint_bias", [-0.5, 0.5]),
        ("action_delay", [0.5, 2]),  # counts
        ("sensing_latency", [0, 7]),
    ],
)
def test_bad_ranges_are_named(tmp_path, field, value):
    with pytest.raises(ConfigError, match=field):
        Randomization("bad", {field: value})
    with pytest.raises(ConfigError, match=field):
        load_randomization(write(tmp_path, json.dumps({field: value})))


def test_a_file_may_pin_a_field_to_its_default(tmp_path):
    text = '{"base": "plain+looks", "top_camera_fovy": [0, 0], "kp_scale": [1.0, 1.0]}'
    loaded = load_randomization(write(tmp_path, text))
    assert loaded.varied(["top_camera_fovy", "kp_scale", "wrist_camera_fovy"]) == ["wrist_camera_fovy"]


def test_unknown_field_suggests_the_near_one():
    with pytest.raises(ConfigError, match="Did you mean 'kp_scale'"):
        Randomization("bad", {"kp_scael": (0.9, 1.1)})


def test_unknown_preset_suggests_the_near_one():
    with pytest.raises(ConfigError, match="Did you mean 'plain'"):
        load_randomization("plane")
    with pytest.raises(ConfigError, match="'wild'"):
        PaperReturnEnv(1, physics="native", randomization="wlid")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("mine.json", '{"kp_scale": [0.9, 1.1]', "mine.json.* JSON"),
        ("mine.toml", "kp_scale = [0.9, 1.1", "mine.toml.* TOML"),
        ("mine.json", "[1, 2]", "mine.json"),
        ("mine.json", '{"base": "plane"}', "Did you mean 'plain'"),
        ("mine.json", '{"base": 3}', "base preset"),
        ("mine.json", "\udcff", "mine.json"),  # not UTF-8
    ],
)
def test_bad_files_are_named(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=expected):
        load_randomization(path)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.json.* does not exist"):
        load_randomization(tmp_path / "gone.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.json"):
        load_randomization(tmp_path / "folder.json")


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ({"start_distance": (0.28, 0.3)}, "start_distance.*unreachable"),
        ({"start_distance": (0.04, 0.3), "start_direction": (0.7, 0.9)}, "start_distance.*unreachable"),
        ({"start_distance": (0.0, 0.1)}, "start_distance.*solved"),
        ({"start_distance": (0.0, 0.0), "start_yaw": (0.0, 0.0)}, "start_distance.*solved"),
    ],
)
def test_unreachable_and_solved_starts_are_refused(ranges, expected):
    randomization = Randomization("mine", {**PRESETS["nominal"].ranges, **ranges})
    with pytest.raises(ConfigError, match=expected):
        PaperReturnEnv(1, physics="native", randomization=randomization)


def test_defaults_alone_make_a_valid_environment():
    PaperReturnEnv(1, physics="native", randomization=Randomization("defaults", {}))
