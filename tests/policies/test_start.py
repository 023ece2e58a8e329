"""Where an episode starts: by number, by the checkpoint's states, or not at all."""

import dataclasses
import json

import numpy as np
import pytest

from mjx_so101 import PaperReturnEnv, TaskConfig
from mjx_so101.errors import ConfigError
from policies.chunked import ChunkedPolicy
from policies.joints import JointMap
from policies.model import ModelOptions
from policies.start import CLEARANCE, middle_of, outside_training, require_start
from train.config import TrainConfig

STATES = (
    np.array([-0.540, -0.470, -1.677, -0.285, -2.849, 0.022]),
    np.array([0.580, 1.588, 1.117, 1.775, -0.235, 0.066]),
)
MEAN = (0.01, 0.47, -0.15, 0.76, -2.11, 0.030)
"""Of the 206 episodes that phospho-app/gr00t-paper_return-7w9itxzsox was trained on."""


class Range:
    """`policies.groot.processor.Range` without torch."""

    def __init__(self, low=STATES[0], high=STATES[1], mean=None):
        self.low, self.high, self.mean, self.extra = tuple(low), tuple(high), mean, ""


class Source:
    """A model of which nothing is asked."""

    name, cameras, horizon, noise_shape, note = "source", ("top",), 16, (1,), ""
    training_range, state_range = None, STATES


# -- what is outside -----------------------------------------------------------------------------------------------
def test_the_task_s_own_pose_is_named_joint_by_joint():
    strange = outside_training(TaskConfig().home, STATES)
    assert [line.split()[0] for line in strange] == ["shoulder_lift", "wrist_roll", "gripper"]
    assert "starts at -1.100 rad, its states were -0.470 to 1.588 (normalised -1.6" in strange[0]
    assert "normalised +2.4" in strange[1] and "normalised -5.2" in strange[2]
    with pytest.raises(ConfigError, match=r"shoulder_lift.*--home checkpoint.*six angles.*--joint-sign.*--any-start"):
        require_start(TaskConfig().home, STATES)


def test_margin_is_a_tenth_of_the_range():
    low, high = np.zeros(6), np.full(6, 2.0)
    assert not outside_training([-0.2, 2.2, 1, 1, 1, 1], (low, high))
    assert len(outside_training([-0.21, 2.21, 1, 1, 1, 1], (low, high))) == 2


def test_a_joint_that_never_moved_is_judged_by_angle():
    still = np.full(6, 0.5)
    assert not outside_training(still + 0.099, (still, still))
    (line,) = outside_training([0.5, 0.5, 0.5, 0.39, 0.5, 0.5], (still, still))
    assert line.startswith("wrist_flex") and "normalised" not in line


def test_a_model_that_tells_no_states_is_not_judged():
    require_start(TaskConfig().home, None)


def test_binding_to_an_environment_refuses_or_notes(make_env):
    env = make_env(1, "nominal", auto_reset=False)
    with pytest.raises(ConfigError, match="unlike what the checkpoint was trained on: shoulder_lift"):
        ChunkedPolicy(Source()).for_env(env)
    allowed = ChunkedPolicy(Source(), any_start=True, size=(32, 32)).for_env(env)
    assert "unlike the training data: shoulder_lift starts" in allowed.note
    assert allowed.for_env(env).note == allowed.note  # it is said once


# -- the middle of the states --------------------------------------------------------------------------------------
def test_mean_then_middle(kinematics):
    np.testing.assert_allclose(middle_of(Range(mean=MEAN), JointMap(), kinematics), MEAN, atol=1e-4)
    middle = (STATES[0] + STATES[1]) / 2
    np.testing.assert_allclose(middle_of(Range(), JointMap(), kinematics), middle, atol=1e-4)
    into_the_table = (0.0, 1.4, 0.9, 0.7, -1.5, 0.03)
    assert kinematics.clearance(into_the_table) < 0
    np.testing.assert_allclose(middle_of(Range(mean=into_the_table), JointMap(), kinematics), middle, atol=1e-4)
    beyond = (*MEAN[:5], 3.0)  # no mean of these states
    np.testing.assert_allclose(middle_of(Range(mean=beyond), JointMap(), kinematics), middle, atol=1e-4)


def test_calibration_applies(kinematics):
    turned = JointMap(sign=(1, 1, 1, 1, -1, 1), offset=(0.1, 0, 0, 0, 0, 0))
    home = middle_of(Range(mean=MEAN), turned, kinematics)
    np.testing.assert_allclose(home, [MEAN[0] - 0.1, *MEAN[1:4], -MEAN[4], MEAN[5]], atol=1e-4)


