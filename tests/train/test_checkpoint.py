"""Checkpoints appear whole or not at all, and are refused when damaged or made for something else."""

import contextlib
import dataclasses
import errno
import json
import os
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mjx_so101 import CheckpointError, load_randomization
from train import checkpoint, files
from train.config import TrainConfig
from train.run_folder import open_for_resume, saved_config

# TensorStore's threads outlive a failed call and complain
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def tree(fill):
    """A pytree with a large leaf, scalars, integers, booleans and a key."""
    values = np.random.default_rng(fill).normal(size=(100, 200)).astype(np.float32)
    return {"a": jnp.asarray(values), "b": {"c": jnp.int32(fill), "d": jnp.array([True, False])},
            "key": jax.random.PRNGKey(fill)}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    """A good checkpoint, filled with 1."""
    checkpoint.save(tmp_path / "checkpoints" / "last", {"learner": tree(1)}, {"steps": 1})
    return tmp_path / "checkpoints" / "last"


@pytest.fixture
def holds(path, differences):
    """Function: whether the checkpoint is whole and filled with a number."""

    def check(fill):
        assert checkpoint.read_meta(path)["steps"] == fill
        return not differences(checkpoint.restore(path, "learner", tree(0)), tree(fill))

    return check


# -- writing -------------------------------------------------------------------------------------------------------
def test_what_is_saved_comes_back_bit_for_bit(path, holds):
    assert holds(1)
    checkpoint.save(path, {"learner": tree(2)}, {"steps": 2})
    assert holds(2)
    assert [folder.name for folder in path.parent.iterdir()] == ["last"]


