"""Writes a valid checkpoint with random weights: tiny for tests, full for timing. Its actions mean nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mjx_so101.errors import ConfigError, require_choice
from policies.groot.config import MODEL_TYPE, RANDOM, ModelConfig, TextConfig, VisionConfig
from policies.groot.layout import EMBEDDING, HEAD, Shapes, embedding_shapes, required_shapes, unused_shapes
from policies.groot.loader import INDEX, METADATA, SINGLE
from policies.groot.prompt import MOST_CAMERAS

SIZES = ("tiny", "full")
LAYOUTS = ("arm_0", "single_arm", "single_arm_6")
SHARD_BYTES = 2**30

# Range of the data that phospho-app/gr00t-paper_return-7w9itxzsox was trained on (rad, gripper last).
STATE_MIN, STATE_MAX = (-0.540, -0.470, -1.677, -0.285, -2.849, 0.022), (0.580, 1.588, 1.117, 1.775, -0.235, 0.066)
ACTION_MIN, ACTION_MAX = (-0.565, -0.571, -1.929, -0.345, -2.860, -0.014), (0.618, 1.585, 1.132, 1.847, -0.226, 0.072)


def make_checkpoint(
    folder: str | Path,
    size: str = "tiny",
    seed: int = 0,
    *,
    cameras: int = 2,
    layout: str = "arm_0",
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a random checkpoint in the official layout and return its folder.

    The same arguments give the same values. `full` has the sizes of the 3B model, all in bfloat16 (4.8 GB), and is
    written shard by shard (26 s and 4.2 GB of memory at its peak, measured on one core). `tiny` (about 20 MB) mixes
    bfloat16 and float32 as real checkpoints do; its config.json holds the sizes of vision and language under
    `eagle_config`, because they are not the 3B's.

    Args:
        folder: new or empty.
        size: "tiny" or "full".
        seed: of the values.
        cameras: image keys in metadata.json, named image_cam_0, image_cam_1 and so on.
        layout: how metadata.json names the joints: "arm_0", or "single_arm" (5) and "gripper"; "single_arm_6" has the
            gripper twice, as the sixth of single_arm too.
        shard_bytes: most bytes of tensors in one file.
    """
    require_choice("size", size, SIZES)
    require_choice("layout", layout, LAYOUTS)
    if not 1 <= cameras <= MOST_CAMERAS:
        raise ConfigError(f"cameras is {cameras}; 1 to {MOST_CAMERAS} are supported.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; give a new folder.")
    document = {**_config(size), RANDOM: True}
    config = ModelConfig.from_json(document)
    shapes = {**required_shapes(config), **unused_shapes(config), EMBEDDING: embedding_shapes(config)[EMBEDDING]}
    _write_tensors(folder, shapes, seed, mixed=size == "tiny", shard_bytes=shard_bytes)
    (folder / METADATA).parent.mkdir()
    (folder / METADATA).write_text(json.dumps(_metadata(cameras, layout), indent=2))
    (folder / "config.json").write_text(json.dumps(document, indent=2))  # last: without it, it is no checkpoint
    return folder


def _write_tensors(folder: Path, shapes: Shapes, seed: int, *, mixed: bool, shard_bytes: int) -> None:
    dtypes = {name: torch.float32 if mixed and name.startswith(HEAD) else torch.bfloat16 for name in shapes}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtypes[name].itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: _random(name, shapes[name], dtypes[name], seed) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if count > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items())
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2))


def _random(name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Values that depend on the seed and the name only, scaled so that a layer keeps the size of its input."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))  # it uses 32 bits only
    x = torch.empty(shape).normal_(generator=generator)  # drawn in float32: torch's bfloat16 draw gives infinities
    if name.endswith(("bias", ".b")):
        x *= 0.02
    elif len(shape) == 1:  # scale of a norm
        x = 1 + 0.1 * x
    else:
        x *= (shape[1] if name.endswith(".W") else math.prod(shape[1:])) ** -0.5
    return x.to(dtype)


def _config(size: str) -> dict[str, Any]:
    """config.json: the fields of NVIDIA's, and the sizes that they leave out where these are not the 3B's."""
    full = size == "full"
    text = TextConfig(64, 128, 4, 2, 16) if not full else TextConfig()
    vision = VisionConfig(48, 96, 2, 4) if not full else VisionConfig()
    width, coder = (1536, 1024) if full else (48, 32)
    transformer = {"dropout": 0.2, "final_dropout": True, "positional_embeddings": None}
    head = {
        "action_dim": 32,
        "action_horizon": 16,
        "add_pos_embed": True,
        "backbone_embedding_dim": text.hidden_size,
        "diffusion_model_cfg": {
            **transformer,
            "attention_head_dim": 48 if full else 12,
            "cross_attention_dim": text.hidden_size,
            "interleave_self_attention": True,
            "norm_type": "ada_norm",
            "num_attention_heads": 32 if full else 4,
            "num_layers": 16 if full else 4,
            "output_dim": coder,
        },
        "hidden_size": coder,
        "input_embedding_dim": width,
        "max_action_dim": 32,
        "max_state_dim": 64,
        "model_dtype": "float32",
        "num_inference_timesteps": 4,
        "num_target_vision_tokens": 32,
        "num_timestep_buckets": 1000,
        "use_vlln": True,
        "vl_self_attention_cfg": {
            **transformer,
            "attention_head_dim": 64 if full else 16,
            "num_attention_heads": 32 if full else 4,
            "num_layers": 4 if full else 2,
        },
    }
    document = {
        "model_type": MODEL_TYPE,
        "architectures": ["GR00T_N1_5"],
        "action_dim": 32,
        "action_horizon": 16,
        "hidden_size": text.hidden_size,
        "torch_dtype": "bfloat16",
        "backbone_cfg": {"project_to_dim": None, "select_layer": 12 if full else 3},
        "action_head_cfg": head,
    }
    if not full:
        sizes = {"vision_config": dataclasses.asdict(vision), "text_config": dataclasses.asdict(text)}
        document["eagle_config"] = sizes
    return document


def _metadata(cameras: int, layout: str) -> dict[str, Any]:
    arm = slice(0, 6 if layout == "single_arm_6" else 5)
    groups = {"arm_0": slice(0, 6)} if layout == "arm_0" else {"single_arm": arm, "gripper": slice(5, 6)}

    def statistics(low: tuple[float, ...], high: tuple[float, ...]) -> dict[str, Any]:
        middle = tuple((a + b) / 2 for a, b in zip(low, high, strict=True))
        spread = tuple((b - a) / 4 for a, b in zip(low, high, strict=True))
        values = {"min": low, "max": high, "mean": middle, "std": spread, "q01": low, "q99": high}
        return {group: {key: x[joints] for key, x in values.items()} for group, joints in groups.items()}

    def joints(group: slice) -> dict[str, Any]:
        return {"absolute": True, "rotation_type": None, "shape": [group.stop - group.start], "continuous": True}

    camera = {"resolution": [320, 240], "channels": 3, "fps": 30.0}
    return {
        "new_embodiment": {
            "statistics": {"state": statistics(STATE_MIN, STATE_MAX), "action": statistics(ACTION_MIN, ACTION_MAX)},
            "modalities": {
                "video": {f"image_cam_{i}": camera for i in range(cameras)},
                "state": {name: joints(group) for name, group in groups.items()},
                "action": {name: joints(group) for name, group in groups.items()},
            },
            "embodiment_tag": "new_embodiment",
        }
    }
