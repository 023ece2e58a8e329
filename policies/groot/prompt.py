"""The chat prompt as token ids. A fixed instruction needs no tokenizer; its ids are listed here. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mjx_so101.errors import ConfigError, require_choice

PREFIX = (151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198)
"""<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n"""
SUFFIX = (151645, 198, 151644, 77091, 198)
"""<|im_end|>\\n<|im_start|>assistant\\n"""
IMAGE_START, IMAGE_TOKEN, IMAGE_END = 151670, 151669, 151671
DIGIT_ONE = 16
"""Id of "1"; those of the other digits follow."""
MOST_CAMERAS = 9

FORMS = ("training", "evaluation")
INSTRUCTIONS: dict[tuple[str, str], tuple[int, ...]] = {
    ("None", "training"): (4064,),
    ("None", "evaluation"): (677, 4064, 660),  # NVIDIA's evaluation path writes the list: ['None']
    ("Perform the default behavior.", "training"): (46951, 279, 1638, 7709, 13),
}
DEFAULT_INSTRUCTION = "None"
"""The only task string of the data that phospho-app/gr00t-paper_return-7w9itxzsox was trained on."""


@dataclass(frozen=True)
class Prompt:
    """Ids of the text before, between and after the images, and the number of tokens of one image."""

    text_parts: tuple[tuple[int, ...], ...]
    image_tokens: int

    @property
    def ids(self) -> list[int]:
        """The whole prompt with placeholders where image tokens go."""
        ids = list(self.text_parts[0])
        for part in self.text_parts[1:]:
            ids += [IMAGE_TOKEN] * self.image_tokens + list(part)
        return ids

    def __len__(self) -> int:
        return sum(map(len, self.text_parts)) + self.image_tokens * (len(self.text_parts) - 1)


def instruction_ids(
    instruction: str | None, ids: Sequence[int] | None, form: str, vocab_size: int = 151680
) -> tuple[int, ...]:
    """Ids of an instruction: one of the known texts in the given form, or the ids themselves as the user gives them.

    Raises:
        ConfigError: for a text whose ids are not known, both a text and ids, or ids outside the vocabulary.
    """
    require_choice("instruction_form", form, FORMS)
    if ids is None:
        text = DEFAULT_INSTRUCTION if instruction is None else instruction
        if (text, form) in INSTRUCTIONS:
            return INSTRUCTIONS[text, form]
        known = ", ".join(f"{name!r} ({known_form})" for name, known_form in INSTRUCTIONS)
        raise ConfigError(
            f"The token ids of instruction {text!r} in the {form} form are not known here; known are {known}. Give "
            "tokenizer, a folder with Qwen's vocab.json and merges.txt; or instruction_ids, the Qwen ids of the "
            "instruction exactly as it was rendered in training."
        )
    if instruction is not None:
        raise ConfigError("instruction and instruction_ids are both given; give one.")
    ids = tuple(ids)
    wrong = [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab_size]
    if not ids or wrong:
        raise ConfigError(f"instruction_ids is {ids!r}; give whole numbers from 0 to {vocab_size - 1}, at least one.")
    special = [i for i in ids if i in (IMAGE_START, IMAGE_TOKEN, IMAGE_END)]
    if special:
        raise ConfigError(f"instruction_ids holds {special[0]}, an image token; the prompt adds those itself.")
    return ids


def build_prompt(cameras: int, image_tokens: int, instruction: Sequence[int]) -> Prompt:
    """Prompt of `<image 1><img>...</img>` for each camera, then the instruction."""
    if not 1 <= cameras <= MOST_CAMERAS:
        raise ConfigError(f"The checkpoint has {cameras} cameras; 1 to {MOST_CAMERAS} are supported.")
    openings = [(27, 1805, 220, DIGIT_ONE + camera, 29, IMAGE_START) for camera in range(cameras)]
    parts: list[tuple[int, ...]] = [PREFIX + openings[0]]
    parts += [(IMAGE_END, *opening) for opening in openings[1:]]
    parts.append((IMAGE_END, *instruction, *SUFFIX))
    return Prompt(tuple(parts), image_tokens)
