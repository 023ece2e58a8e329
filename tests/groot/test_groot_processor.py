"""Statistics, joints, images and the prompt: fed as in training, or refused."""

import copy
import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from mjx_so101.errors import ConfigError  # noqa: E402
from policies.groot.processor import Metadata, Range, Scaler, prepare_images  # noqa: E402
from policies.groot.prompt import IMAGE_TOKEN, build_prompt, instruction_ids  # noqa: E402
from policies.joints import JointMap  # noqa: E402

LOW, HIGH = [-1.0, -1, -2, -1, -3, 0.0], [1.0, 1, 2, 1, 1, 0.5]
GREY_LEVEL = 2.01 / 255  # truncation may cost one level, as it does in the reference
TWO = ("image_cam_0", "image_cam_1")


def document(state=None):
    one = {"arm_0": {"min": LOW, "max": HIGH}}
    return {
        "new_embodiment": {
            "statistics": {"state": copy.deepcopy(one) if state is None else state, "action": one},
            "modalities": {"video": {"image_cam_0": {}, "image_cam_1": {}}},
        }
    }


def test_one_key_of_any_name():
    for key in ("arm_0", "action_space", "single_arm"):
        metadata = Metadata.from_json(document({key: {"min": LOW, "max": HIGH}}), "new_embodiment")
        assert metadata.state == Range(tuple(LOW), tuple(HIGH))
    assert metadata.cameras == TWO


@pytest.mark.parametrize("order", [("single_arm", "gripper"), ("gripper", "single_arm")])
def test_gripper_comes_last_in_either_file_order(order):
    groups = {"single_arm": {"min": LOW[:5], "max": HIGH[:5]}, "gripper": {"min": LOW[5:], "max": HIGH[5:]}}
    metadata = Metadata.from_json(document({key: groups[key] for key in order}), "new_embodiment")
    assert metadata.state == Range(tuple(LOW), tuple(HIGH))


def six_and_gripper(sixth=(LOW[5], HIGH[5]), **more):
    """Statistics of a `single_arm` of six beside `gripper`."""
    arm = {"min": [*LOW[:5], sixth[0]], "max": [*HIGH[:5], sixth[1]], **more}
    return {"single_arm": arm, "gripper": {"min": LOW[5:], "max": HIGH[5:]}}


@pytest.mark.parametrize(("sixth", "extra"), [((LOW[5], HIGH[5]), "gripper"), ((0, 100), "middle")])
def test_six_of_single_arm_beside_the_gripper(sixth, extra):
    """The sixth is the gripper a first time, or something else, which is shown as its middle; it is never executed."""
    states = Metadata.from_json(document(six_and_gripper(sixth)), "new_embodiment").state
    assert states == Range(tuple(LOW), tuple(HIGH), extra=extra)
    scaler = Scaler(states, JointMap(), torch.device("cpu"))
    joints = torch.rand(4, 6)
    plain = Scaler(Range(tuple(LOW), tuple(HIGH)), JointMap(), torch.device("cpu")).normalise(joints)
    seven = scaler.normalise(joints)
    assert seven.shape == (4, 7) == (4, scaler.size)
    assert torch.equal(seven[:, [0, 1, 2, 3, 4, 6]], plain)
    assert torch.equal(seven[:, 5], plain[:, 5] if extra == "gripper" else torch.zeros(4))
    seven[:, 5] = 55.0  # what the model makes of it is not executed
    assert torch.allclose(scaler.restore(seven), joints, atol=1e-6)
    assert torch.allclose(scaler.restore(torch.cat([seven, torch.rand(4, 25)], 1)), joints, atol=1e-6)


