"""Writes a figure of README to bench/results: headline, command, commit, device, versions, and what it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.report import provenance


def figure(name: str, value: float, unit: str) -> dict[str, Any]:
    """One headline figure; rates are fractions of 1."""
    return {"name": name, "value": value, "unit": unit}


def write_record(path: Path, headline: list[dict[str, Any]], **details: Any) -> dict[str, Any]:
    """Write one JSON record to `path`; gives it back."""
    record = {"headline": headline, **provenance(), **details}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {path}")
    return record
