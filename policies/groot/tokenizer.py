"""Qwen's tokenizer from its two files, for instructions whose ids are not listed in `prompt`. Torch-free."""

from __future__ import annotations

from pathlib import Path

from mjx_so101.errors import CheckpointError, ConfigError
from policies.groot.prompt import FORMS, INSTRUCTIONS

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and Qwen3 split text before byte-pair encoding (their tokenizer.json)."""


def render_instruction(text: str, form: str) -> str:
    """The instruction as it stands in the prompt: NVIDIA's evaluation path writes it as a Python list."""
    return str([text]) if form == FORMS[1] else text


def encode_instruction(text: str, form: str, folder: str | Path) -> tuple[int, ...]:
    """Ids of an instruction by the vocab.json and merges.txt in `folder`.

    The files are first held against the known ids, so that another model's vocabulary is refused.

    Raises:
        ConfigError: if the package `tokenizers` is missing, a file is missing, or the vocabulary is not Qwen's.
        CheckpointError: if a file is damaged.
    """
    try:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise ConfigError("tokenizer is given: pip install tokenizers. Or give instruction_ids instead.") from error
    files = [Path(folder) / name for name in ("vocab.json", "merges.txt")]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"tokenizer is {str(folder)!r}, which lacks {', '.join(missing)}; copy them from Qwen3-1.7B.")
    try:
        tokenizer = Tokenizer(models.BPE.from_file(*map(str, files)))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"The tokenizer files in {folder} cannot be read: {error}") from error
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for (known, known_form), ids in INSTRUCTIONS.items():
        found = tuple(tokenizer.encode(render_instruction(known, known_form)).ids)
        if found != ids:
            raise ConfigError(
                f"The tokenizer in {folder} is not Qwen's: {render_instruction(known, known_form)!r} gives {found}, "
                f"not {ids}."
            )
    ids = tuple(tokenizer.encode(render_instruction(text, form)).ids)
    if not ids:
        raise ConfigError(f"instruction {text!r} gives no tokens.")
    return ids
