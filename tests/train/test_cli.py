"""The command line: bad input ends with one clear line and exit status 2, and commands do what they say."""

import json
import os
import re
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import imageio.v2 as imageio
import pytest

from mjx_so101 import PRESETS
from policies.model import ModelOptions
from train import checkpoint
from train.cli import main
from train.config import TrainConfig
from train.loop import REPORT_SEED, Trainer
from train.policy import load_policy
from train.run_folder import open_for_resume

ROOT = Path(__file__).resolve().parents[2]
SERVER = ModelOptions(url="tcp://127.0.0.1:5555")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Everything that a command writes by default lands in a fresh folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def refused(capsys):
    """Function that runs a command, asserts that it is refused, and gives its message on stderr in one line."""

    def run(*arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert stopped.value.code == 2
        return " ".join(capsys.readouterr().err.replace("│", " ").split())

    return run


def randomization(folder, **ranges) -> Path:
    path = folder / "ranges.json"
    path.write_text(json.dumps(ranges))
    return path


# -- bad input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian", ["'trian'", "'train'", "'eval'", "'compare'", "'play'", "'doctor'", "Did you mean 'train'"]),
        ("train --base jacobean", ["base is 'jacobean'", "'zero', 'jacobian', 'oracle'"]),
        ("train --physics bullet", ["physics is 'bullet'", "'native'", "'warp'", "'jax'"]),
        ("train --preset tpu", ["preset is 'tpu'", "'cpu', 'gpu', 'gpu-groot', 'seed'"]),
        ("train --sheet-friction wet", ["sheet_friction is 'wet'", "'dry'", "'viscous'"]),
        ("train --gravity 3", ["--gravity"]),
        ("train --num-env 3", ["--num-env"]),
        ("train --num-envs 0", ["num_envs is 0"]),
        ("train --num-envs -1", ["num_envs is -1"]),
        ("train --num-envs many", ["--num-envs", "'many'"]),
        ("train --num-envs 3 --unroll 7 --minibatches 4", ["3 x 7 = 21", "4 minibatches", "multiple of 4"]),
        ("train --steps 0", ["steps is 0"]),
        ("train --alpha -1", ["alpha is -1"]),
        ("train --alpha nan", ["alpha is nan"]),
        ("train --alpha inf", ["alpha is inf"]),
        ("train --tolerance 0", ["tolerance is 0"]),
        ("train --tolerance -0.005", ["tolerance is -0.005"]),
        ("train --tolerance nan", ["tolerance is nan"]),
        ("train --entropy-cost nan", ["entropy_cost is nan", "at least 0"]),
        ("train --value-cost -1", ["value_cost is -1"]),
        ("train --residual-cost inf", ["residual_cost is inf"]),
        ("train --residual-change-cost -0.1", ["residual_change_cost is -0.1"]),
        ("train --randomization plain+looks", ["'plain+looks' varies how things look", "use 'plain'", "--obs pixels"]),
        ("eval --base zero --randomization real+looks", ["varies how things look", "table_color", "use 'real'"]),
        ("eval --base zero --json .", ["--json . is a folder"]),
        ("eval --base zero --json /proc/x/y.json", ["--json /proc/x/y.json cannot be written"]),
        ("eval --base zero --video /dev/null", ["--video /dev/null is a file"]),
        ("play --base zero --out /dev/null/x", ["--out /dev/null/x cannot be written"]),
        ("compare nowhere --out /proc/x", ["--out /proc/x cannot be written"]),
        ("train --out /proc/x", ["/proc/x", "cannot be made"]),
        ("train --eval-every 0", ["eval_every is 0"]),
        ("train --alpha maybe", ["alpha is 'maybe'", "auto"]),
        ("train --alpha -1", ["alpha is -1.0"]),
        ("train --alpha auto --resume somewhere", ["--alpha auto with --resume", "leave --alpha out"]),
        ("train --alpha auto --gate-episodes 0 --force", ["--alpha auto asks the gate", "--gate-episodes 0"]),
        ("train --video-episodes 0", ["video_episodes is 0", "1 to 100"]),
        ("eval --base zero --video-episodes 101", ["video_episodes is 101", "1 to 100"]),
        ("play --base zero --video-episodes 0", ["video_episodes is 0"]),
        ("gate --base zero --video-episodes 0", ["video_episodes is 0"]),
        ("train --stop-at-success 1.5", ["stop_at_success is 1.5"]),
        ("train --preset gpu-groot", ["--preset gpu-groot", "no GPU", "--preset cpu"]),
        ("train --preset gpu", ["--preset gpu", "no GPU", "--preset cpu", "pip install", "so101 doctor"]),
        ("train --resume nowhere", ["nowhere is not a run folder: there is no such folder"]),
        ("eval", ["nothing to run", "--run", "--base"]),
        ("eval --run somewhere --base zero", ["--run", "--base", "not both"]),
        ("eval --base zorro", ["'zorro'", "'zero'"]),
        ("eval --run nowhere", ["nowhere", "not a run folder"]),
        ("eval --base zero --episodes 0", ["episodes is 0"]),
        ("eval --base zero --episodes -2", ["episodes is -2"]),
        ("eval --base zero --episodes 2 --eval-batch -1", ["eval_batch is -1"]),
        ("eval --base zero --action median --episodes 2", ["action is 'median'", "'mean', 'sample'"]),
        ("eval --base zero --tolerance-mm 5 0 --episodes 2", ["tolerance"]),
        ("eval --base zero --tolerance-mm -5 --episodes 2", ["tolerance_mm", "-5"]),
        ("eval --base zero --tolerance-mm nan --episodes 2", ["tolerance"]),
        ("eval --base zero --episodes 4 --eval-batch 4 --tolerance-mm", ["tolerance"]),
        ("eval --base zero --randomization rela --episodes 2", ["'rela'", "Did you mean 'real'"]),
        ("eval --base zero --physics bullet", ["physics is 'bullet'"]),
        ("compare", ["run"]),
        ("compare nowhere", ["nowhere is not a run folder"]),
        ("play --base zorro", ["'zorro'"]),
        ("play --run nowhere", ["nowhere"]),
        ("doctor --fix", ["--fix"]),
    ],
)
def test_bad_input_is_named_with_what_is_valid(refused, own_folder, line, words):
    message = refused(*line.split())
    assert [word for word in words if word not in message] == [], message
    assert "Traceback" not in message
    assert not list(own_folder.iterdir())  # nothing is left behind


