"""Records are written by commands alone: what bench/results holds fits its schema, its checksum and its commit."""

import json
import re
import subprocess
import tarfile

import pytest

from bench import pack, results
from bench.record import checksum, figure, write_record
from mjx_so101 import ConfigError
from train.provenance import ROOT, STAMP, Source, hash_of, read_sources, source_of

FILES = sorted(results.FOLDER.glob("*.json"))


@pytest.fixture(scope="module")
def history():
    return results.has_history()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_result_is_valid(path):
    assert results.check(path, history=False) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commit_of_the_result_exists_and_has_the_sources_it_names(path, history):
    if not history:
        pytest.skip("no git checkout with its history: commits cannot be looked up")
    assert results.check(path, history=True) == []


def test_readme_names_only_results_that_exist():
    text = (ROOT / "README.md").read_text() + (ROOT / "policies" / "groot" / "README.md").read_text()
    named = set(re.findall(r"(?:bench/results/|`)((?:cpu|h100|h200|base)_\w+\.json)", text))
    assert named <= {path.name for path in FILES}


# -- the schema, on records made here ----------------------------------------------------------------------------------
@pytest.fixture
def record(tmp_path, monkeypatch):
    """A record as a command writes it at a clean commit, and its file."""
    monkeypatch.setattr("train.provenance.source", lambda: Source("a" * 40, False, "b" * 64))
    path = tmp_path / "results" / "cpu_a.json"
    headline = [figure("cpu_train_success_5mm", 0.5, "fraction", low=0.4, high=0.6), figure("cpu_x_s", 1.5, "s")]
    write_record(path, headline, seeds=[0, 1], num_envs=[4], conditions={"physics": "native"}, rows=[{"a": 1}])
    return path


def test_written_record_is_valid(record):
    assert results.check(record, history=False) == []
    held = json.loads(record.read_text())
    assert (held["seeds"], held["num_envs"], held["conditions"]) == ([0, 1], [4], {"physics": "native"})


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r["headline"][0].update(value=0.9), lambda r: r["rows"][0].update(a=2),
        lambda r: r.update(command="python -m bench.fps"), lambda r: r.update(note="measured twice"),
        lambda r: r.update(commit="c" * 40), lambda r: r.update(seeds=[0]),
    ],
)  # fmt: skip
def test_an_edit_by_hand_fails(record, edit):
    held = json.loads(record.read_text())
    edit(held)
    record.write_text(json.dumps(held))
    assert any("edited after it was written" in text for text in results.check(record, history=False))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda r: r.update(commit="abc1234"), "40 hex digits"), (lambda r: r.pop("commit"), "commit is missing"),
        (lambda r: r.update(commit="unknown"), "40 hex digits"), (lambda r: r.update(dirty=True), "dirty is True"),
        (lambda r: r.update(dirty=None), "dirty is None"), (lambda r: r.update(seeds=[]), "seeds is empty"),
        (lambda r: r.update(seeds=["0"]), "seeds is no list"), (lambda r: r.pop("num_envs"), "num_envs is no list"),
        (lambda r: r.update(device="NVIDIA H100", driver=None), "driver is missing"),
        (lambda r: r.update(versions={}), "versions lack"), (lambda r: r.update(headline=[]), "headline is no list"),
        (lambda r: r["headline"][0].update(value=1.1), r"fraction lies in \[0, 1\]"),
        (lambda r: r["headline"][0].update(value=float("nan")), "no finite number"),
        (lambda r: r["headline"][0].pop("unit"), "lacks name, value or unit"),
        (lambda r: r["headline"][1].update(name="My figure"), "no word of a-z"),
        (lambda r: r["headline"][1].update(name="cpu_train_success_5mm"), "two figures have one name"),
        (lambda r: r.update(source_sha256="unknown"), "64 hex digits"), (lambda r: r.pop("conditions"), "conditions"),
    ],
)  # fmt: skip
def test_what_the_schema_lacks_is_named(record, edit, words):
    held = json.loads(record.read_text())
    edit(held)
    held["checksum"] = checksum(held)  # even if somebody took care of the checksum
    assert any(re.search(words, text) for text in results.problems(held)), results.problems(held)


