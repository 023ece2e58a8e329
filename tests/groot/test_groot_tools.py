"""`so101 groot`: make-checkpoint, inspect and smoke; and the page that explains them."""

import json
import re
import shlex
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import imageio.v2 as imageio  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from spoil import edit_json, rewrite  # noqa: E402

from mjx_so101.errors import CheckpointError, ConfigError, HealthError  # noqa: E402
from policies.groot import Gr00tPolicy  # noqa: E402
from policies.groot.config import ModelConfig  # noqa: E402
from policies.groot.layout import EMBEDDING, OUTPUT_HEAD, embedding_shapes, required_shapes  # noqa: E402
from policies.groot.make_checkpoint import _config  # noqa: E402
from train import cli  # noqa: E402
from train.groot_inspect import InspectFlags  # noqa: E402
from train.groot_smoke import SmokeFlags  # noqa: E402
from train.groot_tools import COMMANDS, MakeFlags, main, parse  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "policies" / "groot" / "README.md"
KINDS = {"make-checkpoint": MakeFlags, "inspect": InspectFlags, "smoke": SmokeFlags}


@pytest.fixture
def run(capsys):
    """Function that runs `so101 groot` and gives what it printed."""

    def call(*arguments) -> str:
        capsys.readouterr()
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


@pytest.fixture
def opengl():
    if not (find_library("EGL") or find_library("OSMesa")):
        pytest.skip("no OpenGL library that works without a display")


@pytest.fixture
def inspect_json(run):
    return lambda folder: json.loads(run("inspect", folder, "--json"))


# -- the command ---------------------------------------------------------------------------------------------------
def test_help_lists_the_subcommands(run):
    assert all(name in run() and name in run("--help") for name in COMMANDS)


def test_unknown_subcommand(run):
    with pytest.raises(ConfigError, match=r"'inspekt'.*'make-checkpoint', 'inspect', 'smoke'.*Did you mean 'inspect'"):
        run("inspekt")


@pytest.mark.parametrize(
    "line", ["make-checkpoint", "inspect", "smoke", "inspect here --yaml", "smoke here --num-envs two"]
)
def test_wrong_flags(line):
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2


