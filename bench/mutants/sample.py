"""Draws a seeded sample of mutants with the operators of cosmic-ray, in proportion to the lines of the modules."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.mutants.mutant import Mutant, mutant_of
from mjx_so101.errors import ConfigError

ARITHMETIC = ("Add", "Sub", "Mul", "Div")
BITWISE = ("BitAnd", "BitOr", "BitXor")
ORDER = ("Lt", "LtE", "Gt", "GtE", "Eq", "NotEq")
FROM_ARITHMETIC = (*ARITHMETIC, "FloorDiv", "Mod", "Pow")
OPPOSITES = {("Is", "IsNot"), ("IsNot", "Is"), ("In", "NotIn"), ("NotIn", "In")}
UNPARAMETRIZED_ONLY = ("VariableReplacer", "VariableInserter")  # they replace a variable by a random number


def fitting(operator: str) -> bool:
    """Whether an operator of cosmic-ray gives mutants that run. `+` becomes `-`, not `>>`: floats have no shift, so
    every test would fail at once and the score would be flattered."""
    kind, _, rest = operator.removeprefix("core/").partition("_")
    before, _, after = rest.partition("_")
    if kind == "ReplaceBinaryOperator":
        return (before in FROM_ARITHMETIC and after in ARITHMETIC) or (before in BITWISE and after in BITWISE)
    if kind == "ReplaceComparisonOperator":
        return (before in ORDER and after in ORDER) or (before, after) in OPPOSITES
    return kind not in UNPARAMETRIZED_ONLY


def without_effect(tree: ast.AST) -> set[tuple[int, int]]:
    """Places (line, column) inside annotations, which nothing evaluates: `int | None` is no disjunction."""
    annotations: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg):
            annotations.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            annotations.append(node.returns)
    return {
        (line, column)
        for node in annotations
        if node is not None
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for column in range(
            node.col_offset if line == node.lineno else 0,
            (node.end_col_offset or 0) if line == node.end_lineno else 1000,
        )
    }


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """Every mutant of one source text that compiles and is another program.

    Raises ConfigError where cosmic-ray is missing (only this function needs it).
    """
    try:
        from cosmic_ray import mutating, plugins
        from cosmic_ray.ast import ast_nodes, get_ast
    except ImportError as error:
        raise ConfigError("drawing mutants needs cosmic-ray: pip install 'mjx-so101[test]'.") from error
    tree = ast.parse(source)
    skipped, original, seen = without_effect(tree), ast.dump(tree), set()
    nodes = list(ast_nodes(get_ast(source)))
    for name in filter(fitting, sorted(plugins.operator_names())):
        operator = plugins.get_operator(name)()
        places = itertools.chain.from_iterable(operator.mutation_positions(node) for node in nodes)
        for occurrence, (begin, _) in enumerate(places):
            if begin in skipped:
                continue
            mutated = mutating.mutate_code(source, operator, occurrence)
            try:
                meaning = ast.dump(ast.parse(mutated or ""))
                compile(mutated or "", path, "exec")
            except SyntaxError:
                continue
            if meaning != original and meaning not in seen:
                seen.add(meaning)
                yield mutant_of(path, source, mutated, name.removeprefix("core/"))


def shares(lines: Mapping[str, int], count: int) -> dict[str, int]:
    """`count` divided in proportion to `lines`, by the largest remainders."""
    exact = {name: count * n / sum(lines.values()) for name, n in lines.items()}
    given = {name: int(value) for name, value in exact.items()}
    left = count - sum(given.values())
    for name in sorted(exact, key=lambda n: given[n] - exact[n])[:left]:
        given[name] += 1
    return given


def spread(mutants: list[Mutant], count: int, rng: random.Random) -> list[Mutant]:
    """`count` of the mutants: one of each line in random order, then a second one of each, and so on."""
    by_line = defaultdict(list)
    for mutant in mutants:
        by_line[mutant.line].append(mutant)
    for choices in by_line.values():
        rng.shuffle(choices)
    order = rng.sample(sorted(by_line), len(by_line))
    rounds = itertools.zip_longest(*(by_line[line] for line in order))
    return [mutant for row in rounds for mutant in row if mutant is not None][:count]


def sample(root: Path, paths: tuple[str, ...], seed: int, count: int) -> list[Mutant]:
    """`count` mutants of the files `paths` under `root`, in random order so that any part of them is a sample too.

    Raises ConfigError if a file has too few mutants for its share.
    """
    rng = random.Random(seed)
    sources = {path: (root / path).read_text() for path in paths}
    drawn = []
    for path, share in shares({path: text.count("\n") for path, text in sources.items()}, count).items():
        every = list(mutants_of(path, sources[path]))
        if len(every) < share:
            raise ConfigError(f"count is {count}; {path} has {len(every)} mutants, {share} are its share: lower it.")
        drawn += spread(every, share, rng)
    rng.shuffle(drawn)
    return drawn


def write(root: Path, paths: tuple[str, ...], seed: int, count: int, out: Path) -> list[Mutant]:
    """Draw a sample and write it to the file `out`."""
    from importlib.metadata import version

    drawn = sample(root, paths, seed, count)
    document = {
        "tool": f"cosmic-ray {version('cosmic-ray')}",
        "seed": seed,
        "sources": {path: _digest(root / path) for path in paths},
        "mutants": [mutant.to_json() for mutant in drawn],
    }
    out.write_text(json.dumps(document, indent=1) + "\n")
    return drawn


def read(root: Path, path: Path) -> tuple[dict[str, Any], list[Mutant]]:
    """A sample's file and its mutants. Raises ConfigError if one of the files under `root` has changed since."""
    if not path.exists():
        raise ConfigError(f"sample {path} does not exist; draw one with `python -m bench.mutants sample --out {path}`.")
    document = json.loads(path.read_text())
    for name, digest in document["sources"].items():
        if _digest(root / name) != digest:
            raise ConfigError(f"{name} has changed since {path} was drawn; draw the sample again and run all of it.")
    return document, [Mutant.from_json(entry) for entry in document["mutants"]]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