def test_mean_where_the_file_tells_it():
    mean = [0.1, 0.2, 0.3, 0.4, 0.5, 0.25]
    read = Metadata.from_json(document({"arm_0": {"min": LOW, "max": HIGH, "mean": mean}}), "new_embodiment")
    assert read.state.mean == tuple(mean)
    split = six_and_gripper(mean=[*mean[:5], 9.0])
    assert Metadata.from_json(document(split), "new_embodiment").state.mean is None  # the gripper's is missing
    split["gripper"]["mean"] = [0.25]
    assert Metadata.from_json(document(split), "new_embodiment").state.mean == tuple(mean)
    for wrong in ("much", [0.1], [float("nan")] * 6, ["a"] * 6):
        odd = {"arm_0": {"min": LOW, "max": HIGH, "mean": wrong}}
        assert Metadata.from_json(document(odd), "new_embodiment").state.mean is None


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"arm_0": {"min": LOW[:5], "max": HIGH[:5]}}, "5 min and 5 max; 6"),
        ({"arm_0": {"min": LOW, "max": HIGH + [1.0]}}, "6 min and 7 max"),
        ({"arm_0": {"max": HIGH}}, "min is None"),
        ({"arm_0": [LOW, HIGH]}, "arm_0.min is None"),
        ({"arm_0": {"min": [], "max": HIGH}}, r"min is \[\]; a list of finite numbers"),
        ({"arm_0": {"min": ["0"] * 6, "max": HIGH}}, "a list of finite numbers"),
        ({"arm_0": {"min": [*LOW[:3], 1.5, *LOW[4:]], "max": HIGH}}, "min above max for joint 3"),
        ({}, "no new_embodiment.statistics.state"),
        (
            {
                "single_arm": {"min": LOW[:5], "max": HIGH[:5]},
                "gripper": {"min": LOW[5:], "max": HIGH[5:]},
                "base": {"min": [0.0], "max": [1.0]},
            },
            "keys single_arm, gripper, base",
        ),
        ({"arm_0": {"min": [float("nan")] * 6, "max": HIGH}}, "finite"),
        ({"arm_0": {"min": HIGH, "max": LOW}}, "min above max"),
        ({"arm_0": {"min": LOW, "max": [*HIGH[:5], 90.0]}}, "statistics.state reaches 90.*not in radians"),
        ({"arm_0": {"min": [-10.1, *LOW[1:]], "max": HIGH}}, "reaches 10.1.*not in radians"),
        ({"left": {"min": LOW[:3], "max": HIGH[:3]}, "right": {"min": LOW[3:], "max": HIGH[3:]}}, "left, right"),
        ({"single_arm": {"min": LOW[:4], "max": HIGH[:4]}, "gripper": {"min": LOW[4:], "max": HIGH[4:]}}, "5 joints"),
        ({"single_arm": {"min": LOW + [0], "max": HIGH + [0]}, "gripper": {"min": [0], "max": [0]}}, "8 min and 8 max"),
        ({"single_arm": {"min": LOW, "max": HIGH}, "gripper": {"min": [0, 0], "max": [1, 1]}}, "8 min and 8 max"),
        ({"single_arm": {"min": LOW, "max": HIGH}, "gripper": {"min": [0], "max": [90]}}, "reaches 90.*not in radians"),
    ],
)
def test_wrong_statistics(state, message):
    with pytest.raises(ConfigError, match=message):
        Metadata.from_json(document(state), "new_embodiment")


def test_action_statistics_in_degrees():
    wrong = document()
    wrong["new_embodiment"]["statistics"]["action"] = {"arm_0": {"min": LOW, "max": [57.3] * 6}}
    with pytest.raises(ConfigError, match=r"statistics\.action reaches 57\.3.*not in radians"):
        Metadata.from_json(wrong, "new_embodiment")


def test_ten_radians_are_still_radians():
    statistics = {"arm_0": {"min": [-10.0] * 6, "max": [10.0] * 6}}
    assert Metadata.from_json(document(statistics), "new_embodiment").state.high == (10.0,) * 6


def test_joint_that_stands_still_in_the_data_is_no_error():
    statistics = {"arm_0": {"min": LOW, "max": [*HIGH[:5], LOW[5]]}}
    assert Metadata.from_json(document(statistics), "new_embodiment").state.high[5] == LOW[5]


