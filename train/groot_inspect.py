"""`so101 groot inspect`: what a checkpoint holds and how it was trained, without loading its weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mjx_so101.errors import SO101Error
from mjx_so101.scene import JOINTS
from policies.groot import require_torch
from policies.groot.config import LARGEST_ANGLE

GIVEN = ("resolution", "fps")
"""What metadata.json may tell of a camera."""


@dataclasses.dataclass(frozen=True)
class InspectFlags:
    """Flags of `so101 groot inspect`."""

    checkpoint: str
    """Folder of a checkpoint, or a Hugging Face repo id."""
    embodiment: str = "new_embodiment"
    """Name in metadata.json."""
    revision: str = ""
    """Commit, tag or branch of a Hugging Face repo; default: its main branch as it is now."""
    json: bool = False
    """Print JSON instead of text."""


def inspect(flags: InspectFlags) -> None:
    """Print all that can be read, then raise what the loader would; no weights are loaded."""
    record, problems = describe(flags.checkpoint, flags.embodiment, flags.revision)
    print(json.dumps(record, indent=2) if flags.json else _as_text(record))
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))


def describe(
    checkpoint: str, embodiment: str = "new_embodiment", revision: str = ""
) -> tuple[dict[str, Any], list[SO101Error]]:
    """What config.json, metadata.json and the headers of the tensors say, and every reason not to load them.

    Raises ConfigError or CheckpointError if it is no folder of a GR00T N1.5, so that nothing can be said.
    """
    require_torch()
    from policies.groot.config import RANDOM, ModelConfig
    from policies.groot.loader import (
        METADATA,
        TensorFiles,
        commit_of,
        read_config,
        read_json,
        resolve_folder,
        weight_files,
    )

    folder = resolve_folder(checkpoint, revision)
    document = read_config(folder)
    config = ModelConfig.from_json(document)
    record: dict[str, Any] = {
        "checkpoint": str(folder),
        "commit": commit_of(checkpoint, folder),
        "model_type": document["model_type"],
        "random_weights": bool(document.get(RANDOM)),
        "horizon": config.head.horizon,
        "denoising_steps": config.head.denoising_steps,
        "parts": {name: {"sizes": sizes} for name, sizes in _architecture(config).items()},
    }
    problems: list[SO101Error] = []

    def attempt(read: Callable[[], dict[str, Any] | None]) -> None:
        try:
            record.update(read() or {})
        except SO101Error as error:
            problems.append(error)

    attempt(lambda: {"metadata": read_json(folder / METADATA)})
    if "metadata" in record:
        document = record.pop("metadata")
        record.update(embodiments=list(document), embodiment=embodiment, **_stored_ranges(document.get(embodiment)))
        attempt(lambda: _check_metadata(document, embodiment))
        attempt(lambda: _read_cameras(document.get(embodiment)))
    if "cameras" in record:
        attempt(lambda: _read_prompt(len(record["cameras"]), config))
    attempt(lambda: _read_headers(weight_files(folder), record["parts"]))
    if "files" in record:  # the headers are readable: does the loader agree with them?
        attempt(lambda: TensorFiles(weight_files(folder)).check(config))
    record["problems"] = [str(problem) for problem in problems]
    return record, problems


def _architecture(config: Any) -> dict[str, str]:
    """Layers and widths of each part of the model."""
    vision, text, head = config.vision, config.text, config.head
    return {
        "vision": f"{vision.num_hidden_layers} layers, d {vision.hidden_size}, ff {vision.intermediate_size}, "
        f"{vision.num_attention_heads} heads; {vision.image_size} px give {vision.num_tokens} tokens an image",
        "connector": f"{vision.hidden_size} to {text.hidden_size}",
        "language": f"{config.language_layers} layers, d {text.hidden_size}, ff {text.intermediate_size}, "
        f"{text.num_attention_heads} query and {text.num_key_value_heads} key heads x {text.head_dim}",
        "token embedding": f"{text.vocab_size} tokens, d {text.hidden_size}",
        "token attention": f"{head.token_layers} layers, d {head.token_size}, {head.token_heads} heads",
        "DiT": f"{head.dit_layers} layers, d {head.width}, {head.dit_heads} heads, output {head.coder_size}",
        "coders": f"{head.max_embodiments} embodiments, state {head.state_dim}, action {head.action_dim}, "
        f"hidden {head.coder_size}",
        "learned tokens": f"{head.future_tokens} future tokens, {head.max_positions} positions",
        "unused": "pooling head of the image encoder, read by nothing",
        "unknown": "tensors that no part of the model has",
    }


def _part_of(name: str) -> str:
    """Part of the model that a tensor belongs to."""
    from policies.groot.layout import CONNECTOR, EMBEDDING, HEAD, LANGUAGE, OUTPUT_HEAD, VISION

    prefixes = {
        VISION + "head.": "unused",
        VISION: "vision",
        CONNECTOR: "connector",
        EMBEDDING: "token embedding",
        OUTPUT_HEAD: "token embedding",
        LANGUAGE: "language",
        HEAD + "vl": "token attention",
        HEAD + "model.": "DiT",
        HEAD + "state_encoder.": "coders",
        HEAD + "action_encoder.": "coders",
        HEAD + "action_decoder.": "coders",
        HEAD + "future_tokens.": "learned tokens",
        HEAD + "position_embedding.": "learned tokens",
    }
    return next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "unknown")


def _read_headers(files: list[Path], parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Count parameters, bytes and dtypes into `parts`; how the tensors are stored is returned."""
    from policies.groot.layout import EMBEDDING, OUTPUT_HEAD
    from policies.groot.loader import LEROBOT_PREFIX, TensorFiles

    TensorFiles(files)  # refuses a file that is truncated or no safetensors
    names = []
    counts: dict[str, dict[str, Any]] = {part: {"parameters": 0, "bytes": 0, "dtypes": {}} for part in parts}
    for file in files:
        for key, entry in _header(file).items():
            names.append(key)
            count = counts[_part_of(key.removeprefix(LEROBOT_PREFIX))]
            parameters, (start, end) = math.prod(entry["shape"]), entry["data_offsets"]
            count["parameters"] += parameters
            count["bytes"] += end - start
            count["dtypes"][entry["dtype"]] = count["dtypes"].get(entry["dtype"], 0) + parameters
    for part, count in counts.items():
        parts[part].update(count)
    stored = {name.removeprefix(LEROBOT_PREFIX) for name in names}
    tables = [table.removeprefix("backbone.eagle_model.") for table in (EMBEDDING, OUTPUT_HEAD) if table in stored]
    return {
        "files": [file.name for file in files],
        "tensors": len(names),
        "parameters": sum(count["parameters"] for count in counts.values()),
        "bytes": sum(file.stat().st_size for file in files),
        "lerobot_prefix": any(name.startswith(LEROBOT_PREFIX) for name in names),
        "token_embedding_stored_as": tables,
    }


