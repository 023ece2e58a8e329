"""Runs mutants against their tests, in parallel; results go to a file that a later run goes on from.

This needs nothing but what the tests need: it runs from a plain copy of the tree, without git or cosmic-ray.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.mutants.modules import Groups
from bench.mutants.mutant import Mutant
from bench.mutants.worker import Worker
from mjx_so101.errors import HealthError

PATIENCE = 5.0
GRACE = 30.0
"""Mutants that still run this long (s) after the end of the time are stopped, and run again another time."""


@dataclass(frozen=True)
class Settings:
    """How to run."""

    root: Path
    """The tree that is mutated; it is only read."""
    work: Path
    """Folder of the copies and of what they compile."""
    workers: int = 1
    seconds: float = 1e6
    """No mutant is started after this time."""
    timeout: float = 60.0
    """A mutant may loop for ever: it counts as killed after this time (s) and PATIENCE times as long as the same tests
    take with the unchanged tree."""


class Results:
    """Results by name, in a file of JSON lines that may end in half a line."""

    def __init__(self, path: Path):
        """Reads the file if there is one."""
        self.path, self.entries, self._lock = path, {}, threading.Lock()
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        for line in lines:
            if line.endswith("\n"):
                entry = json.loads(line)
                self.entries[entry["name"]] = entry
        if lines and not lines[-1].endswith("\n"):
            self.write()  # the run was stopped while it wrote this line: the mutant runs again

    def write(self) -> None:
        """Write the whole file anew."""
        new = self.path.with_suffix(".new")
        new.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries.values()))
        new.replace(self.path)

    def add(self, name: str, outcome: str, by: str, begin: float) -> None:
        """Add one result, to the file too; it took from `begin` until now."""
        entry = {"name": name, "outcome": outcome, "by": by, "seconds": round(time.monotonic() - begin, 1)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            self.entries[entry["name"]] = entry
            print(len(self.entries), *entry.values(), flush=True)

    def forget_survivors(self) -> None:
        """Let the survivors run again, because there are new tests."""
        self.entries = {name: e for name, e in self.entries.items() if e["outcome"] != "survived"}
        self.write()


def check_unchanged(settings: Settings, tests: Mapping[str, Groups], results: Results) -> None:
    """Run the tests of the unchanged tree, which also fills the folder of compiled programs.

    Raises HealthError unless all pass: a test that always fails kills every mutant.
    """
    jobs = {_unchanged(group): group for groups in tests.values() for group in groups}

    def job(worker: Worker, name: str, end: float) -> None:
        begin = time.monotonic()
        outcome, by = worker.run(jobs[name], end - begin)
        if outcome == "killed":
            raise HealthError(f"tests fail without any mutant, so they would kill every one: {by}")
        if outcome == "survived":
            worker.keep_compiled()
            results.add(name, outcome, by, begin)

    _share_out(settings, [name for name in jobs if name not in results.entries], job)


def run_mutants(settings: Settings, mutants: Sequence[Mutant], tests: Mapping[str, Groups], results: Results) -> None:
    """Run those of `mutants` that have no result yet. tests: groups of test files by name of mutant."""
    by_name = {mutant.name: mutant for mutant in mutants}

    def job(worker: Worker, name: str, end: float) -> None:
        begin, outcome, by = time.monotonic(), "survived", ""
        for group in tests[name]:
            left = end - time.monotonic()
            longest = settings.timeout + PATIENCE * results.entries[_unchanged(group)]["seconds"]
            outcome, by = worker.run(group, min(longest, left), by_name[name])
            if outcome == "timeout" and left < longest:
                return  # this run is over, and nothing is known of the mutant
            if outcome != "survived":
                break
        results.add(name, outcome, by, begin)

    _share_out(settings, [name for name in by_name if name not in results.entries], job)


def _unchanged(group: tuple[str, ...]) -> str:
    return f"unchanged: {' '.join(group)}"


def _share_out(settings: Settings, names: list[str], job: Callable[[Worker, str, float], None]) -> None:
    """Let the workers do `job(worker, name, end)` for each name; the first fault ends all and is raised."""
    end, waiting, faults = time.monotonic() + settings.seconds, iter(names), []
    lock, workers = threading.Lock(), []

    def work(index: int) -> None:
        try:
            worker = Worker(settings.root, settings.work, index, pinned=settings.workers > 1)
            workers.append(worker)
            while time.monotonic() < end and not faults:
                with lock:
                    name = next(waiting, None)
                if name is None:
                    return
                job(worker, name, end + GRACE)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(min(settings.workers, len(names)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as fault:  # Ctrl-C reaches this thread, and the tests run in sessions of their own
        faults.append(fault)
        for worker in workers:
            worker.stop()
        raise
    if faults:
        raise faults[0]