def test_state_and_action_have_statistics_of_their_own():
    both = document({"arm_0": {"min": LOW, "max": [0.5] * 6}})
    metadata = Metadata.from_json(both, "new_embodiment")
    assert (metadata.embodiment, metadata.state.high, metadata.action.high) == (
        "new_embodiment",
        (0.5,) * 6,
        tuple(HIGH),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):  # every policy of a checkpoint reads the same object
        metadata.state.high = tuple(HIGH)
    with pytest.raises(dataclasses.FrozenInstanceError):
        metadata.state = metadata.action


@pytest.mark.parametrize("relative", ["single_arm", "gripper"])
def test_relative_actions(relative):
    wrong = document()
    groups = {name: {"absolute": name != relative} for name in ("single_arm", "gripper")}
    wrong["new_embodiment"]["modalities"]["action"] = groups
    with pytest.raises(ConfigError, match=f"modalities.action.{relative} is not absolute; only absolute joint targets"):
        Metadata.from_json(wrong, "new_embodiment")
    groups[relative]["absolute"] = True
    assert Metadata.from_json(wrong, "new_embodiment").cameras == TWO


@pytest.mark.parametrize("path", ["statistics", "statistics.action", "modalities"])
def test_missing_statistics(path):
    spoiled = document()
    part = spoiled["new_embodiment"]
    *parents, last = path.split(".")
    for key in parents:
        part = part[key]
    del part[last]
    with pytest.raises(ConfigError, match=f"no new_embodiment.{path}"):
        Metadata.from_json(spoiled, "new_embodiment")


def test_unknown_embodiment():
    with pytest.raises(ConfigError, match="has 'new_embodiment'"):
        Metadata.from_json(document(), "gr1")
    with pytest.raises(ConfigError, match="known are"):
        Metadata.from_json({"mine": {}}, "mine")


def scaler(joint_map=None, high=HIGH):
    return Scaler(Range(tuple(LOW), tuple(high)), joint_map or JointMap(), torch.device("cpu"))


def test_normalise_and_restore():
    ends = torch.tensor([LOW, HIGH])
    assert torch.allclose(scaler().normalise(ends), torch.tensor([[-1.0] * 6, [1.0] * 6]))
    joints = torch.rand(4, 6)
    assert torch.allclose(scaler().restore(scaler().normalise(joints)), joints, atol=1e-6)
    outside = torch.tensor(HIGH) + 1
    assert (scaler().normalise(outside) > 1).all()  # not clipped


def test_joint_that_never_moved_is_zero():
    still = scaler(high=[*HIGH[:5], LOW[5]])
    assert still.normalise(torch.ones(1, 6))[0, 5] == 0
    assert still.restore(torch.ones(1, 6))[0, 5] == LOW[5]


def test_joint_map_turns_and_shifts():
    mapped = scaler(JointMap(sign=(1, 1, 1, 1, 1, -1), offset=(0.5, 0, 0, 0, 0, 0.2)))
    joints = torch.tensor([[0.1, 0, 0, 0, 0, -0.1]])
    data = torch.tensor([[0.6, 0, 0, 0, 0, 0.3]])
    assert torch.allclose(mapped.normalise(joints), scaler().normalise(data))
    assert torch.allclose(mapped.restore(mapped.normalise(joints)), joints, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"sign": (1, 1, 1, 1, 1, 2)}, {"sign": (1, 1)}, {"offset": (float("inf"),) * 6}])
def test_wrong_joint_map(wrong):
    with pytest.raises(ConfigError, match="joint_map"):
        JointMap(**wrong)


def test_images_are_cropped_squeezed_and_scaled():
    images = torch.full((1, 1, 240, 320, 3), 128, dtype=torch.uint8)
    images[:, :, :5] = 0  # above the crop: row 6 is the first inside
    images[:, :, :, :7] = 0
    pixels = prepare_images(images, 224)
    assert pixels.shape == (1, 1, 3, 224, 224)
    assert torch.allclose(pixels, torch.tensor((128 / 255 - 0.5) / 0.5), atol=GREY_LEVEL)