def _header(file: Path) -> dict[str, Any]:
    """Entries of a safetensors file, by tensor: dtype, shape, data_offsets."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(length))
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}


def _check_metadata(document: dict[str, Any], embodiment: str) -> None:
    """Raise ConfigError where the loader would."""
    from policies.groot.processor import Metadata

    Metadata.from_json(document, embodiment)


def _stored_ranges(entry: Any) -> dict[str, Any]:
    """Statistics of six joints as they are stored, radians or not; what is no such thing `_check_metadata` refuses.

    A seventh number, the sixth of `single_arm` beside `gripper`, is left out.
    """
    from policies.groot.processor import EXTRA, SPLIT_LAYOUT

    found = {}
    for name in ("state", "action"):
        groups = _inside(entry, "statistics", name)
        keys = list(SPLIT_LAYOUT if set(groups) == set(SPLIT_LAYOUT) else groups)
        ends = {end: _joined(_inside(groups, key).get(end) for key in keys) for end in ("min", "max")}
        if keys == list(SPLIT_LAYOUT) and all(len(values) == len(JOINTS) + 1 for values in ends.values()):
            keys = [f"{keys[0]}[:{EXTRA}]", keys[1]]
            ends = {end: values[:EXTRA] + values[EXTRA + 1 :] for end, values in ends.items()}
        if all(len(values) == len(JOINTS) for values in ends.values()):
            found[name] = {"keys": keys, **ends}
    return {"statistics": found} if found else {}


def _read_cameras(entry: Any) -> dict[str, Any]:
    """Cameras in the order of the prompt, with resolution and frame rate where metadata.json gives them."""
    from policies.cameras import camera_role, match_cameras

    videos = _inside(entry, "modalities", "video")
    views = match_cameras(tuple(videos), None)
    cameras = [
        {"key": key, "view": view, "role": camera_role(key), **{name: _inside(videos, key).get(name) for name in GIVEN}}
        for key, view in zip(videos, views, strict=True)
    ]
    return {"cameras": cameras} if cameras else {}


def _inside(value: Any, *keys: str) -> dict[str, Any]:
    """Object below `keys` of a parsed JSON document, empty if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _joined(lists: Iterable[Any]) -> list[float]:
    """Numbers of several lists, without what is neither."""
    values = [value for entry in lists if isinstance(entry, list) for value in entry]
    return [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def _read_prompt(cameras: int, config: Any) -> dict[str, Any]:
    """Text and number of tokens of the prompt with the default instruction, in each form."""
    from policies.groot.prompt import DEFAULT_INSTRUCTION, FORMS, build_prompt, instruction_ids
    from policies.groot.tokenizer import render_instruction

    tokens = config.vision.num_tokens
    images = "".join(f"<image {i + 1}><img><{tokens} image tokens></img>" for i in range(cameras))
    prompts = {}
    for form in FORMS:
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"{images}{render_instruction(DEFAULT_INSTRUCTION, form)}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = instruction_ids(None, None, form, config.text.vocab_size)
        prompts[form] = {"text": text, "tokens": len(build_prompt(cameras, tokens, ids))}
    return {"prompt": prompts}


def _as_text(record: dict[str, Any]) -> str:
    """The record of `describe` for people."""
    random = ", random weights" if record["random_weights"] else ""
    lines = [f"{record['checkpoint']}: {record['model_type']}{random}"]
    if "files" in record:
        count = len(record["files"])
        prefix = "with" if record["lerobot_prefix"] else "without"
        tables = " and ".join(record["token_embedding_stored_as"]) or "nowhere"
        lines += [
            f"{record['tensors']} tensors, {record['parameters']:,} parameters, {record['bytes']:,} bytes in "
            f"{'one file' if count == 1 else f'{count} shards'}, {prefix} LeRobot's prefix",
            f"token embedding stored as {tables}" + (" (the same table twice)" if " and " in tables else ""),
        ]
    lines += ["", "part                parameters            bytes  dtype     sizes"]
    for name, part in record["parts"].items():
        if name in ("unused", "unknown") and not part.get("parameters"):
            continue
        parameters, size = (f"{part[key]:,}" if key in part else "?" for key in ("parameters", "bytes"))
        dtypes = "+".join(part.get("dtypes", {})) or "?"
        lines.append(f"{name:15} {parameters:>14} {size:>16}  {dtypes:8}  {part['sizes']}")
    lines += ["", f"{record['horizon']} targets a chunk, {record['denoising_steps']} denoising steps"]
    if "embodiments" in record:
        lines.append(f"embodiments: {', '.join(record['embodiments'])}; below: {record['embodiment']}")
    if "statistics" in record:
        lines += ["", *_ranges_as_text(record["statistics"])]
    lines += ["", *_cameras_as_text(record.get("cameras", []))]
    for form, prompt in record.get("prompt", {}).items():
        lines.append(f"prompt, {form} form, {prompt['tokens']} tokens: {prompt['text']!r}")
    return "\n".join(lines).rstrip()


def _ranges_as_text(statistics: dict[str, Any]) -> list[str]:
    units = {
        name: "rad" if max(map(abs, entry["min"] + entry["max"])) <= LARGEST_ANGLE else "not rad"
        for name, entry in statistics.items()
    }
    lines = [f"{'training data':15}" + "".join(f"{f'{name}, {unit}':>22}" for name, unit in units.items())]
    lines.append(f"{'  under':15}" + "".join(f"{' + '.join(entry['keys']):>22}" for entry in statistics.values()))
    for i, joint in enumerate(JOINTS):
        ranges = [f"{entry['min'][i]:.3f} to {entry['max'][i]:7.3f}" for entry in statistics.values()]
        lines.append(f"  {joint:13}" + "".join(f"{text:>22}" for text in ranges))
    return lines


def _cameras_as_text(cameras: list[dict[str, Any]]) -> list[str]:
    lines = []
    for place, camera in enumerate(cameras):
        size = " x ".join(map(str, camera["resolution"])) if camera["resolution"] else "size unknown"
        rate = f"{camera['fps']:g} fps" if camera["fps"] else "frame rate unknown"
        view = camera["role"] or "its name does not tell the view: give --camera-map"
        lines.append(f"camera {place}: {camera['key']} ({view}), {size}, {rate}")
    return lines
