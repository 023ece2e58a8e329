"""What every recorded number carries: command, commit, sources, device and versions."""

import json
import shlex
import subprocess
import sys

import jax
import mujoco
import pytest

from train import provenance
from train.provenance import Source, hash_of, prefix_of, read_sources, source_of


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with two sources and a text."""
    for name in ("mjx_so101/a.py", "assets/b.xml", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_versions_are_those_installed():
    found = provenance.versions()
    assert (found["jax"], found["mujoco"]) == (jax.__version__, mujoco.__version__)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(isinstance(version, str) and version for version in found.values())


def test_device_is_named():
    assert provenance.device().startswith("CPU, ")  # tests run on the CPU
    assert "cores" in provenance.device()


@pytest.mark.parametrize(
    ("device", "prefix"),
    [
        ("CPU, 2 cores, AMD EPYC", "cpu"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "nvidia_geforce_rtx_4090"),
    ],
)  # fmt: skip
def test_headline_names_begin_with_the_device(device, prefix):
    assert prefix_of(device) == prefix


def test_commit_is_that_of_the_checkout(checkout):
    found = source_of(checkout)
    assert (found.commit, found.dirty) == (git(checkout, "rev-parse", "HEAD"), False)
    assert len(found.commit) == 40 and found.source_sha256 == hash_of(read_sources(checkout))


@pytest.mark.parametrize("name", ["mjx_so101/a.py", "assets/b.xml", "mjx_so101/deep/new.py", "pyproject.toml"])
def test_changed_and_new_sources_are_dirty(checkout, name):
    before = source_of(checkout)
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text("changed")
    found = source_of(checkout)
    assert found.commit == before.commit and found.dirty
    assert found.source_sha256 != before.source_sha256


@pytest.mark.parametrize("name", ["README.md", "bench/results/a.json", "runs/a.py"])
def test_texts_and_results_are_no_sources(checkout, name):
    before = source_of(checkout)
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text("changed")
    assert source_of(checkout) == before


def test_a_checkout_around_the_package_is_not_its_commit(checkout):
    inside = checkout / "venv" / "site-packages"
    (inside / "mjx_so101").mkdir(parents=True)
    assert source_of(inside).commit == "unknown" and source_of(inside).dirty is None


@pytest.fixture
def copy(tmp_path):
    """A folder without git whose stamp fits its sources."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.py").write_text("a")
    source = Source("a" * 40, False, hash_of(read_sources(tmp_path)))
    (tmp_path / provenance.STAMP).write_text(json.dumps(source._asdict()))
    return tmp_path


def test_a_copy_without_git_names_its_commit(copy, monkeypatch):
    assert source_of(copy)[:2] == ("a" * 40, False)
    moved = (copy / provenance.STAMP).rename(copy / "elsewhere.json")
    assert source_of(copy)[:2] == ("unknown", None)
    monkeypatch.setenv("SO101_COMMIT_FILE", str(moved))
    assert source_of(copy)[:2] == ("a" * 40, False)


def test_a_copy_that_lies_in_somebodys_repository_is_still_of_its_own_commit(copy):
    """A machine that copies a folder may commit it; only a stamp that fits the sources says what they are."""
    git(copy, "init", "-q")
    git(copy, "add", "train")
    git(copy, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "copied")
    assert source_of(copy)[:2] == ("a" * 40, False)
    (copy / "train" / "a.py").write_text("b")
    assert source_of(copy)[:2] == (git(copy, "rev-parse", "HEAD"), True)


def test_a_copy_that_was_edited_is_dirty(copy):
    (copy / "train" / "a.py").write_text("b")
    assert source_of(copy)[:2] == ("a" * 40, True)


@pytest.mark.parametrize("text", ["no json", "{}", '{"commit": "abc", "dirty": false, "source_sha256": ""}'])
def test_a_damaged_stamp_is_said(copy, text):
    (copy / provenance.STAMP).write_text(text)
    with pytest.warns(UserWarning, match=r"names no commit.*bench\.pack --stamp"):
        assert source_of(copy)[:2] == ("unknown", None)


def test_without_git_and_stamp_the_commit_is_unknown(checkout, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    assert source_of(checkout)[:2] == ("unknown", None)
    assert provenance.driver() is None  # nvidia-smi is gone too


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        (["/opt/bin/so101", "train", "--seed", "1"], ["so101", "train", "--seed", "1"]),
        (["/opt/my venv/bin/so101", "train", "--out", "my runs/a"], ["so101", "train", "--out", "my runs/a"]),
        (["-m", "train.cli", "eval", "--base", "zero"], ["so101", "eval", "--base", "zero"]),
        (["-m", "bench.fps", "--num-envs", "8"], ["python", "-m", "bench.fps", "--num-envs", "8"]),
    ],
)
def test_command_can_be_typed_again(monkeypatch, typed, command):
    monkeypatch.setattr(sys, "orig_argv", ["/opt/bin/python3", *typed])
    script = typed.index("-m") + 1 if "-m" in typed else 0
    monkeypatch.setattr(sys, "argv", typed[script:])
    assert shlex.split(provenance.provenance()["command"]) == command


def test_a_parent_need_not_start_jax_to_say_what_its_children_computed_on(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: pytest.fail("JAX was started"))
    assert provenance.provenance("NVIDIA H100 80GB HBM3")["device"] == "NVIDIA H100 80GB HBM3"
