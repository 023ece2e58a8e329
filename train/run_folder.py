"""The folder of a run: a name that no other run has, an owner while it lives, and its configuration."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import json
import os
import socket
from pathlib import Path

from mjx_so101.errors import CheckpointError, ConfigError
from train import checkpoint
from train.config import TrainConfig
from train.files import make_folders, remove_folders, write_text

CONFIG = "config.json"
LOCK = "lock"


class RunFolder:
    """A run folder that belongs to this process until `release`, or until the process ends in any way."""

    def __init__(self, path: Path, made: list[Path]):
        """made: the folders made for it, innermost first. Raises ConfigError if another process owns it."""
        self.path, self._made = path, made
        try:
            self._file = open(path / LOCK, "a+")  # noqa: SIM115, it is held open for as long as the folder is owned
        except OSError as error:
            raise ConfigError(f"run folder {path} cannot be written ({error}); give another --out.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = _owner(self._file.read())
            self._file.close()
            raise ConfigError(
                f"another process trains in {path}: {owner}. Wait for its end, stop it, or give another --out."
            ) from None
        except OSError as error:
            self._file.close()
            raise ConfigError(f"run folder {path} cannot be locked ({error}); give an --out elsewhere.") from None
        self._file.truncate(0)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": now}) + "\n")
        self._file.flush()

    def release(self) -> None:
        """Give the folder up; the lock file stays, because another process may be about to lock it."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def discard(self) -> None:
        """Give up a folder for which the command was refused: nothing stays of it but what others wrote into it."""
        (self.path / CONFIG).unlink(missing_ok=True)
        if _is_unused(self.path):
            (self.path / LOCK).unlink(missing_ok=True)
        self.release()
        remove_folders(self._made)

    def keep_config(self, config: TrainConfig) -> None:
        """Write config.json, unless it says the same already."""
        path, text = self.path / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n"
        if not path.exists() or path.read_text() != text:
            write_text(path, text)

    def add_command(self, line: str) -> None:
        """Add a command line to commands.txt, which lists all that made the run."""
        path = self.path / "commands.txt"
        write_text(path, (path.read_text() if path.exists() else "") + line + "\n")

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return (self.path / "checkpoints" / "last").is_dir()


def _owner(text: str) -> str:
    try:
        record = json.loads(text)
        return f"process {record['pid']} on {record['host']}, since {record['started']}"
    except (ValueError, TypeError, KeyError):  # it has locked the file and not written yet
        return "a process that has just begun"


def _is_unused(path: Path) -> bool:
    return all(entry.name == LOCK or ".writing" in entry.name for entry in path.iterdir())  # or what a crash left


def open_new(name: str) -> RunFolder:
    """The folder runs/NAME-TIME, made and locked."""
    made = [] if Path("runs").exists() else [Path("runs")]
    path = new_folder(name)
    return RunFolder(path, [path, *made])


def open_given(out: Path) -> RunFolder:
    """Folder `out`, made if need be, and locked. Raises ConfigError if it holds something or is another's."""
    out = Path(out)
    if not (out / LOCK).exists():
        _require_unused(out)
    folder = RunFolder(out, _make(out))
    try:
        _require_unused(out)  # two commands may have found it empty
    except ConfigError:
        folder.release()
        raise
    return folder


def open_for_resume(out: Path) -> RunFolder:
    """The folder of a run that goes on, locked: from its last checkpoint, or from the start if it made none.

    Raises CheckpointError if it is no run's or has lost its last checkpoint, ConfigError if another process owns it.
    """
    saved_config(out)
    folder = RunFolder(Path(out), [])
    checkpoints = folder.path / "checkpoints"
    for name in ("last", "best"):
        checkpoint.recover(checkpoints / name)
    if not folder.begun and (checkpoints / "best").exists():
        folder.release()
        raise CheckpointError(f"nothing to resume in {out}: checkpoints/last is missing.")
    return folder


def new_folder(name: str) -> Path:
    """Make the folder runs/NAME-TIME; those that ask within the same second get -2, -3, ... behind it."""
    stem = f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                _make(path.parent)
                path.mkdir()
                return path
    raise AssertionError("unreachable")


def prepare_folder(out: Path) -> Path:
    """Make folder `out`. Raises ConfigError if it holds something, or cannot be made."""
    _require_unused(Path(out))
    _make(Path(out))
    return Path(out)


def _make(out: Path) -> list[Path]:
    try:
        return make_folders(out)
    except (OSError, ValueError) as error:
        raise ConfigError(f"folder {out} cannot be made ({error}); give another --out.") from None


def _require_unused(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out folder {out} is a file; give another --out.")
    if out.exists() and not _is_unused(out):
        raise ConfigError(
            f"out folder {out} is not empty; give another --out"
            + (f", or continue that run with --resume {out}." if (out / CONFIG).exists() else ".")
        )


def no_run_folder(run: Path, lack: str) -> CheckpointError:
    """The error to raise for a path that is no run folder; `lack` says why if it is a folder at all."""
    what = lack if Path(run).is_dir() else "there is no such folder"
    return CheckpointError(f"{run} is not a run folder: {what}. `so101 train` says where it keeps its own.")


def saved_config(run: Path) -> TrainConfig:
    """The configuration of a run folder. Raises CheckpointError if there is none."""
    path = Path(run) / CONFIG
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not an object")
        return TrainConfig.from_dict(values)
    except FileNotFoundError:
        raise no_run_folder(run, "config.json is missing") from None
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or of another version ({error}).") from None
