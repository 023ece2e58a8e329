"""Writes a figure of README to bench/results: headline, where it comes from, under which conditions, and a checksum."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.provenance import provenance, source

source()  # the code as it is when the measurement begins


def word_of(name: str) -> str:
    """A randomization's name, say, as part of a figure's: small letters, digits and underscores."""
    return re.sub("[^a-z0-9]+", "_", name.lower())


def figure(name: str, value: float, unit: str, **interval: float) -> dict[str, Any]:
    """One headline figure; rates are fractions of 1. interval: `low` and `high`, 95 %, where there is one."""
    return {"name": name, "value": value, "unit": unit, **interval}


def checksum(record: dict[str, Any]) -> str:
    """sha256 over the record without its checksum, as canonical JSON: a record edited by hand no longer fits it."""
    rest = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_record(
    headline: list[dict[str, Any]],
    *,
    seeds: Sequence[int] = (0,),
    num_envs: Sequence[int] = (),
    conditions: dict[str, Any] | None = None,
    device: str | None = None,
    **details: Any,
) -> dict[str, Any]:
    """The record of a figure.

    seeds: all that were used; num_envs: environment counts, empty where there are none; conditions: what a reader must
    know to read the headline; device: only if another process computed (see `provenance`).
    """
    record = {
        "headline": headline,
        **provenance(device),
        "seeds": list(seeds),
        "num_envs": list(num_envs),
        "conditions": conditions or {},
        **details,
    }
    record = json.loads(json.dumps(record))  # as it is read again
    return {**record, "checksum": checksum(record)}


def write_record(path: Path, headline: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
    """Write a record (see `make_record`) to `path`; gives it back."""
    record = make_record(headline, **rest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {path}")
    return record
