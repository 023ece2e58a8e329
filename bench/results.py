"""Says which files of bench/results can be trusted: schema, checksum, and a clean commit with the sources they name.

python -m bench.results              # a line for each file; writes nothing
python -m bench.results --record     # also writes the share that is valid to bench/results/results_valid.json
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from bench.record import checksum, figure, write_record
from mjx_so101 import ConfigError, SO101Error
from train.provenance import ROOT, hash_of, is_source

FOLDER = ROOT / "bench" / "results"
SHARE = "results_valid.json"
_TEXTS = ("command", "commit", "device", "source_sha256", "time_utc", "checksum")


def problems(record: Any) -> list[str]:
    """What is wrong with a record by itself; nothing if it fits the schema and its checksum."""
    if not isinstance(record, dict):
        return ["it is no JSON object"]
    found = [f"{name} is missing or no text" for name in _TEXTS if not isinstance(record.get(name), str)]
    if found:
        return found
    if not re.fullmatch("[0-9a-f]{40}", record["commit"]):
        found.append(f"commit {record['commit']!r} has not 40 hex digits")
    if not re.fullmatch("[0-9a-f]{64}", record["source_sha256"]):
        found.append("source_sha256 has not 64 hex digits")
    if record.get("dirty") is not False:
        found.append(f"dirty is {record.get('dirty')}: the code was not that of the commit")
    if not {"python", "jax", "mujoco"} <= set(record.get("versions") or ()):
        found.append("versions lack python, jax or mujoco")
    if not record["device"].startswith("CPU") and not record.get("driver"):
        found.append("driver is missing, but the device is no CPU")
    for name in ("seeds", "num_envs"):
        if not isinstance(record.get(name), list) or not all(type(value) is int for value in record[name]):
            found.append(f"{name} is no list of whole numbers")
    if not record.get("seeds"):
        found.append("seeds is empty")
    if not isinstance(record.get("conditions"), dict):
        found.append("conditions is no object")
    found += _headline_problems(record.get("headline"))
    if checksum(record) != record["checksum"]:
        found.append("the checksum does not fit: the file was edited after it was written")
    return found


def _headline_problems(headline: Any) -> list[str]:
    if not isinstance(headline, list) or not headline:
        return ["headline is no list of figures"]
    found, names = [], []
    for entry in headline:
        if not isinstance(entry, dict) or not {"name", "value", "unit"} <= set(entry):
            found.append(f"figure {entry!r} lacks name, value or unit")
            continue
        name, numbers = entry["name"], [entry[key] for key in ("value", "low", "high") if key in entry]
        names.append(name)
        if not isinstance(name, str) or not re.fullmatch("[a-z0-9_.]+", name):
            found.append(f"name {name!r} is no word of a-z, 0-9, _ and .")
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            found.append(f"{name} is {numbers}: no finite number")
        elif entry["unit"] == "fraction" and not all(0 <= number <= 1 for number in numbers):
            found.append(f"{name} is {numbers}: a fraction lies in [0, 1]")
    if len(set(map(str, names))) != len(names):
        found.append("two figures have one name")
    return found


def has_history(root: Path = ROOT) -> bool:
    """Whether every commit can be looked up here: a git checkout that is not shallow."""
    try:
        answer = _git(root, "rev-parse", "--is-shallow-repository", "--show-toplevel").decode().split("\n")
    except (OSError, subprocess.CalledProcessError):
        return False
    return answer[0] == "false" and Path(answer[1]).resolve() == root.resolve()


@functools.cache
def sources_of(commit: str, root: Path = ROOT) -> str | None:
    """Hash over the sources of a commit; None if the repository has no such commit."""
    try:
        data = _git(root, "archive", "--format=tar", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError:
        return None
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        wanted = [member for member in archive if member.isfile() and is_source(member.name)]
        return hash_of({member.name: archive.extractfile(member).read() for member in wanted})  # type: ignore[union-attr]


def commit_problems(record: dict[str, Any], root: Path = ROOT) -> list[str]:
    """What git says against a record."""
    sources = sources_of(record["commit"], root)
    if sources is None:
        return [f"commit {record['commit']} is not in this repository"]
    if sources != record["source_sha256"]:
        return [f"the sources measured are not those of commit {record['commit']}"]
    return []


def check(path: Path, history: bool) -> list[str]:
    """All that is wrong with a file; `history`: whether git can be asked."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return [f"it cannot be read: {error}"]
    return problems(record) or (commit_problems(record) if history else [])


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout


def main(arguments: list[str] | None = None, folder: Path = FOLDER) -> bool:
    """Print a line for each file; gives whether all are valid."""
    parser = argparse.ArgumentParser(prog="python -m bench.results", description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help=f"write the share that is valid to {SHARE}")
    record = parser.parse_args(arguments).record
    history = has_history()
    if record and not history:
        raise ConfigError("commits cannot be looked up here; run this in a git checkout with its whole history.")
    files = [path for path in sorted(folder.glob("*.json")) if path.name != SHARE]
    wrong = {path.name: check(path, history) for path in files}
    for name, found in wrong.items():
        print(f"{'invalid' if found else 'valid':8} {name}" + "".join(f"\n         {text}" for text in found))
    valid = sum(not found for found in wrong.values())
    print(f"{valid} of {len(files)} valid" + ("" if history else "; commits not looked up: no git history here"))
    if record and not files:
        raise ConfigError(f"{folder} holds no results; there is no share to record.")
    if record:
        headline = [figure("results_valid", valid / len(files), "fraction")]
        write_record(folder / SHARE, headline, files=wrong)
    return valid == len(files)


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except SO101Error as error:
        sys.exit(f"error: {error}")
