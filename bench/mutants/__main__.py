"""Mutation testing of the core: mutants are drawn, run against the tests that import their module, and scored.

python -m bench.mutants sample --seed 0 --count 220 --out sample.json      (needs cosmic-ray; nothing else does)
python -m bench.mutants run sample.json --results sample.jsonl --workers 2 (again to go on where it stopped)
python -m bench.mutants report sample.json --results sample.jsonl --out bench/results/mutants.json
python -m bench.mutants named --results named.jsonl --out bench/results/named_mutants.json
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import tyro

from bench.mutants.modules import TESTS, Groups, groups_of
from bench.mutants.mutant import Mutant
from bench.mutants.named import named_mutants
from bench.mutants.report import read_equivalent, report
from bench.mutants.run import Results, Settings, check_unchanged, run_mutants
from bench.mutants.sample import read, write
from bench.record import figure, write_record
from mjx_so101.errors import ConfigError, SO101Error

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw mutants with a seed, in proportion to the lines of the modules."""

    seed: int = 0
    count: int = 220
    modules: tuple[str, ...] = tuple(TESTS)
    out: Path = Path("mutants.json")


@dataclasses.dataclass(frozen=True)
class Running:
    """How mutants run."""

    results: Path = Path("mutants.jsonl")
    """JSON lines, one for each mutant as it ends; what is in there does not run again."""
    workers: int = 1
    """Mutants at a time, each on one core."""
    minutes: float = 10_000
    """No mutant is started after this time; what still runs half a minute later is stopped and runs another time."""
    timeout: float = 60.0
    """A mutant counts as killed this long (s) after five times the time that its tests take without it."""
    work: Path = ROOT / ".cache" / "mutants"
    """Folder of copies of the tree and of compiled programs."""

    def run(self, mutants: list[Mutant], tests: dict[str, Groups]) -> Results:
        """Run what has no result yet, after the tests of the unchanged tree."""
        begin, results = time.monotonic(), Results(self.results)
        settings = Settings(ROOT, self.work, self.workers, 60 * self.minutes, self.timeout)
        check_unchanged(settings, tests, results)
        left = dataclasses.replace(settings, seconds=settings.seconds - (time.monotonic() - begin))
        run_mutants(left, mutants, tests, results)
        return results


@dataclasses.dataclass(frozen=True)
class Run(Running):
    """Run the mutants of a sample that have no result yet."""

    sample: tyro.conf.Positional[Path] = Path("mutants.json")
    part: str = "1/1"
    """Only every N-th mutant: I/N, from 1/N to N/N. Give each part results of its own and name all in `report`."""
    again: bool = False
    """Run the survivors of an earlier run again: there are new tests."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Score a sample that has run."""

    sample: tyro.conf.Positional[Path] = Path("mutants.json")
    results: tuple[Path, ...] = (Path("mutants.jsonl"),)
    equivalent: Path = Path(__file__).parent / "equivalent.txt"
    """Mutants that no test can tell from the program, with a reason each."""
    out: Path | None = None
    """Record to write."""


@dataclasses.dataclass(frozen=True)
class Named(Running):
    """Run the mutants of `bench.mutants.named`, mistakes that were once made or passed every test."""

    results: Path = Path("named_mutants.jsonl")
    out: Path | None = None
    """Record to write."""


def main(config: Sample | Run | Report | Named) -> None:
    """What the subcommand says."""
    {Sample: _sample, Run: _run, Report: _report, Named: _named}[type(config)](config)


def _sample(config: Sample) -> None:
    drawn = write(ROOT, config.modules, config.seed, config.count, config.out)
    print(f"{len(drawn)} mutants of {len(config.modules)} files: {config.out}")


def _run(config: Run) -> None:
    mutants = read(ROOT, config.sample)[1][part(config.part)]
    if config.again:
        Results(config.results).forget_survivors()
    results = config.run(mutants, {mutant.name: groups_of(mutant.path) for mutant in mutants})
    outcomes = [results.entries[m.name]["outcome"] for m in mutants if m.name in results.entries]
    print(f"{len(outcomes)} of {len(mutants)} mutants have run, {outcomes.count('survived')} survived.")


def _report(config: Report) -> None:
    document, mutants = read(ROOT, config.sample)
    entries = {name: entry for path in config.results for name, entry in Results(path).entries.items()}
    found = report(mutants, entries, read_equivalent(config.equivalent))
    for mutant in found["survivors"]:
        print(f"survived: {mutant['name']} {mutant['diff']}")
    for path, row in {**found["modules"], "all": found["total"]}.items():
        print(f"{row['score']:.1%} ({row['low']:.1%} to {row['high']:.1%}) of {row['mutants']} mutants: {path}")
    if config.out:
        total = found["total"]
        headline = [figure("mutation_score", total["score"], "fraction", low=total["low"], high=total["high"])]
        write_record(config.out, headline, seeds=[document["seed"]], conditions={"tool": document["tool"]}, **found)


def _named(config: Named) -> None:
    named = named_mutants(ROOT)
    mutants = [mutant for mutant, _ in named]
    results = config.run(mutants, {mutant.name: groups for mutant, groups in named})
    rows = [{"diff": mutant.diff, **results.entries.get(mutant.name, {"outcome": "not run"})} for mutant in mutants]
    caught = sum(row["outcome"] in ("killed", "timeout") for row in rows)
    print(f"{caught} of {len(rows)} named mutants are caught.")
    if any(row["outcome"] == "not run" for row in rows):
        print("Some have not run yet: give the same command again.")
    elif config.out:
        write_record(config.out, [figure("mutants_caught", caught / len(rows), "fraction")], rows=rows)


def part(text: str) -> slice:
    """The slice that I/N means. Raises ConfigError for anything else."""
    first, _, parts = text.partition("/")
    if not (first.isdecimal() and parts.isdecimal() and 1 <= int(first) <= int(parts)):
        raise ConfigError(f"part is {text!r}; give I/N with I from 1 to N, as in 1/4.")
    return slice(int(first) - 1, None, int(parts))


if __name__ == "__main__":
    try:
        main(tyro.cli(Sample | Run | Report | Named, description=__doc__))
    except SO101Error as error:
        sys.exit(f"error: {error}")