def test_no_pose_clear_of_the_table(kinematics):
    low, high = np.array([0, 1.3, 0.8, 0.6, -1.6, 0.0]), np.array([0, 1.5, 1.0, 0.8, -1.4, 0.1])
    with pytest.raises(ConfigError, match=r"10 mm clear of the table: the middle of the range.*fingertip at -\d+ mm"):
        middle_of(Range(low, high), JointMap(), kinematics)


def test_states_beyond_the_joint_limits(kinematics):
    low, high = np.array([-0.5, 2.5, -1, 0, 0, 0]), np.array([0.5, 3.5, 1, 1, 1, 1])
    with pytest.raises(ConfigError, match=r"joint limits of this arm shoulder_lift.*--joint-sign|clear of the table"):
        middle_of(Range(low, high), JointMap(), kinematics)


def test_clearance_is_that_of_mujoco(model, kinematics):
    import mujoco

    data = mujoco.MjData(model)
    for pose in (TaskConfig().home, MEAN, (0.3, 0.2, 0.1, 0.9, 1.0, 0.8)):
        data.qpos[:6] = pose
        mujoco.mj_forward(model, data)
        lowest = min(data.geom(name).xpos[2] for name in ("fixed_fingertip", "moving_fingertip"))
        assert kinematics.clearance(pose) == pytest.approx(lowest - kinematics.fingertip_radius, abs=1e-5)
    assert kinematics.clearance(MEAN) > CLEARANCE


# -- as a setting --------------------------------------------------------------------------------------------------
def test_home_of_a_run_is_that_of_its_environments():
    config = TrainConfig(home=MEAN, physics="native")
    assert config.task_config(training=False).home == MEAN
    env = config.environment(2, training=False)
    assert env.describe()["home"] == list(MEAN)
    start = np.asarray(env.reset(0).physics.qpos[:, :6])
    assert np.abs(start - np.array(MEAN)).max() <= 0.03 + 1e-6
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.home == MEAN
    assert TrainConfig(physics="native").environment(1, training=True).describe()["home"] == list(TaskConfig().home)


@pytest.mark.parametrize(
    ("home", "message"),
    [
        ("chekpoint", "home is 'chekpoint'; give 'task', 'checkpoint' or six angles"),
        ((0.1,), "one finite angle"),
        ((0.0, -1.1, 0.8, 1.45, 1.6, float("inf")), "one finite angle"),
    ],
)
def test_bad_home(home, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(home=home)


def test_home_of_a_checkpoint_needs_one():
    config = TrainConfig(base="remote", home="checkpoint", model=ModelOptions(url="tcp://127.0.0.1:5555"))
    for ask in (config.resolve, lambda: config.task_config(training=False)):
        with pytest.raises(ConfigError, match=r"--home checkpoint needs --checkpoint.*six angles"):
            ask()


def test_home_in_the_table():
    with pytest.raises(ConfigError, match=r"fingertip \d+ mm below the table; raise the arm"):
        PaperReturnEnv(1, "native", task=TaskConfig(home=(0.0, 1.4, 0.9, 0.7, -1.5, 0.03)))
    with pytest.raises(ConfigError, match=r"home of wrist_flex is 3\.0 rad, outside its limits"):
        PaperReturnEnv(1, "native", task=TaskConfig(home=(0.0, -1.1, 0.8, 3.0, 1.6, -0.07)))


def test_home_of_a_checkpoint_is_written_out(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    (tmp_path / "experiment_cfg").mkdir()
    (tmp_path / "config.json").write_text("{}")
    metadata = tmp_path / "experiment_cfg" / "metadata.json"

    def write(mean):
        ends = {"min": STATES[0].tolist(), "max": STATES[1].tolist()}
        statistics = {"state": {"arm_0": {**ends, "mean": list(mean)}}, "action": {"arm_0": ends}}
        document = {"new_embodiment": {"statistics": statistics, "modalities": {"video": {"image_cam_0": {}}}}}
        metadata.write_text(json.dumps(document))

    write(MEAN)
    options = ModelOptions(checkpoint=str(tmp_path))
    config = TrainConfig(base="jacobian", home="checkpoint", model=options).resolve()
    np.testing.assert_allclose(config.home, MEAN, atol=1e-4)
    write((*MEAN[:4], -1.5, MEAN[5]))  # the run keeps what it began with
    assert config.resolve().home == config.home
    turned = dataclasses.replace(options, joint_offset=(0.0, 0.0, 0.0, 0.0, 0.1, 0.0))
    assert TrainConfig(base="jacobian", home="checkpoint", model=turned).resolve().home[4] == pytest.approx(-1.6)