@pytest.mark.parametrize("most_bytes", [0, 100, 1000, 10_000, 50_000])
def test_full_disk_leaves_the_checkpoint_before(path, holds, most_bytes):
    """Real failing writes: no file may grow beyond a limit, wherever Orbax happens to be by then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written.*earlier checkpoints are untouched.*disk"):
            checkpoint.save(path, {"learner": tree(2)}, {"steps": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert holds(1)
    assert [folder.name for folder in path.parent.glob("[!.]*")] == ["last"]
    checkpoint.save(path, {"learner": tree(3)}, {"steps": 3})
    assert holds(3)


def test_full_disk_that_orbax_reports_is_a_checkpoint_error(path, holds, monkeypatch):
    def save(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, "save", save)
        with pytest.raises(CheckpointError, match="No space left on device"):
            checkpoint.save(path, {"learner": tree(2)}, {"steps": 2})
    assert holds(1)


def save_interrupted(path, survived, error):
    """Save a checkpoint filled with 2, but raise `error` at a rename to or from `path` after `survived` others."""
    calls = []

    def interrupted(change):
        def wrapper(source, target, **options):
            if path in (Path(source), Path(target)):  # Orbax's own renames pass
                if len(calls) == survived:
                    raise error
                calls.append((source, target))
            change(source, target, **options)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(os, name, interrupted(getattr(os, name)))
        checkpoint.save(path, {"learner": tree(2)}, {"steps": 2})


@pytest.mark.parametrize("survived", [0, 1])
def test_failing_rename_leaves_the_checkpoint_before(path, holds, survived):
    try:
        save_interrupted(path, survived, OSError(errno.ENOSPC, "No space left on device"))
    except CheckpointError as error:
        assert "earlier checkpoints are untouched" in str(error)
        assert holds(1)
    else:
        assert holds(2)  # it needed no more renames


@pytest.mark.parametrize("survived", [0, 1])
def test_kill_in_the_middle_of_the_swap_leaves_something_to_resume(path, holds, survived):
    """However far the swap of folders came, a whole checkpoint can be restored."""

    class Killed(BaseException):
        pass

    with contextlib.suppress(Killed):
        save_interrupted(path, survived, Killed())
    assert holds(checkpoint.read_meta(path)["steps"])  # by a reader, who must not touch it
    checkpoint.recover(path)
    assert holds(checkpoint.read_meta(path)["steps"])
    checkpoint.save(path, {"learner": tree(3)}, {"steps": 3})
    assert holds(3)


def test_reader_does_not_touch_a_swap_that_a_run_is_making(path, holds):
    path.rename(path.with_name(".last.old"))
    assert holds(1)
    assert not path.exists()


def test_everything_is_synced_before_it_is_swapped_in(path, monkeypatch):
    synced, written = [], []

    def swap(temporary, target):
        written.extend(str(file) for file in (temporary, *temporary.rglob("*")))

    monkeypatch.setattr(files, "sync", lambda file: synced.append(str(file)))
    monkeypatch.setattr(checkpoint, "_replace", swap)
    checkpoint.save(path, {"learner": tree(2)}, {"steps": 2})
    assert len(written) > 5 and set(written) <= set(synced)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_not_finite_is_neither_written_nor_read(path, holds, monkeypatch, bad):
    broken = {**tree(2), "a": tree(2)["a"].at[3, 4].set(bad)}
    with pytest.raises(CheckpointError, match=r"not written: learner is not finite \(a\)"):
        checkpoint.save(path, {"learner": broken}, {"steps": 2})
    assert holds(1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "not_finite", lambda tree: [])
        checkpoint.save(path, {"learner": broken}, {"steps": 2})
    with pytest.raises(CheckpointError, match=r"'learner' is not finite \(a\)"):
        checkpoint.restore(path, "learner", tree(0))


# -- damage --------------------------------------------------------------------------------------------------------
def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path / 'none'}"):
        checkpoint.read_meta(tmp_path / "none")
    with pytest.raises(CheckpointError, match="'learner'"):
        checkpoint.restore(tmp_path / "none", "learner", tree(0))


@pytest.mark.parametrize("damage", ["delete", "empty", "halve", "flip"])
def test_damaged_file_is_noticed_or_harmless(path, damage, differences):
    """Each file in turn: never is anything restored that was not saved."""
    noticed, files = 0, [file for file in sorted(path.rglob("*")) if file.is_file()]
    for file in files:
        whole = file.read_bytes()
        if damage == "delete":
            file.unlink()
        else:
            flipped = bytes(byte ^ 0xFF if i % 37 == 0 else byte for i, byte in enumerate(whole))
            file.write_bytes({"empty": b"", "halve": whole[: len(whole) // 2], "flip": flipped}[damage])
        try:
            assert checkpoint.read_meta(path)["steps"] == 1
            assert not differences(checkpoint.restore(path, "learner", tree(0)), tree(1)), file
        except CheckpointError as error:
            noticed += 1
            assert str(path) in str(error), error
        file.write_bytes(whole)
    assert noticed >= 4  # its record, and the files that hold the arrays


def test_one_flipped_bit_is_refused_or_harmless(path, differences):
    """In every file of the checkpoint, and 24 times where the numbers lie."""
    rng = np.random.default_rng(0)
    files = sorted((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    refused = []
    for file in [*files, *[files[-1]] * 24]:
        whole = file.read_bytes()
        if not whole:
            continue
        at, changed = rng.integers(len(whole)), bytearray(whole)
        changed[at] ^= 1 << rng.integers(8)
        file.write_bytes(changed)
        try:
            assert not differences(checkpoint.restore(path, "learner", tree(0)), tree(1)), (file, at)
        except CheckpointError:
            refused.append(file)
        file.write_bytes(whole)
    assert refused.count(files[-1]) >= 23


def test_record_edited_by_hand_is_refused(path):
    text = (path / "meta.json").read_text()
    (path / "meta.json").write_text(text.replace('"steps": 1', '"steps": 2'))
    with pytest.raises(CheckpointError, match=r"meta\.json was changed after it was written"):
        checkpoint.read_meta(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1'])
def test_damaged_record_is_a_checkpoint_error(path, text):
    (path / "meta.json").write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read_meta(path)


def test_other_format_names_both(path):
    record = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(CheckpointError, match=rf"format 99.*reads {checkpoint.FORMAT}"):
        checkpoint.read_meta(path)


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({**tree(0), "a": jnp.zeros((100, 201))}, ["a: saved ((100, 200), 'float32')", "wanted ((100, 201)"]),
        ({**tree(0), "a": jnp.zeros((100, 200), jnp.int32)}, ["a: saved", "int32"]),
        ({**tree(0), "new": jnp.zeros(3)}, ["new: saved None"]),
        ({"a": tree(0)["a"]}, ["b/c: saved", "wanted None"]),
    ],
)
def test_other_leaves_are_named(path, like, words):
    with pytest.raises(CheckpointError) as refused:
        checkpoint.restore(path, "learner", like)
    assert all(word in str(refused.value) for word in words), refused.value


# -- a run that does not fit ---------------------------------------------------------------------------------------
@pytest.fixture
def damaged_run(half_run, tmp_path, second_trainer, monkeypatch):
    """Function from a change of meta.json to the error with which a run folder changed so is refused."""
    folder = shutil.copytree(half_run, tmp_path / "run")
    file = folder / "checkpoints" / "last" / "meta.json"
    monkeypatch.setattr(second_trainer, "out", folder)

    def refuse(change):
        record = json.loads(file.read_text())
        change(record)
        checkpoint.write_meta(file.parent, record)
        with pytest.raises(CheckpointError) as refused:
            second_trainer.resume()
        return str(refused.value)

    return refuse


def test_other_configuration_is_refused_by_field(damaged_run):
    def change(record):
        record["config"].update(num_envs=32, base="zero")
        record["config"]["ppo"]["unroll"] = 4

    message = damaged_run(change)
    assert "another configuration" in message
    for words in ("num_envs: saved 32, now 16", "base: saved 'zero', now 'jacobian'", "ppo.unroll: saved 4, now 8"):
        assert words in message
    assert "episode_steps" not in message


def test_other_ranges_are_refused_with_both_values(damaged_run):
    def change(record):
        record["config"]["resolved"]["ranges"]["kp_scale"] = [5, 9]

    assert "resolved.ranges.kp_scale: saved [5, 9], now [0.75, 1.25]" in damaged_run(change)


def test_other_observation_layout_is_refused_by_part(damaged_run):
    def change(record):
        record["layout"]["state"]["joint_pos"] = 5
        record["layout"]["privileged_state"]["wind"] = 3

    message = damaged_run(change)
    assert "another observation layout" in message
    assert "state.joint_pos: saved 5, now 6" in message
    assert "privileged_state.wind: saved 3, now None" in message


def test_other_physics_backend_is_refused(damaged_run):
    assert "physics: saved 'warp', now 'native'" in damaged_run(lambda record: record.update(physics="warp"))


def test_learner_of_another_shape_is_refused(half_run, tmp_path, second_trainer, monkeypatch):
    folder = shutil.copytree(half_run, tmp_path / "run")
    monkeypatch.setattr(second_trainer, "out", folder)
    shutil.rmtree(folder / "checkpoints" / "last" / "trainer")
    with pytest.raises(CheckpointError, match="no 'trainer'"):
        second_trainer.resume()


# -- run folders ---------------------------------------------------------------------------------------------------
def test_folder_that_is_not_a_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"not a run folder.*config.json"):
        saved_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"not a run folder.*config.json"):
        open_for_resume(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"base": "jacobian", "gravity": 9}', '{"base": "none"}'])
def test_damaged_configuration_is_a_checkpoint_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        saved_config(tmp_path)


def test_resolved_ranges_come_back_whatever_the_file_says_now(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('base = "plain"\nsheet_friction_scale = [0.9, 1.1]\naction_delay = [1, 3]')
    config = TrainConfig(randomization=str(file)).resolve()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    before = config.load_randomization()
    for change in (lambda: file.write_text("sheet_friction_scale = [5, 9]"), file.unlink):
        change()
        saved = saved_config(tmp_path)
        assert saved == config
        assert saved.load_randomization() == before == saved.resolve().load_randomization()
        assert before.range("sheet_friction_scale") == (0.9, 1.1) and before.range("kp_scale") == (0.75, 1.25)
        assert before.name == "my"
    other = dataclasses.replace(saved, randomization="real")
    assert other.load_randomization() == load_randomization("real")


def test_configuration_comes_back_as_it_was(tiny_config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.to_dict()))
    assert saved_config(tmp_path) == tiny_config
