"""bench.mutants draws mutants in proportion to lines, kills those that tests see, and goes on where it stopped."""

import ast
import functools
import hashlib
import importlib.util
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.mutants import named
from bench.mutants.__main__ import part
from bench.mutants.modules import TESTS, groups_of
from bench.mutants.mutant import Mutant, mutant_of, replaced
from bench.mutants.report import read_equivalent, report
from bench.mutants.run import Results, Settings, check_unchanged, run_mutants
from bench.mutants.sample import fitting, read, sample, shares, write
from bench.mutants.worker import first_failure
from mjx_so101 import ConfigError, HealthError

ROOT = Path(__file__).parents[2]
SOURCE = '''"""A tiny module."""


def larger(a: int | None, b: int) -> int:
    limit = 10
    return a if a > b else b


def next_of(n):
    while n > 100:
        n = n - 1
    return n + 1
'''
TEST = """from policies.tiny import larger, next_of


def test_it():
    assert (larger(2, 1), next_of(101)) == (2, 101)
"""
GROUPS = (("tests/test_tiny.py",),)


@pytest.fixture
def tree(tmp_path):
    """A tree with one module and its test."""
    for path, text in {"policies/__init__.py": "", "policies/tiny.py": SOURCE, "tests/test_tiny.py": TEST}.items():
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_text(text)
    return tmp_path / "tree"


def tiny(name, old, new, root) -> Mutant:
    return replaced(root, "policies/tiny.py", old, new, name)


def test_wrong_is_killed_and_harmless_survives(tree, tmp_path):
    mutants = [tiny("wrong", "a > b", "a < b", tree), tiny("harmless", "limit = 10", "limit = 11", tree)]
    results, settings = Results(tmp_path / "r.jsonl"), Settings(tree, tmp_path / "work")
    tests = {mutant.name: GROUPS for mutant in mutants}
    check_unchanged(settings, tests, results)
    run_mutants(settings, mutants, tests, results)
    assert [results.entries[mutant.name]["outcome"] for mutant in mutants] == ["killed", "survived"]
    assert results.entries["wrong"]["by"] == "tests/test_tiny.py::test_it"
    assert (tree / "policies" / "tiny.py").read_text() == SOURCE

    found = report(mutants, results.entries, {})
    assert found["total"]["score"] == found["modules"]["policies/tiny.py"]["score"] == 0.5
    assert [entry["name"] for entry in found["survivors"]] == ["harmless"]


def test_endless_mutant_is_stopped_and_counted_apart(tree, tmp_path):
    endless, results, tests = (
        tiny("endless", "n - 1", "n - 0", tree),
        Results(tmp_path / "r.jsonl"),
        {"endless": GROUPS},
    )
    results.add("unchanged: tests/test_tiny.py", "survived", "", time.monotonic() - 0.2)
    short = Settings(tree, tmp_path / "work", timeout=1)
    run_mutants(short, [endless], tests, results)
    total = report([endless], results.entries, {})["total"]
    assert (total["timeout"], total["killed"], total["score"]) == (1, 0, 1.0)


def test_tests_that_fail_anyway_are_refused(tree, tmp_path):
    (tree / "tests" / "test_tiny.py").write_text("def test_it():\n    assert False\n")
    results = Results(tmp_path / "r.jsonl")
    with pytest.raises(HealthError, match="without any mutant"):
        check_unchanged(Settings(tree, tmp_path / "work"), {"x": GROUPS}, results)
    assert not Results(tmp_path / "r.jsonl").entries  # what is wrong is not taken for done


def test_what_ran_does_not_run_again(tree, tmp_path):
    mutants = [tiny(name, "limit = 10", f"limit = {i}", tree) for i, name in enumerate(("one", "two", "three"))]
    old = {"name": "one", "outcome": "killed", "by": "before", "seconds": 1.0}
    whole = {"name": "unchanged: tests/test_tiny.py", "outcome": "survived", "by": "", "seconds": 1.0}
    path = tmp_path / "r.jsonl"  # of a run that was stopped while it wrote
    path.write_text(f'{json.dumps(whole)}\n{json.dumps(old)}\n{{"name": "two", "outc')
    settings, tests = Settings(tree, tmp_path / "work", workers=2), {mutant.name: GROUPS for mutant in mutants}
    run_mutants(Settings(tree, tmp_path / "work", seconds=0), mutants, tests, Results(path))
    assert set(Results(path).entries) == {whole["name"], "one"}  # no time, no result
    run_mutants(settings, mutants, tests, Results(path))
    results = Results(path)
    assert results.entries["one"] == old
    assert results.entries["two"]["outcome"] == results.entries["three"]["outcome"] == "survived"
    results.forget_survivors()
    assert set(Results(path).entries) == {"one"}