def test_images_keep_their_colour_and_place():
    images = torch.zeros(2, 2, 40, 60, 3, dtype=torch.uint8)
    images[1, 0, :, 30:, 0] = 255  # right half red, of the second environment's first camera
    pixels = prepare_images(images, 28)
    assert (pixels[1, 0, 0, :, 15:] > 1 - GREY_LEVEL).all() and (pixels[1, 0, 0, :, :13] == -1).all()
    assert (pixels[1, 0, 1:] == -1).all() and (pixels[0] == -1).all() and (pixels[:, 1] == -1).all()


def test_every_grey_level_is_exact_where_nothing_is_resized():
    """Crop of 40 pixels is 38: (x / 255 - 0.5) / 0.5 of whole levels, of which truncation may take one."""
    levels = torch.arange(256, dtype=torch.uint8)
    images = levels[:, None, None, None, None].expand(256, 1, 40, 40, 3)
    pixels = prepare_images(images, 38)
    seen = (pixels[:, 0, 0, 0, 0] * 0.5 + 0.5) * 255
    lost = levels - seen
    assert pixels.amin() == -1 and (pixels == pixels[:, :, :1, :1, :1]).all()
    assert torch.allclose(lost, lost.round(), atol=1e-4) and lost.min() > -1e-4 and lost.max() < 1 + 1e-4
    assert (lost < 0.5).float().mean() > 0.8


def test_crop_is_centred_in_both_directions():
    """A picture that brightens downwards and to the right keeps its middle in the middle."""
    ramp = torch.arange(100, dtype=torch.uint8)
    images = torch.zeros(1, 1, 100, 100, 3, dtype=torch.uint8)
    images[..., 0], images[..., 1] = ramp[:, None], ramp[None]
    rows, columns = (((prepare_images(images, 95)[0, 0, c] * 0.5 + 0.5) * 255).round() for c in (0, 1))
    expected = torch.arange(2.0, 97.0)  # of 5 pixels 2 are cut off in front, 3 behind
    assert (rows[:, 50] - expected).abs().max() <= 1 and (columns[50] - expected).abs().max() <= 1
    assert (rows[:, 50] - expected).abs().mean() < 0.2 and (columns[50] - expected).abs().mean() < 0.2


def test_pictures_are_made_smaller_with_antialiasing():
    """Stripes of one pixel become grey, as in the training's resize, not stripes of another width."""
    images = torch.zeros(1, 1, 240, 320, 3, dtype=torch.uint8)
    images[:, :, :, ::2] = 200
    pixels = prepare_images(images, 40)
    assert torch.allclose(pixels, torch.tensor((100 / 255 - 0.5) / 0.5), atol=0.1)


def test_prompt_of_one_camera():
    prompt = build_prompt(1, 256, instruction_ids(None, None, "training"))
    assert len(prompt) == len(prompt.ids) == 14 + 6 + 256 + 1 + 1 + 5
    assert prompt.ids[20:276] == [IMAGE_TOKEN] * 256
    assert prompt.ids[277] == 4064


def test_instruction_forms():
    assert instruction_ids("None", None, "evaluation") == (677, 4064, 660)
    assert instruction_ids("Perform the default behavior.", None, "training") == (46951, 279, 1638, 7709, 13)
    assert instruction_ids(None, [1, 2, 3], "training") == (1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Fold the sheet.", None, "training"), "Give tokenizer"),
        (("None", None, "both"), "instruction_form"),
        (("None", [4064], "training"), "give one"),
        ((None, [], "training"), "at least one"),
        ((None, [200000], "training"), "0 to 151679"),
        ((None, [IMAGE_TOKEN], "training"), "image token"),
    ],
)
def test_wrong_instructions(arguments, message):
    with pytest.raises(ConfigError, match=message):
        instruction_ids(*arguments)
