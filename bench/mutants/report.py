"""Scores a mutation run: the share of mutants that the tests kill, with interval, by module, and who survives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.mutants.mutant import Mutant
from mjx_so101.errors import ConfigError
from train.statistics import wilson_interval

LARGEST_SHARE = 0.05
"""Equivalent mutants in a sample, at most."""


def read_equivalent(path: Path) -> dict[str, str]:
    """Reasons by name of mutant: lines `NAME REASON`; empty ones and those from # on are comments.

    Raises ConfigError for a mutant without a reason.
    """
    reasons = {}
    for line in path.read_text().splitlines():
        name, _, reason = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        if not reason.strip():
            raise ConfigError(f"{path}: mutant {name} has no reason; say why no test can tell it from the program.")
        reasons[name] = reason.strip()
    return reasons


def score(mutants: Sequence[Mutant], results: Mapping[str, dict], equivalent: Mapping[str, str]) -> dict[str, Any]:
    """Counts and the share killed with its Wilson 95 % interval; equivalent mutants do not count."""
    counted = [results[mutant.name]["outcome"] for mutant in mutants if mutant.name not in equivalent]
    killed, timeout = counted.count("killed"), counted.count("timeout")
    low, high = wilson_interval(killed + timeout, len(counted)) if counted else (0.0, 1.0)
    return {
        "mutants": len(mutants),
        "equivalent": len(mutants) - len(counted),
        "killed": killed,
        "timeout": timeout,  # killed too: the tests did not end
        "survived": counted.count("survived"),
        "score": (killed + timeout) / len(counted) if counted else 0.0,
        "low": low,
        "high": high,
    }


def report(mutants: Sequence[Mutant], results: Mapping[str, dict], equivalent: Mapping[str, str]) -> dict[str, Any]:
    """All of a run. Raises ConfigError if a mutant did not run, or more are called equivalent than is believable."""
    missing = [mutant.name for mutant in mutants if mutant.name not in results]
    if missing:
        raise ConfigError(f"{len(missing)} of {len(mutants)} mutants did not run yet ({missing[0]}, ..): run them.")
    named = {mutant.name: equivalent[mutant.name] for mutant in mutants if mutant.name in equivalent}
    killed = sorted(name for name in named if results[name]["outcome"] != "survived")
    if killed:
        raise ConfigError(f"mutant {killed[0]} is listed as equivalent, but {results[killed[0]]['by']} kills it.")
    if len(named) > LARGEST_SHARE * len(mutants):
        raise ConfigError(
            f"{len(named)} of {len(mutants)} mutants are listed as equivalent; at most {LARGEST_SHARE:.0%} may be."
        )
    survivors = [m for m in mutants if results[m.name]["outcome"] == "survived"]
    paths = dict.fromkeys(sorted(mutant.path for mutant in mutants))
    return {
        "total": score(mutants, results, equivalent),
        "modules": {path: score([m for m in mutants if m.path == path], results, equivalent) for path in paths},
        "survivors": [{"name": m.name, "diff": m.diff} for m in survivors if m.name not in named],
        "equivalent": [{"name": m.name, "diff": m.diff, "reason": named[m.name]} for m in survivors if m.name in named],
        "results": [{"diff": m.diff, **results[m.name]} for m in mutants],
    }