def test_inverted_randomization_is_refused_and_leaves_no_run_folder(refused, tmp_path):
    """Or the corrected command would find --out not empty."""
    path = randomization(tmp_path, kp_scale=[1.2, 0.8])
    arguments = ("train", "--physics", "native", "--num-envs", 8, "--randomization", path, "--out", tmp_path / "run")
    message = refused(*arguments)
    assert "kp_scale" in message and "inverted" in message and "[1.2, 0.8]" in message
    assert not (tmp_path / "run").exists()


def test_unreachable_starts_are_refused(refused, tmp_path):
    path = randomization(tmp_path, start_distance=[0.28, 0.3])
    message = refused("eval", "--base", "zero", "--episodes", 2, "--physics", "native", "--randomization", path)
    assert "start_distance" in message and "unreachable" in message


def test_run_folder_that_holds_something_is_refused(refused, tmp_path, tiny_run):
    message = refused("train", "--out", tiny_run)
    assert f"{tiny_run} is not empty" in message and f"--resume {tiny_run}" in message
    (tmp_path / "file").write_text("not a folder")
    assert str(tmp_path / "file") in refused("train", "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_resume_without_a_checkpoint_is_refused(refused, copy_of_run):
    (copy_of_run / "checkpoints" / "last").rename(copy_of_run / "elsewhere")
    message = refused("train", "--resume", copy_of_run)
    assert "nothing to resume" in message and "checkpoints/last is missing" in message


def test_resume_with_other_flags_is_refused_and_loses_nothing(refused, copy_of_run):
    before = {path: path.read_bytes() for path in copy_of_run.rglob("*") if path.is_file()}
    message = refused("train", "--resume", copy_of_run, "--alpha", 0.25, "--base", "zero")
    assert "residual.alpha: saved 0.5, now 0.25" in message and "base: saved 'jacobian', now 'zero'" in message
    assert [str(path) for path in before if path.read_bytes() != before[path]] == []


def test_damaged_best_checkpoint_is_refused(refused, copy_of_run):
    file = copy_of_run / "checkpoints" / "best" / "meta.json"
    file.write_text(file.read_text()[:40])
    assert "best is damaged" in refused("eval", "--run", copy_of_run, "--episodes", 2, "--physics", "native")


def test_checkpoint_of_another_layout_is_refused(refused, copy_of_run):
    file = copy_of_run / "checkpoints" / "best" / "meta.json"
    record = json.loads(file.read_text())
    record["layout"]["state"]["goal_yaw"] = 1
    checkpoint.write_meta(file.parent, record)
    message = refused("eval", "--run", copy_of_run, "--episodes", 2, "--physics", "native")
    assert "another observation layout" in message and "state.goal_yaw: saved 1, now 2" in message


def test_looks_in_a_file_are_named_where_nothing_is_drawn(refused, tmp_path):
    path = randomization(tmp_path, exposure=[-0.5, 0.5], kp_scale=[0.9, 1.1])
    message = refused("eval", "--base", "zero", "--physics", "native", "--randomization", path)
    assert "varies how things look (exposure)" in message and "leave it out" in message


def test_looks_are_taken_where_something_is_drawn():
    pixels = TrainConfig(base="zero", obs="pixels", randomization="plain+looks")
    for config in (pixels, TrainConfig(base="remote", model=SERVER)):
        config._require_looks_seen(PRESETS["plain+looks"])


# -- what a run was trained with counts ------------------------------------------------------------------------------
def test_resume_with_another_randomization_is_refused_with_both_ranges(refused, copy_of_run, tmp_path):
    path = randomization(tmp_path, kp_scale=[0.9, 1.1])
    message = refused("train", "--resume", copy_of_run, "--randomization", path)
    assert "resolved.ranges.kp_scale: saved [0.75, 1.25], now [0.9, 1.1]" in message


def test_edited_randomization_file_counts_for_no_run_but_for_those_that_name_it(copy_of_run, tmp_path):
    """A run under a file that says something else by now."""
    path, best = randomization(tmp_path, kp_scale=[2.0, 3.0]), copy_of_run / "checkpoints" / "best"
    meta = checkpoint.read_meta(best)
    meta["config"]["randomization"] = meta["config"]["resolved"]["of"] = str(path)
    meta["config"]["resolved"]["ranges"]["kp_scale"] = [0.9, 1.1]
    checkpoint.write_meta(best, meta)
    own = load_policy(copy_of_run, None)
    assert own.environment(1).task.randomization.range("kp_scale") == (0.9, 1.1)
    assert "the run's own ranges" in own.randomization
    named = load_policy(copy_of_run, None, {"randomization": str(path)})
    assert tuple(named.environment(1).task.randomization.range("kp_scale")) == (2.0, 3.0)
    assert "own" not in named.randomization


def test_edited_configuration_is_mentioned_and_does_not_count(copy_of_run, capsys):
    file = copy_of_run / "config.json"
    file.write_text(file.read_text().replace('"alpha": 0.5', '"alpha": 1.0').replace('"steps": 5120', '"steps": 1'))
    assert load_policy(copy_of_run, None).config.residual.alpha == 0.5
    said = capsys.readouterr().out
    assert "residual.alpha: checkpoint 0.5, config.json 1.0" in said and "steps" not in said
    file.write_text("{}")
    assert load_policy(copy_of_run, None).config.num_envs == 16


def test_run_that_is_trained_is_not_resumed(refused, copy_of_run):
    with open_for_resume(copy_of_run):
        assert f"another process trains in {copy_of_run}" in refused("train", "--resume", copy_of_run)
        assert f"another process trains in {copy_of_run}" in refused("train", "--out", copy_of_run)


def test_run_killed_before_its_first_checkpoint_is_begun_anew_by_resume(tiny_flags, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"

    def die(*_):
        assert json.loads((run / "config.json").read_text())["num_envs"] == 16
        raise KeyError("killed")

    monkeypatch.setattr(Trainer, "__init__", die)
    with pytest.raises(KeyError, match="killed"):
        main(["train", *tiny_flags, "--out", str(run)])
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "run", lambda self: False)
    assert interrupted(capsys, "train", "--resume", run) == ""
    assert (run / "commands.txt").exists()


def test_missing_assets_are_named(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("SO101_ASSETS", str(tmp_path / "none"))
    message = refused("eval", "--base", "zero", "--episodes", 2)
    assert "assets folder not found" in message and "SO101_ASSETS" in message


# -- help ----------------------------------------------------------------------------------------------------------
def test_help_lists_the_commands(capsys):
    main([])
    text = capsys.readouterr().out
    assert all(command in text for command in ("train", "eval", "compare", "play", "doctor"))


def test_every_field_is_a_flag_with_its_documentation(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in ("--preset", "--out", "--resume", "--base", "--randomization", "--alpha", "--num-envs", "--steps",
                 "--seed", "--physics", "--learning-rate", "--residual-scale", "--sheet-friction"):  # fmt: skip
        assert flag in text, flag
    assert "Success tolerance (m) that training rewards." in text


# -- eval ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_eval_prints_nothing_but_json(capsys, read_json):
    few = ["--physics", "native", "--episodes", "4", "--eval-batch", "4"]
    main(["eval", "--base", "zero", *few, "--tolerance-mm", "5", "10", "20", "--json", "-"])
    record = read_json(capsys.readouterr().out)
    assert record["episodes"] == 4
    assert list(record["success"]) == ["5", "10", "20"]
    for entry in record["success"].values():
        assert entry["rate"] == entry["low"] == 0 < entry["high"] < 1
    assert record["final_distance_mm"] > 30 and record["final_yaw_deg"] > 0  # nobody moved the sheet
    assert {"command", "commit", "device", "versions", "seed", "policy"} <= set(record)
    assert record["environment"]["randomization"]["name"] == "plain"


@pytest.mark.slow
def test_eval_of_a_run_gives_the_numbers_of_its_report(tiny_run, tiny_report, tmp_path, capsys, read_json):
    """The same episodes, seen through another command."""
    file, reported = tmp_path / "result.json", tiny_report["results"]["mean"]
    arguments = ["--physics", "native", "--episodes", "8", "--seed", str(REPORT_SEED)]
    main(["eval", "--run", str(tiny_run), *arguments, "--json", str(file)])
    record = read_json(file.read_text())
    assert record["policy"] == str(tiny_run)
    assert record["success"] == reported["success"] and record["success_at_end"] == reported["success_at_end"]
    for name in ("final_distance_mm", "final_yaw_deg", "mean_return", "mean_residual_rad"):
        assert record[name] == reported[name], name  # bit for bit: the run's own batch
    assert f"success within 5 mm: {reported['success']['5']['rate']:.1%}" in capsys.readouterr().out


def test_eval_says_what_it_evaluated(tiny_run, capsys):
    main(["eval", "--run", str(tiny_run), "--episodes", "3", "--seed", "7"])
    printed = capsys.readouterr().out
    assert re.search(r"success within 5 mm: [0-9.]+% \([0-9.]+%-[0-9.]+%\); at the end [0-9.]+% \(", printed)
    assert "3 episodes of seed 7, randomization plain, dry sheet, physics native, 6 episodes at once" in printed


def test_eval_does_not_lose_its_result_for_want_of_a_folder(tmp_path, monkeypatch, capsys):
    """The folder of --json is made, or refused before the episodes are run."""
    from train import evaluate

    ran = []

    class Quick:
        def __init__(self, *_, **__):
            pass

        def __call__(self, *_):
            ran.append(True)
            return self

        def summary(self):
            kinds = ("invalid", "bad_target", "nonfinite", "overflow")
            return {"episodes": 2, "success": {}, **{f"{kind}_episodes": 0 for kind in kinds}}

    monkeypatch.setattr(evaluate, "Evaluator", Quick)
    file = tmp_path / "new" / "result.json"
    try:
        main(["eval", "--base", "zero", "--physics", "native", "--episodes", "2", "--json", str(file)])
    except SystemExit as stopped:
        assert stopped.code == 2 and str(file.parent) in capsys.readouterr().err and not ran
    else:
        assert json.loads(file.read_text())["episodes"] == 2


# -- compare and doctor --------------------------------------------------------------------------------------------
def test_compare_writes_table_and_plot(tiny_run, own_folder, capsys):
    main(["compare", str(tiny_run), "--out", "both"])
    assert "| jacobian | joints, sheet_pose, base_plan | plain | native | 8 |" in capsys.readouterr().out
    assert {path.name for path in (own_folder / "both").iterdir()} == {"comparison.md", "comparison.png"}


def diagnosis(capsys) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["doctor"])
    return stopped.value.code, capsys.readouterr().out


def test_doctor_names_what_is_there(capsys):
    import jax

    code, text = diagnosis(capsys)
    assert code in (0, 1)
    named = ("versions", f"jax {jax.__version__}", "mujoco", "warp-lang", "devices: cpu", "memory", "GiB", "renderer")
    places = ("JAX_COMPILATION_CACHE_DIR", "WARP_CACHE_PATH", "assets", str(ROOT / "assets"))
    assert [word for word in named + places if word not in text] == []
    assert (code == 0) == ("fix:" not in text) == ("All is well." in text)


@pytest.mark.parametrize(("package", "extra"), [("safetensors", "groot"), ("msgpack", "remote")])
def test_doctor_names_what_an_optional_base_lacks(capsys, monkeypatch, package, extra):
    import importlib.metadata

    version = importlib.metadata.version

    def without(name):
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    _, text = diagnosis(capsys)
    assert f"ok base {extra} (optional): " in text
    assert f"pip install -e '.[{extra}]'" in text


# -- interrupted -----------------------------------------------------------------------------------------------------
def interrupted(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 130
    return capsys.readouterr().err


def test_interrupt_ends_with_a_line(capsys, monkeypatch):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.cli._doctor", stop)
    assert interrupted(capsys, "doctor").strip() == "Stopped."


def test_interrupted_report_says_how_to_get_it(capsys, monkeypatch, copy_of_run):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.report.write_report", stop)
    said = interrupted(capsys, "train", "--resume", copy_of_run)
    assert f"training is saved. so101 train --resume {copy_of_run} reports" in said


def test_doctor_has_one_fix_for_missing_assets(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SO101_ASSETS", str(tmp_path / "none"))
    code, text = diagnosis(capsys)
    assert code == 1
    lines = text.splitlines()
    found = [i for i, line in enumerate(lines) if line.startswith("!!") and str(tmp_path / "none") in line]
    assert len(found) == 1, text
    assert "fix:" in lines[found[0] + 1] and "SO101_ASSETS" in lines[found[0] + 1]


def test_doctor_says_how_to_use_an_idle_gpu(capsys, monkeypatch):
    from train import hardware

    monkeypatch.setattr(hardware, "choose_gpu_extra", lambda: hardware.GpuExtra("cuda13"))
    code, text = diagnosis(capsys)
    assert code == 1
    assert "fix: the GPU is unused: pip install -e '.[cuda13]'" in text


# -- play ----------------------------------------------------------------------------------------------------------
PLAY = """
import sys
from train import cli

play = cli._play

def short_play(arguments):  # episodes of 12 control steps; whole ones would take a minute
    import functools
    from train import config
    config.TaskConfig = functools.partial(config.TaskConfig, episode_steps=12)
    play(arguments)

cli._play = short_play
cli.main(sys.argv[1:])
"""


@pytest.mark.skipif(not (find_library("EGL") or find_library("OSMesa")), reason="needs a library that draws")
@pytest.mark.slow
def test_play_without_a_display_writes_videos_and_says_so(own_folder):
    """In a process of its own, with no hint as to how to draw: the command has to find out."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MUJOCO_GL")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", PLAY, "play", "--base", "zero", "--physics", "native", "--out", "videos"]
    command += ["--video-episodes", "2"]
    played = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert played.returncode == 0, played.stderr
    assert "DISPLAY" in played.stdout and "video" in played.stdout
    sizes = {}
    for name in ("grid.mp4", "episode.mp4", "failures.mp4"):  # zero never succeeds
        file = own_folder / "videos" / name
        assert str(Path("videos") / name) in played.stdout
        assert file.read_bytes()[4:8] == b"ftyp"
        with imageio.get_reader(file) as video:
            assert video.count_frames() == 4  # every third state, so that it plays in real time
            assert video.get_meta_data()["fps"] == 10
            frame = video.get_data(0)
        assert frame.std() > 10  # not blank
        sizes[name] = frame.shape
    assert sizes == {"grid.mp4": (150, 400, 3), "episode.mp4": (480, 640, 3), "failures.mp4": (150, 400, 3)}
    assert "| grid.mp4 | 1, 2 | 1 | never within 5 mm |" in (own_folder / "videos" / "videos.md").read_text()