@pytest.mark.parametrize("text", ["", "[]", '"a"', "null"])
def test_what_is_no_record_is_said(record, text):
    record.write_text(text)
    assert len(results.check(record, history=False)) == 1


# -- against git -------------------------------------------------------------------------------------------------------
@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one source."""
    root = tmp_path / "checkout"
    (root / "train").mkdir(parents=True)
    (root / "train" / "a.py").write_text("a")
    (root / "README.md").write_text("text")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "1"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    return root


def test_commit_must_exist_and_have_the_sources_measured(checkout):
    good = source_of(checkout)._asdict()
    assert results.has_history(checkout)
    assert results.commit_problems(good, checkout) == []
    assert "not in this repository" in results.commit_problems({**good, "commit": "d" * 40}, checkout)[0]
    assert "sources measured are not those" in results.commit_problems({**good, "source_sha256": "e" * 64}, checkout)[0]


def test_history_is_missing_outside_a_checkout(tmp_path):
    assert not results.has_history(tmp_path)


def test_share_is_printed_and_only_recorded_when_asked(record, monkeypatch, capsys):
    (record.parent / "bad.json").write_text("{}")
    monkeypatch.setattr(results, "has_history", lambda: True)
    monkeypatch.setattr(results, "sources_of", lambda commit, root: "b" * 64)
    assert results.main([], record.parent) is False
    lines = capsys.readouterr().out
    assert "valid    cpu_a.json" in lines and "invalid  bad.json" in lines and "1 of 2 valid" in lines
    assert not (record.parent / results.SHARE).exists()
    for _ in range(2):  # the second time its own file is there and does not count
        results.main(["--record"], record.parent)
        share = json.loads((record.parent / results.SHARE).read_text())
        assert share["headline"] == [{"name": "results_valid", "value": 0.5, "unit": "fraction"}]
    assert share["files"]["cpu_a.json"] == [] and share["files"]["bad.json"]


def test_share_is_not_recorded_where_commits_cannot_be_looked_up(record, monkeypatch):
    monkeypatch.setattr(results, "has_history", lambda: False)
    with pytest.raises(ConfigError, match="git checkout with its whole history"):
        results.main(["--record"], record.parent)


# -- the archive for machines without git ------------------------------------------------------------------------------
def unpacked(archive, folder):
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / "mjx_so101"


def test_archive_of_a_clean_commit_knows_it(checkout, tmp_path):
    pack.main([str(tmp_path / "a.tar.gz")], checkout)
    copy = unpacked(tmp_path / "a.tar.gz", tmp_path)
    assert source_of(copy) == source_of(checkout) and source_of(copy).dirty is False
    (copy / "train" / "a.py").write_text("edited")
    assert source_of(copy).dirty is True


def test_uncommitted_changes_are_refused_or_recorded(checkout, tmp_path):
    (checkout / "train" / "b.py").write_text("b")
    out = tmp_path / "a.tar.gz"
    for words in ([str(out)], ["--stamp"]):
        with pytest.raises(ConfigError, match=r"differ from the commit.*--allow-dirty"):
            pack.main(words, checkout)
    assert not out.exists() and not (checkout / STAMP).exists()
    pack.main([str(out), "--allow-dirty"], checkout)
    copy = unpacked(out, tmp_path)
    assert (copy / "train" / "b.py").read_text() == "b"
    assert source_of(copy).dirty is True
    status = subprocess.run(["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True).stdout
    assert status == "?? train/b.py\n"  # the checkout is as it was


def test_stamp_lies_beside_the_sources(checkout):
    pack.main(["--stamp"], checkout)
    stamp = json.loads((checkout / STAMP).read_text())
    assert stamp == source_of(checkout)._asdict()
    assert stamp["source_sha256"] == hash_of(read_sources(checkout))


@pytest.mark.parametrize("words", [[], ["a.tar.gz", "--stamp"]])
def test_pack_must_be_told_one_thing(checkout, words):
    with pytest.raises(ConfigError, match=r"name the archive to write, or give --stamp"):
        pack.main(words, checkout)


def test_only_a_checkout_can_be_packed(tmp_path):
    with pytest.raises(ConfigError, match="is no git checkout"):
        pack.main(["--stamp"], tmp_path)
