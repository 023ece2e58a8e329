"""Opening checkpoints: layouts that are accepted, and every spoiled one refused with what is wrong and what to do."""

import pickle
import sys
import types

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402
from spoil import edit_json, rewrite  # noqa: E402

from mjx_so101.errors import CheckpointError, ConfigError  # noqa: E402
from policies.groot import Gr00tPolicy  # noqa: E402
from policies.groot.layout import EMBEDDING, OUTPUT_HEAD  # noqa: E402
from policies.groot.make_checkpoint import make_checkpoint  # noqa: E402
from policies.model import ModelOptions  # noqa: E402
from train.config import TrainConfig  # noqa: E402

load = Gr00tPolicy.from_checkpoint
VLLN = "action_head.vlln.weight"


@pytest.fixture
def expected(tiny, batch):
    return load(tiny).chunk(*batch())


def test_sharded_equals_single(tmp_path, batch, expected):
    folder = make_checkpoint(tmp_path / "sharded", shard_bytes=2**20)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()
    assert torch.equal(load(folder).chunk(*batch()), expected)


def test_lerobot_prefix(copy_of_tiny, batch, expected):
    rewrite(copy_of_tiny, lambda tensors: {f"_groot_model.{name}": x for name, x in tensors.items()})
    assert torch.equal(load(copy_of_tiny).chunk(*batch()), expected)


@pytest.mark.parametrize("names", [(OUTPUT_HEAD,), (EMBEDDING, OUTPUT_HEAD)])
def test_embedding_under_either_name(copy_of_tiny, batch, expected, names):
    def rename(tensors):
        table = tensors.pop(EMBEDDING)
        return {**tensors, **{name: table.clone() for name in names}}

    rewrite(copy_of_tiny, rename)
    assert torch.equal(load(copy_of_tiny).chunk(*batch()), expected)


def test_pooling_head_may_be_absent(copy_of_tiny, batch, expected):
    rewrite(copy_of_tiny, lambda tensors: {n: x for n, x in tensors.items() if ".vision_model.head." not in n})
    assert torch.equal(load(copy_of_tiny).chunk(*batch()), expected)


def test_all_differences_in_one_message(copy_of_tiny):
    def spoil(tensors):
        del tensors["action_head.vlln.bias"], tensors[EMBEDDING]
        tensors[VLLN] = torch.zeros(7)
        tensors["action_head.mask_token"] = torch.zeros(3)
        tensors["action_head.future_tokens.weight"] = torch.zeros(32, 48, dtype=torch.int32)
        return tensors

    rewrite(copy_of_tiny, spoil)
    with pytest.raises(ConfigError) as error:
        load(copy_of_tiny)
    message = str(error.value)
    assert "2 missing" in message and "action_head.vlln.bias" in message and f"{EMBEDDING} (or" in message
    assert "1 unexpected" in message and "action_head.mask_token" in message
    assert "1 mis-shaped" in message and f"{VLLN} is (7,), not (64,)" in message
    assert "1 not floating point" in message and "I32" in message


def test_forgotten_sizes_are_asked_for(golden):
    with pytest.raises(ConfigError, match="vision_config and text_config"):
        load(golden.folder)


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match=r"no config\.json.*notes\.txt"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        load(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="no folder here"):
        load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("gr00t_n1_6", "N1.6"),
        ("Gr00tN1d6", "N1.6"),
        ("Gr00tN1d7", "N1.7"),
        ("gr00t_n1", "another GR00T"),
        ("llama", "not a GR00T"),
    ],
)
def test_other_models_are_named(copy_of_tiny, found, message):
    edit_json(copy_of_tiny / "config.json", lambda d: d.update(model_type=found))
    with pytest.raises(ConfigError, match=message):
        load(copy_of_tiny)


def test_lerobot_policy_config_is_explained(copy_of_tiny):
    (copy_of_tiny / "config.json").write_text('{"type": "groot"}')
    with pytest.raises(ConfigError, match="LeRobot"):
        load(copy_of_tiny)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("action_head_cfg",), None, "action_head_cfg"),
        (("action_head_cfg", "use_vlln"), False, "only True"),
        (("action_head_cfg", "action_horizon"), "16", "action_horizon is '16'"),
        (("action_head_cfg", "diffusion_model_cfg", "num_attention_heads"), 5, "heads x head_dim"),
        (("backbone_cfg", "project_to_dim"), 1536, "project_to_dim"),
        (("eagle_config", "text_config", "layers"), 3, "unknown keys layers"),
    ],
)
def test_config_values_are_checked(copy_of_tiny, path, value, message):
    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    edit_json(copy_of_tiny / "config.json", change)
    with pytest.raises(ConfigError, match=message):
        load(copy_of_tiny)


