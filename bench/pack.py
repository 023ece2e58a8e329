"""Makes an archive of a commit that knows its commit, for machines without git.

    python -m bench.pack mjx_so101.tar.gz    # the commit, with .commit.json in its root
    python -m bench.pack --stamp             # only .commit.json, before the folder itself is copied

What runs from the copy is recorded with that commit, and as dirty if its sources are not those that were packed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mjx_so101 import ConfigError, SO101Error
from train.provenance import ROOT, STAMP, source_of


def stamp(root: Path, allow_dirty: bool = False) -> str:
    """Text of the stamp. Raises ConfigError outside a checkout, or if its sources are changed."""
    found = source_of(root)
    if not (root / ".git").exists():
        raise ConfigError(f"{root} is no git checkout; run this where the commit was made.")
    if found.dirty and not allow_dirty:
        raise ConfigError(
            "sources differ from the commit (git status); commit them, or give --allow-dirty, which is recorded."
        )
    return json.dumps(found._asdict(), indent=2) + "\n"


def pack(root: Path, out: Path, allow_dirty: bool = False) -> None:
    """Write the archive (.tar.gz): HEAD, or with `allow_dirty` what is on disk but ignored files."""
    text = stamp(root, allow_dirty)
    tree = _tree_on_disk(root) if json.loads(text)["dirty"] else "HEAD"
    with tempfile.TemporaryDirectory() as folder:
        extra = Path(folder) / STAMP
        extra.write_text(text)
        _git(
            root, "archive", "--format=tar.gz", "--prefix=mjx_so101/", f"--add-file={extra}",
            f"--output={out.resolve()}", tree,
        )  # fmt: skip


def _tree_on_disk(root: Path) -> str:
    """The files on disk as a git tree, made with an index of its own: the checkout's stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git(root, "read-tree", "HEAD", **index)
        _git(root, "add", "--all", **index)
        return _git(root, "write-tree", **index)


def _git(root: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, env={**os.environ, **variables}
    )
    if done.returncode:
        raise ConfigError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.pack", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", help="archive to write, .tar.gz")
    parser.add_argument("--stamp", action="store_true", help=f"write {STAMP} beside the sources")
    parser.add_argument("--allow-dirty", action="store_true", help="take uncommitted changes with it")
    given = parser.parse_args(arguments)
    if given.stamp == (given.out is not None):
        raise ConfigError("nothing to do: name the archive to write, or give --stamp (one of them).")
    if given.stamp:
        (root / STAMP).write_text(stamp(root, given.allow_dirty))
        print(f"written: {root / STAMP}")
    else:
        pack(root, given.out, given.allow_dirty)
        print(f"written: {given.out}")


if __name__ == "__main__":
    try:
        main()
    except SO101Error as error:
        sys.exit(f"error: {error}")