def test_missing_and_repeated_texts_are_errors(tree):
    with pytest.raises(ConfigError, match=r"'nowhere' stands 0 times in policies/tiny.py; it must .* exactly once"):
        tiny("x", "nowhere", "", tree)
    with pytest.raises(ConfigError, match="'def ' stands 2 times"):
        tiny("x", "def ", "", tree)
    mutant = tiny("x", "limit = 10", "limit = 11", tree)
    (tree / "policies" / "tiny.py").write_text("\n" + SOURCE)
    with pytest.raises(ConfigError, match=r"no longer fits policies/tiny\.py:5"):
        mutant.apply(tree)


def test_every_named_mistake_fits_the_code():
    mutants = named.named_mutants(ROOT)
    assert len({mutant.name for mutant, _ in mutants}) == len(named.MISTAKES)
    for mutant, groups in mutants:
        compile(mutant.apply(ROOT), mutant.path, "exec")
        assert all((ROOT / test.split("::")[0]).is_file() for group in groups for test in group)


@functools.cache
def imported(file: Path) -> set[Path]:
    """Files of this project that a file imports, at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    places = [ROOT / name.replace(".", "/") for name in names]
    return {p for place in places for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()}


def reached_from(files: set[Path]) -> set[Path]:
    """All that the files import, directly or not."""
    reached, new = set(), set(files)
    while new:
        reached |= new
        new = {path for file in new for path in imported(file)} - reached
    return reached


def test_tests_of_each_module_are_there_and_import_it():
    """... in the file, in a fixture of its conftest, or through what these import."""
    for path, groups in TESTS.items():
        for file in (ROOT / name for group in groups for name in group):
            conftests = {folder / "conftest.py" for folder in (file.parent, file.parent.parent)}
            assert ROOT / path in reached_from({file, *filter(Path.is_file, conftests)}), (path, file)
    with pytest.raises(ConfigError, match=r"module is 'train/loop.py'; choose one of"):
        groups_of("train/loop.py")


def test_mutant_is_the_lines_that_change_and_keeps_its_name():
    moved = "\n" + SOURCE
    one = mutant_of("m.py", SOURCE, SOURCE.replace("a > b", "a < b"), "op")
    assert (one.line, one.old, one.new) == (6, ("    return a if a > b else b",), ("    return a if a < b else b",))
    assert one.name == mutant_of("m.py", moved, moved.replace("a > b", "a < b"), "op").name
    assert one.name != mutant_of("n.py", SOURCE, SOURCE.replace("a > b", "a < b"), "op").name
    assert Mutant.from_json(json.loads(json.dumps(one.to_json()))) == one
    twice = "x = 1\nx = 1\n"
    assert (
        mutant_of("m.py", twice, "x = 2\nx = 1\n", "op").name != mutant_of("m.py", twice, "x = 1\nx = 2\n", "op").name
    )


def test_operators_give_programs_that_run():
    assert fitting("core/ReplaceBinaryOperator_Add_Sub") and fitting("core/ReplaceBinaryOperator_BitAnd_BitOr")
    assert not fitting("core/ReplaceBinaryOperator_Add_RShift")
    assert not fitting("core/ReplaceComparisonOperator_Lt_Is")
    assert fitting("core/ReplaceComparisonOperator_Is_IsNot") and fitting("core/NumberReplacer")


def test_shares_are_in_proportion_to_lines():
    assert shares({"a": 300, "b": 100, "c": 50}, 9) == {"a": 6, "b": 2, "c": 1}
    assert sum(shares({"a": 329, "b": 244, "c": 82, "d": 147, "e": 137}, 220).values()) == 220


@pytest.mark.skipif(not importlib.util.find_spec("cosmic_ray"), reason="needs cosmic-ray (extra 'test')")
def test_sample_is_seeded_spread_over_lines_and_real(tree):
    paths = ("policies/tiny.py", "policies/twin.py")
    (tree / "policies" / "twin.py").write_text(SOURCE)
    drawn = sample(tree, paths, seed=3, count=10)
    assert drawn == sample(tree, paths, seed=3, count=10) != sample(tree, paths, seed=4, count=10)
    assert Counter(mutant.path for mutant in drawn) == dict.fromkeys(paths, 5)
    for path in paths:  # a line gives a second mutant only after each has given one
        assert {mutant.line for mutant in drawn if mutant.path == path} == {5, 6, 10, 11, 12}
    for mutant in drawn:
        assert mutant.apply(tree) != SOURCE
    assert not any("int |" not in line and "int" in line for mutant in drawn for line in mutant.new)
    assert write(tree, paths, 3, 10, tree / "sample.json") == drawn
    document, again = read(tree, tree / "sample.json")
    assert again == drawn and document["tool"].startswith("cosmic-ray ") and document["seed"] == 3
    with pytest.raises(ConfigError, match="count is 1000"):
        sample(tree, paths, seed=0, count=1000)


def test_sample_of_other_sources_is_refused(tree):
    path = tree / "sample.json"
    with pytest.raises(ConfigError, match=r"sample\.json does not exist; draw one"):
        read(tree, path)
    digest = hashlib.sha256(SOURCE.encode()).hexdigest()
    path.write_text(json.dumps({"sources": {"policies/tiny.py": digest}, "mutants": []}))
    assert read(tree, path)[1] == []
    (tree / "policies" / "tiny.py").write_text(SOURCE + "\n")
    with pytest.raises(ConfigError, match=r"policies/tiny\.py has changed since .* was drawn"):
        read(tree, path)


def test_report_asks_for_every_result_and_few_reasons(tree, tmp_path):
    mutants = [tiny(f"m{i}", "limit = 10", f"limit = {11 + i}", tree) for i in range(40)]
    results = {m.name: {"name": m.name, "outcome": "killed", "by": "test_x", "seconds": 1.0} for m in mutants}
    with pytest.raises(ConfigError, match="1 of 40 mutants did not run yet"):
        report(mutants, {name: entry for name, entry in results.items() if name != "m3"}, {})
    with pytest.raises(ConfigError, match="m1 is listed as equivalent, but test_x kills it"):
        report(mutants, results, {"m1": "nobody reads limit"})
    for i in range(3):
        results[f"m{i}"] = {**results[f"m{i}"], "outcome": "survived", "by": ""}
    found = report(mutants, results, {"m0": "nobody reads limit", "m1": "nor here", "gone": "of another sample"})
    assert (found["total"]["equivalent"], found["total"]["survived"]) == (2, 1)
    assert found["total"]["score"] == pytest.approx(37 / 38)
    assert found["equivalent"][0]["reason"] == "nobody reads limit"
    with pytest.raises(ConfigError, match="3 of 40 mutants are listed as equivalent; at most 5%"):
        report(mutants, results, {f"m{i}": "why" for i in range(3)})
    (tmp_path / "list.txt").write_text("# comment\n\nabc why it is\n")
    assert read_equivalent(tmp_path / "list.txt") == {"abc": "why it is"}
    (tmp_path / "list.txt").write_text("abc\n")
    with pytest.raises(ConfigError, match="abc has no reason"):
        read_equivalent(tmp_path / "list.txt")


def test_parts_share_out_all():
    items = list(range(10))
    assert sorted(items[part("1/3")] + items[part("2/3")] + items[part("3/3")]) == items
    for wrong in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(ConfigError, match="part is"):
            part(wrong)


def test_first_failure_names_the_test_or_how_it_ended():
    assert first_failure("..\nFAILED tests/a.py::test_b - assert 1\n", 1) == "tests/a.py::test_b"
    assert first_failure("ImportError while loading conftest", 4) == "exit status 4: ImportError while loading conftest"
    with pytest.raises(HealthError, match="no test ran"):
        first_failure("no tests ran in 0.01s", 5)