def test_damaged_json(copy_of_tiny):
    (copy_of_tiny / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        load(copy_of_tiny)


def test_pickle_is_refused_unopened(copy_of_tiny):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    (copy_of_tiny / "model.safetensors").unlink()
    (copy_of_tiny / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConfigError, match=r"pickle \(pytorch_model\.bin\)"):
        load(copy_of_tiny)
    (copy_of_tiny / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(copy_of_tiny)


def test_truncated_weights(copy_of_tiny):
    path = copy_of_tiny / "model.safetensors"
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    path.write_bytes(half)
    with pytest.raises(CheckpointError, match="truncated"):
        load(copy_of_tiny)


def test_missing_weights(copy_of_tiny):
    (copy_of_tiny / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="neither"):
        load(copy_of_tiny)


def test_lone_adapter(copy_of_tiny):
    (copy_of_tiny / "model.safetensors").rename(copy_of_tiny / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"LoRA adapter \(adapter_model\.safetensors\) alone; merge it"):
        load(copy_of_tiny)


def test_lone_adapter_as_peft_writes_it_without_config(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"never opened")
    with pytest.raises(ConfigError, match="LoRA adapter"):
        load(tmp_path)


def test_adapter_beside_the_model(copy_of_tiny, batch, expected):
    (copy_of_tiny / "adapter_model.safetensors").write_bytes(b"never opened")
    assert torch.equal(load(copy_of_tiny).chunk(*batch()), expected)


def test_missing_shard_and_index(tmp_path):
    folder = make_checkpoint(tmp_path / "sharded", shard_bytes=2**20)
    index = folder / "model.safetensors.index.json"
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        load(folder)
    shard.write_bytes(content)
    text = index.read_text()
    index.write_text(text.replace(shard.name, "../" + shard.name))
    with pytest.raises(ConfigError, match="beside it"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        load(folder)
    index.unlink()
    with pytest.raises(CheckpointError, match="copy the index"):
        load(folder)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tiny, tmp_path):
    """A stand-in for the hub that holds `tiny` as commit COMMIT of someone/groot; gives what it was asked."""
    folder = tmp_path / "snapshots" / COMMIT
    folder.parent.mkdir()
    folder.symlink_to(tiny)
    asked = []

    def download(repo, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns))
        if revision not in (None, "main", COMMIT):
            raise FileNotFoundError(f"404: {revision}")
        return str(folder)

    fake_hub(monkeypatch, download)
    return asked


def fake_hub(monkeypatch, download):
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_repo_id_is_fetched_without_pickles(hub):
    assert load("someone/groot").horizon == 16
    ((repo, revision, patterns),) = hub
    assert (repo, revision) == ("someone/groot", None)
    assert not any("bin" in pattern or pattern == "*" for pattern in patterns)


def test_the_commit_is_told_and_recorded(hub, capsys):
    assert load("someone/groot").commit == COMMIT
    said = capsys.readouterr().err
    assert "no --revision: the main branch as it is now" in said and f"--revision {COMMIT}" in said
    assert load("someone/groot", revision=COMMIT).commit == COMMIT
    assert hub[-1][1] == COMMIT and not capsys.readouterr().err
    source = ModelOptions(checkpoint="someone/groot", revision="main").load("groot")
    assert source.describe()["commit"] == COMMIT and "revision 'main'" in capsys.readouterr().err


def test_a_run_is_pinned_to_the_commit_it_took(hub):
    config = TrainConfig(base="groot", model=ModelOptions(checkpoint="someone/groot"), home="checkpoint").resolve()
    assert config.model.revision == COMMIT and len(config.home) == 6
    again = TrainConfig.from_dict(config.to_dict()).resolve()
    assert again == config and hub[-1][1] == COMMIT


def test_a_folder_has_no_commit(tiny, tmp_path):
    assert load(tiny).commit == ""
    (tmp_path / COMMIT).symlink_to(tiny)  # whatever it is called
    assert load(tmp_path / COMMIT).commit == ""
    assert ModelOptions(checkpoint=str(tiny)).pinned().revision == ""
    with pytest.raises(ConfigError, match=r"revision is 'main', but .* is a folder here, not a repo: leave it out"):
        load(tiny, revision="main")


def test_unknown_revision(hub):
    with pytest.raises(ConfigError, match=r"could not be fetched from Hugging Face at revision 'v2' .*404: v2"):
        load("someone/groot", revision="v2")


def test_repo_id_offline(monkeypatch):
    def download(repo, revision, allow_patterns):
        raise ConnectionError("no route to host")

    fake_hub(monkeypatch, download)
    with pytest.raises(ConfigError, match=r"no route to host.*Offline"):
        load("someone/groot")


def test_repo_id_without_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[hub\]'"):
        load("someone/groot")


def test_make_checkpoint_is_seeded(tmp_path, tiny):
    same = load_file(make_checkpoint(tmp_path / "same") / "model.safetensors")
    other = load_file(make_checkpoint(tmp_path / "other", seed=1) / "model.safetensors")
    first = load_file(tiny / "model.safetensors")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first[VLLN], other[VLLN])
    assert {x.dtype for x in first.values()} == {torch.bfloat16, torch.float32}


def test_make_checkpoint_refuses(tmp_path, tiny):
    with pytest.raises(ConfigError, match="not empty"):
        make_checkpoint(tiny)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file is a file; give a new folder"):
        make_checkpoint(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ConfigError, match="tiny"):
        make_checkpoint(tmp_path / "new", size="huge")
    assert not (tmp_path / "new").exists()


def test_full_size_is_the_3b():
    from math import prod

    from policies.groot.config import ModelConfig
    from policies.groot.layout import required_shapes
    from policies.groot.make_checkpoint import _config

    shapes = required_shapes(ModelConfig.from_json(_config("full")))

    def millions(prefix):
        return sum(prod(shape) for name, shape in shapes.items() if name.startswith(prefix)) / 1e6

    # NVIDIA's 3B, from the table of parameters in its checkpoint
    assert millions("backbone.eagle_model.mlp1") == pytest.approx(2.4, abs=0.05)
    assert millions("backbone.eagle_model.language_model") == pytest.approx(604, abs=0.5)
    assert millions("action_head.vl") == pytest.approx(201.4, abs=0.05)
    assert millions("action_head.model") == pytest.approx(550.4, abs=0.05)
