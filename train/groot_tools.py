"""`so101 groot`: write a random GR00T N1.5 checkpoint, look into one without loading it, and run one once."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mjx_so101.errors import ConfigError, HealthError, SO101Error, require_choice
from mjx_so101.scene import JOINTS
from policies.groot import require_torch
from policies.model import ModelOptions

COMMANDS = {
    "make-checkpoint": "write a valid checkpoint with random weights, for tests and timing",
    "inspect": "say what a checkpoint holds and how it was trained, without loading its weights",
    "smoke": "load a checkpoint, show it the cameras once and compare its targets with its training data",
}
PICTURE_SIZE = (320, 240)
"""Pixels across and down of the cameras in the training data of phospho-app/gr00t-paper_return-7w9itxzsox."""
LARGEST_ANGLE = 10.0
"""Statistics beyond this are not in radians."""


def main(arguments: list[str]) -> None:
    """Run `so101 groot ARGUMENTS`. Raises ConfigError for an unknown subcommand, SO101Error for what goes wrong."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: so101 groot COMMAND [OPTIONS]     (so101 groot COMMAND --help lists the options)\n")
        print("\n".join(f"  {name:16} {text}" for name, text in COMMANDS.items()))
        return
    name = require_choice("groot command", arguments[0], COMMANDS)
    kinds: dict[str, Any] = {"make-checkpoint": MakeFlags, "inspect": InspectFlags, "smoke": SmokeFlags}
    run: dict[str, Callable[[Any], None]] = {"make-checkpoint": make, "inspect": inspect, "smoke": smoke}
    run[name](parse(kinds[name], arguments[1:], name))


def parse(kind: Any, arguments: list[str], name: str) -> Any:
    """Parse flags into dataclass `kind` with tyro; a field without a default is positional."""
    import tyro

    return tyro.cli(
        kind,
        args=arguments,
        prog=f"so101 groot {name}",
        description=COMMANDS[name],
        config=(tyro.conf.PositionalRequiredArgs,),
    )


# -- make-checkpoint ---------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class MakeFlags:
    """Flags of `so101 groot make-checkpoint`."""

    folder: Path
    """New or empty folder."""
    size: str = "tiny"
    """'tiny' (20 MB) or 'full', the 3B model's sizes (4.8 GB)."""
    seed: int = 0
    """Of the random weights."""
    cameras: int = 2
    """Image keys in its metadata."""
    layout: str = "arm_0"
    """Names of the joints in its metadata: 'arm_0', or 'single_arm' for single_arm and gripper."""


def make(flags: MakeFlags) -> None:
    """Write the checkpoint and say what it is."""
    require_torch()
    from policies.groot.make_checkpoint import make_checkpoint

    start = time.perf_counter()
    try:
        folder = make_checkpoint(flags.folder, flags.size, flags.seed, cameras=flags.cameras, layout=flags.layout)
    except OSError as error:
        raise ConfigError(f"{flags.folder} cannot be written ({error}); name another folder.") from error
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size:,} bytes in {seconds:.1f} s")
    print(f"Its weights are random ({flags.size}, seed {flags.seed}): right for tests and timing, useless on a robot.")


# -- inspect -----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class InspectFlags:
    """Flags of `so101 groot inspect`."""

    checkpoint: str
    """Folder of a checkpoint, or a Hugging Face repo id."""
    embodiment: str = "new_embodiment"
    """Name in metadata.json."""
    json: bool = False
    """Print JSON instead of text."""


def inspect(flags: InspectFlags) -> None:
    """Print all that can be read, then raise what the loader would; no weights are loaded."""
    record, problems = describe(flags.checkpoint, flags.embodiment)
    print(json.dumps(record, indent=2) if flags.json else _as_text(record))
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))


