"""Files that appear whole or not at all, and outputs that are known to be writable before the work begins."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mjx_so101.errors import ConfigError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, with the same suffix, that takes its place once it is written and synced.

    Raises ConfigError if it cannot be written; what was at `path` then stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.writing{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise ConfigError(
            f"{path} could not be written ({error}); what was there before is untouched. Free some disk space, or "
            "choose a place that can be written to."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all. Raises ConfigError if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def sync(path: Path) -> None:
    """Wait until a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` everything in a folder, and the folder itself."""
    for path, _, files in os.walk(folder):
        for name in files:
            sync(Path(path) / name)
        sync(Path(path))


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; gives those that were not there, innermost first."""
    made = []
    while not folder.exists():
        made.append(folder)
        folder = folder.parent
    for path in reversed(made):
        path.mkdir(exist_ok=True)
    return made


def remove_folders(made: list[Path]) -> None:
    """Remove those of the folders, innermost first, that are empty."""
    with contextlib.suppress(OSError):  # something is in it, or it is gone: its parents then stay as well
        for path in made:
            path.rmdir()


def require_writable_file(path: Path, flag: str) -> None:
    """Raise ConfigError, before any work, if no file can be written at `path`; leaves nothing behind."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; give a file.")
    _try_folder(path.parent, f"{flag} {path}")


def require_writable_folder(path: Path, flag: str) -> None:
    """Raise ConfigError, before any work, if no files can be written into folder `path`; leaves nothing behind."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{flag} {path} is a file; give a folder.")
    _try_folder(path, f"{flag} {path}")


def _try_folder(folder: Path, what: str) -> None:
    """By doing it: permissions alone do not tell of read-only and special file systems."""
    made: list[Path] = []
    try:
        made = make_folders(folder.absolute())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} cannot be written ({error}); choose another place.") from None
    finally:
        remove_folders(made)
