"""A mutant: one small change to one source file, kept as the lines that it replaces."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from pathlib import Path
from typing import Any

from mjx_so101.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Mutant:
    """`old` lines of a file, from `line` on, become `new`."""

    name: str
    """Unique and the same for the same change, wherever in the file it stands; of a named mutant its name."""
    path: str
    """Source file, from the root of the tree."""
    line: int
    """First changed line, from 1."""
    old: tuple[str, ...]
    new: tuple[str, ...]
    operator: str

    @property
    def diff(self) -> str:
        """The change as in a unified diff, without context."""
        return "\n".join([f"{self.path}:{self.line}", *(f"-{x}" for x in self.old), *(f"+{x}" for x in self.new)])

    def apply(self, root: Path) -> str:
        """The mutated text of the file under `root`. Raises ConfigError if the file no longer holds the old lines."""
        lines = (root / self.path).read_text().split("\n")
        begin, end = self.line - 1, self.line - 1 + len(self.old)
        if tuple(lines[begin:end]) != self.old:
            raise ConfigError(
                f"mutant {self.name} no longer fits {self.path}:{self.line}, which now reads {lines[begin:end]!r}, "
                f"not {list(self.old)!r}; draw the sample again with `python -m bench.mutants sample`."
            )
        return "\n".join([*lines[:begin], *self.new, *lines[end:]])

    def to_json(self) -> dict[str, Any]:
        """For a sample's file; the diff is for the reader."""
        return {**dataclasses.asdict(self), "diff": self.diff}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Mutant:
        """Inverse of `to_json`."""
        values = {field.name: entry[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**values, "old": tuple(values["old"]), "new": tuple(values["new"])})


def mutant_of(path: str, source: str, mutated: str, operator: str, name: str = "") -> Mutant:
    """The mutant that makes `mutated` out of `source`; without a name it gets one that follows from the change."""
    old, new = source.split("\n"), mutated.split("\n")
    changed = [c for c in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if c[0] != "equal"]
    if not changed:
        raise ConfigError(f"mutant {name or operator} of {path} changes nothing.")
    (_, begin, _, new_begin, _), (_, _, end, _, new_end) = changed[0], changed[-1]
    before, after = tuple(old[begin:end]), tuple(new[new_begin:new_end])
    # A line that occurs twice in a file gives two mutants: which of them counts as part of the name.
    earlier = sum(tuple(old[i : i + len(before)]) == before for i in range(begin))
    text = "\0".join([path, *before, "", *after, str(earlier)])
    return Mutant(name or hashlib.sha1(text.encode()).hexdigest()[:10], path, begin + 1, before, after, operator)


def replaced(root: Path, path: str, old: str, new: str, name: str) -> Mutant:
    """The mutant in which `old` became `new`. Raises ConfigError unless `old` stands in the file exactly once."""
    source = (root / path).read_text()
    count = source.count(old)
    if count != 1:
        raise ConfigError(f"mutant {name}: {old!r} stands {count} times in {path}; it must stand there exactly once.")
    return mutant_of(path, source, source.replace(old, new), "by hand", name)
