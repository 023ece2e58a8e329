"""Instructions as free text, with tokenizer files that hold the few words the tests need at Qwen's ids."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from mjx_so101.errors import CheckpointError, ConfigError

WORDS = {
    "None": 4064,
    "['": 677,
    "']": 660,
    "Perform": 46951,
    "Ġthe": 279,
    "Ġdefault": 1638,
    "Ġbehavior": 7709,
    ".": 13,
    "Slide": 100,
}


@pytest.fixture
def qwen(tmp_path):
    """Folder of a cut-down vocabulary: single characters, the words above, and the merges that build them."""
    pytest.importorskip("tokenizers")
    vocabulary, merges = dict(WORDS), []
    for word in WORDS:
        for end in range(1, len(word) + 1):
            vocabulary.setdefault(word[:end], 140000 + len(vocabulary))
            vocabulary.setdefault(word[end - 1], 140000 + len(vocabulary))
            if end > 1:
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return folder


def test_free_text_in_both_forms(qwen):
    from policies.groot.tokenizer import encode_instruction

    assert encode_instruction("Slide the None.", "training", qwen)[:2] == (100, 279)
    assert encode_instruction("None", "training", qwen) == (4064,)
    assert encode_instruction("Slide the default", "evaluation", qwen) == (677, 100, 279, 1638, 660)


def test_free_text_reaches_the_prompt(qwen, tiny):
    from policies.groot import Gr00tPolicy

    policy = Gr00tPolicy.from_checkpoint(tiny, instruction="Slide the default", tokenizer=qwen)
    assert policy.prompt.ids[-8:] == [100, 279, 1638, 151645, 198, 151644, 77091, 198]


def test_wrong_tokenizer_files(qwen):
    from policies.groot.tokenizer import encode_instruction

    vocabulary = json.loads((qwen / "vocab.json").read_text())
    vocabulary["None"], vocabulary["Slide"] = vocabulary["Slide"], vocabulary["None"]
    (qwen / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ConfigError, match=r"not Qwen's: 'None' gives \(100,\), not \(4064,\)"):
        encode_instruction("Slide", "training", qwen)
    (qwen / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        encode_instruction("Slide", "training", qwen)
    (qwen / "merges.txt").unlink()
    with pytest.raises(ConfigError, match=r"lacks .*merges\.txt"):
        encode_instruction("Slide", "training", qwen)


def test_without_the_package(monkeypatch, tmp_path):
    import sys

    from policies.groot.tokenizer import encode_instruction

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match="pip install tokenizers"):
        encode_instruction("Slide", "training", tmp_path)
