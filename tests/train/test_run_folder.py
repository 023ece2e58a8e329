"""Run folders: one for each run, owned while it lives, and written whole or not at all."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mjx_so101 import CheckpointError, ConfigError
from train import files, run_folder
from train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from train import run_folder
folder = run_folder.open_given(Path(sys.argv[1]))
print("owned", flush=True)
time.sleep(120)
"""


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- names and owners ----------------------------------------------------------------------------------------------
def test_runs_that_begin_at_the_same_moment_get_folders_of_their_own(own_folder):
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda _: run_folder.open_new("zero-plain"), range(6)))
    paths = [folder.path for folder in folders]
    assert len(set(paths)) == 6 and all(path.is_dir() for path in paths)
    assert len([path for path in paths if path.name.endswith(tuple(f"-{n}" for n in range(2, 7)))]) >= 4
    for folder in folders:
        folder.release()


@pytest.mark.parametrize("again", [run_folder.open_given, run_folder.open_for_resume])
def test_second_run_in_a_folder_is_refused_with_the_owner_s_name(tmp_path, again):
    with run_folder.open_given(tmp_path / "run") as folder:
        folder.keep_config(TrainConfig())
        with pytest.raises(
            ConfigError, match=f"another process trains.*{os.getpid()} on {socket.gethostname()}, since"
        ):
            again(tmp_path / "run")
        assert (tmp_path / "run" / "config.json").exists()
    run_folder.open_for_resume(tmp_path / "run").release()


def test_two_that_find_a_folder_empty_do_not_both_get_it(tmp_path):
    (tmp_path / "run").mkdir()
    with run_folder.open_given(tmp_path / "run"), pytest.raises(ConfigError, match="another process trains"):
        run_folder.open_given(tmp_path / "run")


def test_owner_that_is_killed_frees_its_folder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "owned\n"
        with pytest.raises(ConfigError, match=f"process {owner.pid} on"):
            run_folder.open_given(tmp_path / "run")
        owner.send_signal(signal.SIGKILL)
    run_folder.open_given(tmp_path / "run").release()  # of the dead one only its lock file is left


def test_folder_of_a_refused_command_does_not_stay(own_folder):
    for opened in (run_folder.open_new("a"), run_folder.open_given(own_folder / "deep" / "er")):
        opened.keep_config(TrainConfig())
        opened.discard()
    assert not list(own_folder.iterdir())


def test_what_others_left_in_a_refused_folder_stays(tmp_path):
    (tmp_path / "run").mkdir()
    folder = run_folder.open_given(tmp_path / "run")
    (tmp_path / "run" / "gate").mkdir()
    folder.discard()
    assert (tmp_path / "run" / "gate").is_dir() and not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("out", ["/proc/run", "/dev/null/run", "nul\0"])
def test_folder_that_cannot_be_made_is_named(out):
    with pytest.raises(ConfigError, match=r"cannot be made.*another --out"):
        run_folder.open_given(Path(out))


# -- to go on ------------------------------------------------------------------------------------------------------
def test_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    run_folder.open_given(tmp_path / "run").keep_config(TrainConfig(seed=3))
    with run_folder.open_for_resume(tmp_path / "run") as folder:
        assert not folder.begun
        assert run_folder.saved_config(folder.path).seed == 3


def test_run_that_lost_its_last_checkpoint_is_not_begun_anew(tmp_path):
    """Its best learner would be overwritten."""
    with run_folder.open_given(tmp_path / "run") as folder:
        folder.keep_config(TrainConfig())
        (folder.path / "checkpoints" / "best").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"nothing to resume.*checkpoints/last is missing"):
        run_folder.open_for_resume(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / ".last.old").mkdir()  # killed in the middle of a swap
    with run_folder.open_for_resume(tmp_path / "run") as folder:
        assert folder.begun


# -- files ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("write", ["keep_config", "add_command"])
def test_full_disk_leaves_the_file_before(tmp_path, write):
    folder = run_folder.open_given(tmp_path / "run")
    folder.keep_config(TrainConfig())
    folder.add_command("so101 train")
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"could not be written.*what was there before is untouched"):
            folder.keep_config(TrainConfig(seed=1)) if write == "keep_config" else folder.add_command("x" * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    folder.release()


def test_commands_are_added(tmp_path):
    with run_folder.open_given(tmp_path / "run") as folder:
        folder.add_command("one")
        folder.add_command("two")
    assert (tmp_path / "run" / "commands.txt").read_text() == "one\ntwo\n"


def test_file_is_synced_before_it_takes_its_place(tmp_path, monkeypatch):
    events, replace, sync = [], os.replace, files.sync
    monkeypatch.setattr(files, "sync", lambda path: (events.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("replace", Path(b).name)), replace(a, b)))
    files.write_text(tmp_path / "config.json", json.dumps({}))
    kinds = [kind for kind, _ in events]
    assert kinds == ["sync", "replace", "sync"] and events[0][1].endswith(".writing.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("place", ["", "/proc/x/result.json", "file/result.json"])
def test_output_that_cannot_be_written_is_named(own_folder, place):
    (own_folder / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--json .*(is a folder|cannot be written)"):
        files.require_writable_file(own_folder / place, "--json")


def test_output_that_can_be_written_leaves_nothing_behind(own_folder):
    files.require_writable_file(Path("a/b/result.json"), "--json")
    files.require_writable_folder(Path("c/d"), "--video")
    assert not list(own_folder.iterdir())