WITHOUT = """
import sys

class Absent:  # None in sys.modules would do, but tyro takes that for an imported torch
    def find_spec(self, name, *_):
        if name == "{package}":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from mjx_so101.errors import ConfigError
from train.groot_tools import main
for line in ("make-checkpoint {folder}/new", "inspect {folder}", "smoke {folder}"):
    try:
        main(line.split())
    except ConfigError as error:
        assert "pip install -e '.[groot]'" in str(error) and "{package}" in str(error), error
    else:
        raise AssertionError(line)
"""


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_without_the_extra(package, tmp_path):
    code = WITHOUT.format(package=package, folder=tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


# -- make-checkpoint -----------------------------------------------------------------------------------------------
def test_make_checkpoint(run, tmp_path):
    printed = run("make-checkpoint", tmp_path / "new", "--seed", 3, "--cameras", 1, "--layout", "single_arm")
    size = sum(file.stat().st_size for file in (tmp_path / "new").rglob("*") if file.is_file())
    assert f"{tmp_path / 'new'}: {size:,} bytes in " in printed and "random" in printed and "seed 3" in printed
    assert Gr00tPolicy.from_checkpoint(tmp_path / "new").cameras == ("top",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--size huge", "'huge'.*'tiny', 'full'"), ("--layout arms", "'arm_0', 'single_arm'"), ("--cameras 0", "1 to 9")],
)
def test_make_checkpoint_refuses(run, tmp_path, flags, message):
    with pytest.raises(ConfigError, match=message):
        run("make-checkpoint", tmp_path / "new", *flags.split())
    assert not (tmp_path / "new").exists()


def test_make_checkpoint_keeps_what_is_there(run, tmp_path, tiny):
    with pytest.raises(ConfigError, match="not empty"):
        run("make-checkpoint", tiny)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file is a file; give a new folder"):
        run("make-checkpoint", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# -- inspect -------------------------------------------------------------------------------------------------------
def test_inspect_tells_people(run, tiny):
    printed = run("inspect", tiny)
    for words in (
        "gr00t_n1_5",
        "in one file, without LeRobot's prefix",
        "token embedding stored as language_model.model.embed_tokens.weight",
        "3 layers, d 64, ff 128, 4 query and 2 key heads x 16",
        "16 targets a chunk, 4 denoising steps",
        "embodiments: new_embodiment",
        "arm_0",
        "camera 0: image_cam_0 (top), 320 x 240, 30 fps",
        "camera 1: image_cam_1 (wrist)",
        "training form, 546 tokens",
        "evaluation form, 548 tokens",
        "<256 image tokens></img>['None']<|im_end|>",
    ):
        assert words in printed
    assert re.search(r"gripper +0\.022 to +0\.066 +-0\.014 to +0\.072", printed)
    assert "unknown" not in printed and "not rad" not in printed


def test_inspect_json_counts_what_is_stored(inspect_json, tiny):
    record, tensors = inspect_json(tiny), load_file(tiny / "model.safetensors")
    assert record["parameters"] == sum(x.numel() for x in tensors.values())
    assert record["bytes"] == (tiny / "model.safetensors").stat().st_size
    assert sum(part["bytes"] for part in record["parts"].values()) == sum(x.nbytes for x in tensors.values())
    assert record["parts"]["vision"]["dtypes"].keys() == {"BF16"} and record["parts"]["DiT"]["dtypes"].keys() == {"F32"}
    assert record["parts"]["unknown"]["parameters"] == 0 and record["problems"] == []
    policy = Gr00tPolicy.from_checkpoint(tiny)
    assert record["prompt"]["training"]["tokens"] == len(policy.prompt)
    assert tuple(record["statistics"]["action"]["max"]) == policy.metadata.action.high
    assert [camera["view"] for camera in record["cameras"]] == list(policy.cameras)


def test_inspect_names_each_storage(run, inspect_json, copy_of_tiny):
    def both_tables_and_prefix(tensors):
        tensors[OUTPUT_HEAD] = tensors[EMBEDDING].clone()
        return {f"_groot_model.{name}": x for name, x in tensors.items()}

    rewrite(copy_of_tiny, both_tables_and_prefix)
    printed = run("inspect", copy_of_tiny)
    assert "with LeRobot's prefix" in printed and "the same table twice" in printed
    assert len(inspect_json(copy_of_tiny)["token_embedding_stored_as"]) == 2


def test_inspect_shards_and_split_joints(run, tmp_path):
    from policies.groot.make_checkpoint import make_checkpoint

    printed = run("inspect", make_checkpoint(tmp_path / "new", layout="single_arm", shard_bytes=2**20))
    assert re.search(r"bytes in [3-9]\d? shards", printed) and "single_arm + gripper" in printed
    printed = run("inspect", make_checkpoint(tmp_path / "seven", layout="single_arm_6"))
    assert "single_arm[:5] + gripper" in printed and "problem" not in printed


def test_inspect_full_size_reads_no_weights(inspect_json, copy_of_tiny):
    """A header of the 3B over a file with a hole of 4.8 GB: reading it would take minutes and the memory."""
    document = _config("full")
    config = ModelConfig.from_json(document)
    shapes = {**required_shapes(config), EMBEDDING: embedding_shapes(config)[EMBEDDING]}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (copy_of_tiny / "model.safetensors").unlink()
    with (copy_of_tiny / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (copy_of_tiny / "config.json").write_text(json.dumps(document))
    parts = inspect_json(copy_of_tiny)["parts"]
    millions = {name: round(part["parameters"] / 1e6, 1) for name, part in parts.items()}
    # NVIDIA's 3B, from the table of parameters in its checkpoint
    assert [millions[part] for part in ("connector", "token attention", "DiT")] == [2.4, 201.4, 550.4]


def test_inspect_prints_before_it_refuses(copy_of_tiny, capsys):
    def spoil(tensors):
        del tensors["action_head.vlln.bias"]
        return {**tensors, "action_head.mask_token": torch.zeros(3)}

    rewrite(copy_of_tiny, spoil)
    with pytest.raises(ConfigError, match=r"(?s)1 missing.*vlln\.bias.*1 unexpected.*mask_token"):
        main(["inspect", str(copy_of_tiny)])
    printed = capsys.readouterr().out
    assert "camera 1: image_cam_1 (wrist)" in printed and "DiT" in printed
    assert re.search(r"unknown +3 +12 +F32", printed)
    with pytest.raises(ConfigError):
        main(["inspect", str(copy_of_tiny), "--json"])
    assert "vlln.bias" in json.loads(capsys.readouterr().out)["problems"][0]


def test_inspect_goes_on_without_weights_or_metadata(copy_of_tiny, capsys):
    weights = copy_of_tiny / "model.safetensors"
    half = weights.read_bytes()[: weights.stat().st_size // 2]
    weights.unlink()
    weights.write_bytes(half)
    with pytest.raises(CheckpointError, match="truncated"):
        main(["inspect", str(copy_of_tiny)])
    printed = capsys.readouterr().out
    assert "camera 0" in printed and "4 layers, d 48" in printed and "?" in printed
    (copy_of_tiny / "experiment_cfg" / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)metadata\.json is missing.*truncated"):
        main(["inspect", str(copy_of_tiny)])
    assert "4 denoising steps" in capsys.readouterr().out


def spoil_statistics(document):
    document["new_embodiment"]["statistics"]["state"]["arm_0"]["max"][0] = 90.0


def spoil_actions(document):
    document["new_embodiment"]["modalities"]["action"]["arm_0"]["absolute"] = False


@pytest.mark.parametrize(
    ("spoil", "message", "unit"),
    [(spoil_statistics, r"state reaches 90.*not in radians", "not rad"), (spoil_actions, "not absolute", "rad")],
)
def test_inspect_prints_refused_metadata(copy_of_tiny, capsys, spoil, message, unit):
    edit_json(copy_of_tiny / "experiment_cfg" / "metadata.json", spoil)
    with pytest.raises(ConfigError, match=message):
        main(["inspect", str(copy_of_tiny)])
    printed = capsys.readouterr().out
    assert re.search(rf"training data +state, {unit} +action, rad", printed)
    assert re.search(r"gripper +0\.022 to +0\.066 +-0\.014 to +0\.072", printed)
    assert "embodiments: new_embodiment" in printed and "camera 1: image_cam_1 (wrist)" in printed
    assert "training form, 546 tokens" in printed and "in one file" in printed
    with pytest.raises(SystemExit) as stopped:
        cli.main(["groot", "inspect", str(copy_of_tiny), "--json"])
    streams = capsys.readouterr()
    assert stopped.value.code == 2 and re.search(message, streams.err)
    assert re.search(message, *json.loads(streams.out)["problems"])


@pytest.mark.parametrize("entry", [None, [], {}, {"statistics": {"state": 1}}, {"modalities": {"video": {"wrist": 0}}}])
def test_inspect_survives_damaged_metadata(copy_of_tiny, capsys, entry):
    path = copy_of_tiny / "experiment_cfg" / "metadata.json"
    path.write_text(json.dumps({"new_embodiment": entry, "gr1": {}}))
    with pytest.raises(ConfigError, match=r"metadata\.json"):
        main(["inspect", str(copy_of_tiny)])
    printed = capsys.readouterr().out
    assert "embodiments: new_embodiment, gr1" in printed and "in one file" in printed and "training data" not in printed
    assert ("camera 0: wrist (wrist), size unknown" in printed) == bool(entry and "modalities" in entry)


def test_inspect_of_cameras_whose_view_is_not_told(run, copy_of_tiny):
    def change(document):
        document["new_embodiment"]["modalities"]["video"] = {
            "front": {},
            "wrist": {"resolution": [640, 480], "fps": 30},
        }

    edit_json(copy_of_tiny / "experiment_cfg" / "metadata.json", change)
    printed = run("inspect", copy_of_tiny)
    assert "camera 0: front (its name does not tell the view" in printed and "frame rate unknown" in printed
    assert "camera 1: wrist (wrist), 640 x 480, 30 fps" in printed


def test_inspect_of_a_lone_adapter(copy_of_tiny, capsys):
    (copy_of_tiny / "model.safetensors").rename(copy_of_tiny / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"LoRA adapter \(adapter_model\.safetensors\) alone; merge it"):
        main(["inspect", str(copy_of_tiny)])
    assert "camera 0" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "smoke"])
def test_not_a_checkpoint(run, command, tmp_path, copy_of_tiny):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        run(command, tmp_path / "empty")
    with pytest.raises(ConfigError, match="no folder here"):
        run(command, tmp_path / "absent")
    edit_json(copy_of_tiny / "config.json", lambda document: document.update(model_type="Gr00tN1d6"))
    with pytest.raises(ConfigError, match=r"N1\.6"):
        run(command, copy_of_tiny)


def test_unknown_embodiment(run, tiny):
    with pytest.raises(ConfigError, match=r"'gr1'.*'new_embodiment'"):
        run("inspect", tiny, "--embodiment", "gr1")


# -- smoke ---------------------------------------------------------------------------------------------------------
def test_smoke(run, tiny, tmp_path, opengl):
    printed = run("smoke", tiny, "--device", "cpu", "--home", "checkpoint", "--out", tmp_path / "pictures")
    assert "random weights: the targets mean nothing" in printed
    with pytest.raises(ConfigError, match="pictures is not empty; give another --out"):
        run("smoke", tiny, "--out", tmp_path / "pictures")
    for words in (
        "in float32 on cpu",
        "cameras top, wrist, uint8 [2, 2, 240, 320, 3]",
        "state [2, 6], noise [2, 16, 32] to targets float32 [2, 16, 6]",
        "first call",
        "second call",
        "memory: process",
        "finite: yes",
        "start pose (rad): 0.020, 0.559, -0.280, 0.745, -1.542, 0.044",
    ):
        assert words in printed
    assert re.search(r"gripper +deg.* -0\.8 to +4\.1 +-10\.0 to +100\.0", printed)
    assert re.search(r"gripper +rad.* -0\.014 to +0\.072 +-0\.175 to +1\.745", printed)
    assert "unlike training" not in printed
    drawn = imageio.imread(tmp_path / "pictures" / "cameras.png")
    seen = imageio.imread(tmp_path / "pictures" / "model_input.png")
    assert drawn.shape[0] >= 240 and drawn.shape[1] >= 1280 and seen.shape[0] >= 224
    assert drawn[:240, :320].std() > 5 and seen[:224, :224].std() > 5


SMALL = ("--device", "cpu", "--num-envs", 1, "--base-width", 64, "--base-height", 48)


def test_smoke_with_another_calibration(run, tiny, capsys, opengl):
    calibration = ["--joint-sign", "1", "1", "1", "1", "1", "-1", "--joint-offset", "0", "0.7", "0", "0", "-3", "0"]
    printed = run("smoke", tiny, *SMALL, *calibration, "--any-start")
    assert "uint8 [1, 2, 48, 64, 3]" in printed
    assert re.search(r"gripper +rad.* -0\.072 to +0\.014 ", printed)  # the training range, turned round
    assert re.search(r"wrist_roll +rad.* 0\.140 to +2\.774 ", printed)
    assert "shoulder_lift starts" not in printed and "wrist_roll starts" not in printed


def test_smoke_refuses_a_start_pose_that_was_never_seen(run, tiny, capsys, opengl):
    """After it has said all it found."""
    with pytest.raises(ConfigError, match=r"unlike what the checkpoint was trained on.*gripper.*--home checkpoint"):
        run("smoke", tiny, *SMALL)
    printed = capsys.readouterr().out
    assert "finite: yes" in printed and "unlike training: shoulder_lift starts at -1.100 rad" in printed
    pose = ("0", "0.5", "-0.2", "0.8", "-1.5", "0.04")
    assert "start pose (rad): 0.000, 0.500" in run("smoke", tiny, *SMALL, "--home", *pose)


def test_smoke_in_bfloat16_with_named_views(run, copy_of_tiny, opengl):
    def change(document):
        document["new_embodiment"]["modalities"]["video"] = {"front": {}, "wrist": {}}

    edit_json(copy_of_tiny / "experiment_cfg" / "metadata.json", change)
    with pytest.raises(ConfigError, match=r"no camera 'front'; it has top, wrist.*--camera-map KEY=top"):
        run("smoke", copy_of_tiny, "--device", "cpu")
    options = ("--device", "cpu", "--dtype", "bfloat16", "--num-envs", 1, "--home", "checkpoint")
    printed = run("smoke", copy_of_tiny, *options, "--camera-map", "front=top", "wrist=wrist")
    assert "in bfloat16 on cpu" in printed and "finite: yes" in printed


def test_smoke_reports_targets_that_are_not_finite(copy_of_tiny, capsys, opengl):
    def spoil(tensors):
        tensors["action_head.action_decoder.layer2.b"][:] = float("nan")
        return tensors

    rewrite(copy_of_tiny, spoil)
    with pytest.raises(HealthError, match="NaN"):
        main(["smoke", str(copy_of_tiny), "--device", "cpu", "--num-envs", "1"])
    assert "finite: no, 100.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--device tpu9", "device"),
        ("--camera-map image_cam_0=top", "checkpoint's cameras are"),
        ("--joint-sign 1 1 1 1 1 2", r"joint_map\.sign"),
        ("--base-renderer opengl", "'warp', 'madrona', 'mujoco'"),
        ("--revision v2", "revision is 'v2'.*is a folder here"),
    ],
)
def test_smoke_refuses(run, tiny, flags, message):
    with pytest.raises(ConfigError, match=message):
        run("smoke", tiny, *flags.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num-envs 0", "num_envs is 0"),
        ("--dtype int8", "'float32', 'bfloat16'"),
        ("--camera-map front", "KEY=CAMERA"),
        ("--base-width 5", "base_width is 5; give 16 to 2048 pixels"),
        ("--home there", "home is 'there'; give 'task', 'checkpoint' or six angles"),
    ],
)
def test_smoke_refuses_while_parsing(run, tiny, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        run("smoke", tiny, *flags.split())
    assert stopped.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


# -- the page ------------------------------------------------------------------------------------------------------
def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def commands() -> list[list[str]]:
    return [
        shlex.split(line, comments=True)[1:]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("so101 ")
    ]


def test_page_example_runs(tiny, capsys):
    (code,) = blocks("python")
    assert code.count('"my-checkpoint"') == 1
    exec(compile(code.replace('"my-checkpoint"', repr(str(tiny))), str(PAGE), "exec"), {})
    assert "(4, 16, 6)" in capsys.readouterr().out


def test_page_shows_every_subcommand():
    assert {line[1] for line in commands() if line[0] == "groot"} == set(COMMANDS)


@pytest.mark.parametrize("line", [line for line in commands() if line[0] == "groot"], ids=" ".join)
def test_page_commands_parse(line):
    assert parse(KINDS[line[1]], line[2:], line[1])


@pytest.mark.parametrize("line", [line for line in commands() if line[0] != "groot"], ids=" ".join)
def test_page_flags_exist(line, capsys):
    with pytest.raises(SystemExit):
        cli.main([line[0], "--help"])
    known = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    assert {word for word in line if word.startswith("--")} <= known


@pytest.mark.parametrize("command", ["train", "gate", "eval", "play"])
def test_page_table_of_flags(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    known = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    section = PAGE.read_text().partition("## Chunks")[2].partition("\n## ")[0]
    flags = set(re.findall(r"^\| `(--[a-z0-9-]+)", section, re.MULTILINE))
    assert "--fp8" in flags and flags <= known


def test_exit_status(copy_of_tiny, capsys):
    rewrite(copy_of_tiny, lambda tensors: {**tensors, "action_head.mask_token": torch.zeros(3)})
    with pytest.raises(SystemExit) as stopped:
        cli.main(["groot", "inspect", str(copy_of_tiny)])
    assert stopped.value.code == 2
    streams = capsys.readouterr()
    assert "camera 0" in streams.out and streams.err.startswith("error: ") and "mask_token" in streams.err