def describe(checkpoint: str, embodiment: str = "new_embodiment") -> tuple[dict[str, Any], list[SO101Error]]:
    """What config.json, metadata.json and the headers of the tensors say, and every reason not to load them.

    Raises ConfigError or CheckpointError if it is no folder of a GR00T N1.5, so that nothing can be said.
    """
    require_torch()
    from policies.groot.config import ModelConfig
    from policies.groot.loader import TensorFiles, read_config, resolve_folder, weight_files

    folder = resolve_folder(checkpoint)
    document = read_config(folder)
    config = ModelConfig.from_json(document)
    record: dict[str, Any] = {
        "checkpoint": str(folder),
        "model_type": document["model_type"],
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

    attempt(lambda: _read_metadata(folder, embodiment))
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
            parameters, (start, end) = int(np.prod(entry["shape"])), entry["data_offsets"]
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


def _read_metadata(folder: Path, embodiment: str) -> dict[str, Any]:
    """Embodiments, statistics and cameras."""
    from policies.cameras import camera_role, match_cameras
    from policies.groot.loader import METADATA, read_json
    from policies.groot.processor import Metadata

    document = read_json(folder / METADATA)
    metadata = Metadata.from_json(document, embodiment)
    entry = document[embodiment]
    views = match_cameras(metadata.cameras, None)
    videos = entry["modalities"]["video"]
    bounds = {"state": metadata.state, "action": metadata.action}
    return {
        "embodiments": list(document),
        "embodiment": embodiment,
        "statistics": {
            name: {"keys": list(entry["statistics"][name]), "min": list(bound.low), "max": list(bound.high)}
            for name, bound in bounds.items()
        },
        "cameras": [
            {"key": key, "view": view, "role": camera_role(key), **_video(videos[key])}
            for key, view in zip(metadata.cameras, views, strict=True)
        ],
        "warnings": _warnings(bounds, entry["modalities"].get("action")),
    }


def _warnings(bounds: dict[str, Any], actions: Any) -> list[str]:
    """What is valid to load, and yet would be fed or read wrongly."""
    found = []
    largest = max(max(map(abs, (*bound.low, *bound.high))) for bound in bounds.values())
    if largest > LARGEST_ANGLE:
        found.append(
            f"The statistics reach {largest:g}: they are not in radians, so states in radians would be scaled wrongly."
        )
    groups = actions if isinstance(actions, dict) else {}
    relative = [name for name, entry in groups.items() if isinstance(entry, dict) and entry.get("absolute") is False]
    if relative:
        found.append(
            f"metadata.json says that the actions of {', '.join(relative)} are relative; here they would be taken for "
            "absolute joint targets."
        )
    return found


def _video(entry: Any) -> dict[str, Any]:
    """Resolution and frame rate of a camera where metadata.json gives them."""
    given = entry if isinstance(entry, dict) else {}
    return {"resolution": given.get("resolution"), "fps": given.get("fps")}


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
    lines = [f"{record['checkpoint']}: {record['model_type']}"]
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
    if "statistics" in record:
        lines += _metadata_as_text(record)
    return "\n".join(lines)


def _metadata_as_text(record: dict[str, Any]) -> list[str]:
    embodiments = ", ".join(record["embodiments"])
    lines = [f"embodiments: {embodiments}; below: {record['embodiment']}", ""]
    keys = {name: " + ".join(entry["keys"]) for name, entry in record["statistics"].items()}
    lines.append(f"{'training data':15}" + "".join(f"{f'{name}, rad':>22}" for name in keys))
    lines.append(f"{'  under':15}" + "".join(f"{key:>22}" for key in keys.values()))
    for i, joint in enumerate(JOINTS):
        ranges = [f"{entry['min'][i]:.3f} to {entry['max'][i]:7.3f}" for entry in record["statistics"].values()]
        lines.append(f"  {joint:13}" + "".join(f"{text:>22}" for text in ranges))
    lines.append("")
    for place, camera in enumerate(record["cameras"]):
        size = " x ".join(map(str, camera["resolution"])) if camera["resolution"] else "size unknown"
        rate = f"{camera['fps']:g} fps" if camera["fps"] else "frame rate unknown"
        view = camera["role"] or "its name does not tell the view: give --camera-map"
        lines.append(f"camera {place}: {camera['key']} ({view}), {size}, {rate}")
    for form, prompt in record.get("prompt", {}).items():
        lines.append(f"prompt, {form} form, {prompt['tokens']} tokens: {prompt['text']!r}")
    return lines + [f"warning: {warning}" for warning in record["warnings"]]


# -- smoke -------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class SmokeFlags:
    """Flags of `so101 groot smoke`."""

    checkpoint: str
    """Folder of a checkpoint, or a Hugging Face repo id."""
    device: str | None = None
    """'cpu' or 'cuda'; default cuda where torch sees a GPU."""
    dtype: str | None = None
    """'float32' or 'bfloat16'; default float32 on a CPU, bfloat16 on a GPU."""
    num_envs: int = 2
    """Environments that are drawn and go through the model in one batch."""
    camera_map: tuple[str, ...] = ()
    """Which of the scene's cameras the checkpoint's are, as KEY=CAMERA; default: what the keys tell."""
    joint_sign: tuple[float, ...] = (1.0,) * 6
    """Training data = sign * simulation + offset, for each joint, gripper last."""
    joint_offset: tuple[float, ...] = (0.0,) * 6
    """rad, see joint_sign."""
    renderer: str | None = None
    """'warp' or 'mujoco'; default warp where JAX has a GPU."""
    seed: int = 0
    """Of the starts and of the noise."""
    out: Path | None = None
    """Folder for cameras.png (what is drawn) and model_input.png (what the model sees of it)."""

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ConfigError(f"num_envs is {self.num_envs}; it must be at least 1.")
        if self.dtype is not None:
            require_choice("dtype", self.dtype, ("float32", "bfloat16"))


def smoke(flags: SmokeFlags) -> None:
    """Draw reset environments, ask the policy once and say whether its targets are plausible.

    Raises HealthError if a target is not finite.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU is shared with torch
    require_torch()
    import torch

    from policies.groot import Gr00tPolicy, JointMap

    device = flags.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = flags.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    start = time.perf_counter()
    policy = Gr00tPolicy.from_checkpoint(
        flags.checkpoint,
        device=device,
        dtype=dtype,
        cameras=ModelOptions(camera_map=flags.camera_map).cameras(),
        joint_map=JointMap(flags.joint_sign, flags.joint_offset),
    )
    weights = sum(x.numel() * x.element_size() for x in policy.model.parameters())
    print(f"loaded in {time.perf_counter() - start:.1f} s: {weights:,} bytes of weights in {dtype} on {device}")

    images, state, limits, renderer = _draw(policy.cameras, flags)
    print(f"drawn by {renderer}: cameras {', '.join(policy.cameras)}, uint8 {list(images.shape)}")
    generator = torch.Generator().manual_seed(flags.seed)
    shape = (flags.num_envs, policy.horizon, policy.config.head.action_dim)
    noise = torch.randn(shape, generator=generator)
    inputs = [x.to(device) for x in (torch.from_numpy(images), torch.from_numpy(state), noise)]
    if flags.out:
        _save_pictures(flags.out, images, inputs[0], policy.config.vision.image_size)

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        chunk = policy.chunk(*inputs).cpu().numpy()  # .cpu() waits for the device
        seconds.append(time.perf_counter() - start)
    print(f"state {list(state.shape)}, noise {list(noise.shape)} to targets {chunk.dtype} {list(chunk.shape)}")
    print(f"first call {seconds[0]:.3f} s, second call {seconds[1]:.3f} s for {flags.num_envs} environments")
    print(_memory(device))
    print("\n".join(_compare(chunk, state, policy, limits)))
    if not np.isfinite(chunk).all():
        raise HealthError(f"targets hold NaN or infinity in {dtype} on {device}; the checkpoint may be damaged.")


def _draw(cameras: tuple[str, ...], flags: SmokeFlags) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Pictures [env, camera, height, width, 3], measured joints [env, 6] and joint limits [6, 2] after a reset."""
    import jax

    from mjx_so101 import PaperReturnEnv, SceneConfig
    from mjx_so101.render import RenderConfig, make_renderer
    from mjx_so101.scene import CAMERAS

    foreign = [name for name in cameras if name not in CAMERAS]
    if foreign:
        raise ConfigError(
            f"The scene has no camera {foreign[0]!r}; it has {', '.join(CAMERAS)}. Say what each of the checkpoint's "
            f"cameras shows: --camera-map {' '.join(f'{name}=CAMERA' for name in cameras)}."
        )
    name = flags.renderer or ("warp" if jax.default_backend() == "gpu" else "mujoco")
    env = PaperReturnEnv(flags.num_envs, randomization="nominal", auto_reset=False)
    config = RenderConfig(name, cameras, *PICTURE_SIZE)
    renderer = make_renderer(config, SceneConfig(), env.num_envs, env.task.randomization)
    state = env.reset(flags.seed)
    images = np.array(renderer.render(state))
    joints = np.array(env.observe(state).joint_pos, np.float32)
    renderer.close()
    return images, joints, env.model.jnt_range[: len(JOINTS)], name


def _save_pictures(folder: Path, images: np.ndarray, on_device: Any, size: int) -> None:
    from mjx_so101.render.sheet import contact_sheet, save_png
    from policies.groot.processor import prepare_images

    pixels = (prepare_images(on_device, size) * 0.5 + 0.5) * 255
    seen = pixels.round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    for name, pictures in (("cameras.png", images), ("model_input.png", seen)):
        save_png(folder / name, contact_sheet(pictures))
        print(f"{folder / name}: {len(pictures)} environments, {pictures.shape[3]} x {pictures.shape[2]}")


def _memory(device: str) -> str:
    scale = 1 if sys.platform == "darwin" else 1024
    text = f"memory: process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30:.2f} GiB at its peak"
    if device.startswith("cuda"):
        import torch

        text += f", torch on the GPU {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    return text


def _in_simulation(bounds: Any, joint_map: Any) -> np.ndarray:
    """Lowest and highest angle [2, 6] of the training data in the simulation's convention."""
    ends = np.array(joint_map.sign) * (np.array([bounds.low, bounds.high]) - np.array(joint_map.offset))
    return np.sort(ends, axis=0)


def _compare(chunk: np.ndarray, state: np.ndarray, policy: Any, limits: np.ndarray) -> list[str]:
    """Targets [env, horizon, 6] and start joints [env, 6] beside the training ranges and the joint limits."""
    targets = chunk.reshape(-1, len(JOINTS))
    trained = _in_simulation(policy.metadata.action, policy.joint_map)
    rows = ["", "targets               min     mean      max   trained on            joint limits         outside"]
    for unit, scale in (("deg", 180 / np.pi), ("rad", 1.0)):
        digits = 1 if unit == "deg" else 3
        for i, joint in enumerate(JOINTS):
            x = targets[:, i]
            low, high = trained[:, i]
            numbers = "".join(f"{value * scale:9.{digits}f}" for value in (x.min(), x.mean(), x.max()))
            learnt = f"{low * scale:8.{digits}f} to {high * scale:7.{digits}f}"
            allowed = f"{limits[i, 0] * scale:8.{digits}f} to {limits[i, 1] * scale:7.{digits}f}"
            beyond = np.mean((x < low) | (x > high)), np.mean((x < limits[i, 0]) | (x > limits[i, 1]))
            rows.append(f"{joint:13} {unit}{numbers}  {learnt}  {allowed}  {beyond[0]:4.0%} / {beyond[1]:4.0%}")
    rows.append("outside: share of targets beyond the training range / beyond the joint limits")
    finite = np.isfinite(targets)
    rows.append(f"finite: {'yes' if finite.all() else f'no, {np.mean(~finite):.1%} are not'}")
    low, high = _in_simulation(policy.metadata.state, policy.joint_map)
    strange = [
        f"{joint} ({low[i]:.2f} to {high[i]:.2f} rad, here {state[:, i].min():.2f} to {state[:, i].max():.2f})"
        for i, joint in enumerate(JOINTS)
        if state[:, i].min() < low[i] or state[:, i].max() > high[i]
    ]
    if strange:
        rows.append(
            f"warning: the start pose is outside of what the checkpoint was trained on: {', '.join(strange)}. If the "
            "data has another calibration, give --joint-sign and --joint-offset."
        )
    return rows
