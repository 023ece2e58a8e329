"""bench/groot.py with the tiny checkpoint: every phase runs, is recorded and named; how fast it is does not matter."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from bench.record import checksum
from mjx_so101 import ConfigError
from mjx_so101.render import PRESETS

pytestmark = pytest.mark.slow

PHASES = ("inference", "loop", "recovery", "train")
NAMES = {
    "cpu_groot_inferences_per_s": "inferences/s",
    "cpu_groot_loop_steps_per_s": "control steps/s",
    "cpu_groot_loop_share_not_groot": "1",
    "cpu_image_recovery_ratio": "1",
    "cpu_groot_train_steps_per_s": "control steps/s",
}


@pytest.fixture(scope="module")
def bench():
    """The module, imported late and without what it sets for JAX's memory on a GPU."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_CLIENT_MEM_FRACTION", "0.2")
        from bench import groot
    yield groot
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("groot")


@pytest.fixture(scope="module")
def record(bench, folder) -> dict:
    """Of small pictures, which are drawn in a tenth of the time."""
    small = dataclasses.replace(PRESETS["gr00t"], width=64, height=48)
    out = folder / "new" / "result.json"
    sizes = {"num_envs": 4, "micro_batch": (1,), "horizon": 4, "steps": 2, "unroll": 2}
    config = bench.GrootBenchConfig(size="tiny", folder=folder / "tiny", phases=PHASES, out=out, **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "gr00t", small)
        bench.main(config)
    return json.loads(out.read_text())


def test_headline_names_every_phase(record):
    assert {figure["name"]: figure["unit"] for figure in record["headline"]} == NAMES
    values = {figure["name"]: figure["value"] for figure in record["headline"]}
    assert all(value > 0 for value in values.values()), values
    assert values["cpu_groot_loop_share_not_groot"] < 1


def test_record_says_where_it_comes_from(record, folder):
    assert {"headline", "command", "commit", "device", "versions", "model", "exchange", *PHASES} <= set(record)
    assert record["conditions"]["weights"] == "random, tiny" and record["checksum"] == checksum(record)
    model = record["model"]
    assert (model["checkpoint"], model["cameras"]) == (str(folder / "tiny"), ["top", "wrist"])
    assert (model["device"], model["dtype"], model["micro_batch"]) == ("cpu", "float32", 1)


def test_arrays_are_exchanged_in_place(record):
    assert record["exchange"] == {"same_addresses": [True] * 3, "copies_between_host_and_device": []}


def test_loop_and_recovery_are_honest(record):
    loop, recovery = record["loop"], record["recovery"]
    assert (loop["num_envs"], loop["horizon"], loop["renewed_per_step"]) == (4, 4, 2)
    assert loop["passes_per_step"] > 0
    assert 0 < loop["groot_seconds_per_step"] < loop["seconds_per_step"]
    assert set(recovery) == {"due", "all", "due_recorded_anew"}
    for row in (loop, *recovery.values()):
        assert row["overflows"] == row["nonfinite"] == 0
    assert recovery["due"]["reward"] == pytest.approx(recovery["all"]["reward"], abs=1e-4)  # the same episodes


def test_training_resumes_the_learner_it_saved(record):
    train = record["train"]
    assert train["resumed_learner_is_equal"] is True
    assert train["steps"] == 3 * 4 * 2 and len(train["losses"]) == 3
    assert "random weights" in train["note"]


def test_settings_of_the_command_line_are_what_is_run(bench, monkeypatch, tmp_path):
    """Without a folder the checkpoint is made in a temporary one, which is gone afterwards."""
    seen = []

    def run(config, options):
        seen.append(SimpleNamespace(config=config, options=options, made=(folder_of(options) / "config.json").exists()))

    def folder_of(options):
        return type(tmp_path)(options.checkpoint)

    monkeypatch.setattr(bench, "run", run)
    bench.main(bench.GrootBenchConfig(size="tiny", micro_batch=(3, 5), horizon=7, out=tmp_path / "out.json"))
    (call,) = seen
    assert call.made and not folder_of(call.options).exists()
    assert (call.options.horizon, call.options.micro_batch) == (7, 3)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"phases": ("inference", "lop")}, "phases is 'lop'.*'loop'"),
        ({"size": "medium"}, "size is 'medium'.*'tiny'"),
        ({"num_envs": 0}, "num_envs is 0; it must be at least 1"),
        ({"steps": 0}, "steps is 0"),
        ({"unroll": -1}, "unroll is -1"),
        ({"micro_batch": ()}, "micro_batch is .*at least one size"),
        ({"micro_batch": (4, 0)}, "micro_batch is .*each at least 1"),
    ],
)
def test_bad_settings_are_named(bench, bad, words):
    with pytest.raises(ConfigError, match=words):
        bench.GrootBenchConfig(**bad)
