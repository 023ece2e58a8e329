"""The frozen base policy: images and joint angles of a batch in, chunks of absolute joint targets out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mjx_so101.errors import ConfigError, require_choice
from policies.cameras import match_cameras
from policies.groot.accelerate import (
    SMALLEST_COMPILED,
    bytes_per_sample,
    free_memory,
    largest_micro_batch,
    use_float8,
)
from policies.groot.config import (
    EMBODIMENT_IDS,
    LARGEST_ANGLE,
    NUM_JOINTS,
    RANDOM,
    ModelConfig,
    TextConfig,
    VisionConfig,
)
from policies.groot.loader import (
    METADATA,
    TensorFiles,
    Weights,
    commit_of,
    read_config,
    read_json,
    resolve_folder,
    weight_files,
)
from policies.groot.model import Gr00tN15
from policies.groot.processor import Metadata, Scaler, prepare_images
from policies.groot.prompt import FORMS, Prompt, build_prompt, instruction_ids
from policies.groot.tokenizer import encode_instruction
from policies.joints import JointMap
from policies.start import in_simulation

ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Attention kernels in the order of their speed on an H100; torch takes the first that works where it runs."""
COMPILE = {"triton.multi_kernel": 1}
"""Norms are compiled in two ways, and the faster one is taken: a quarter less of their time on an H100."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Gr00tPolicy:
    """GR00T N1.5 ready for inference. Build it with `from_checkpoint`."""

    model: Gr00tN15
    config: ModelConfig
    metadata: Metadata
    prompt: Prompt
    cameras: tuple[str, ...]
    """Views that `images` must hold, in this order."""
    joint_map: JointMap
    device: torch.device
    dtype: torch.dtype
    micro_batch: int | None = None
    """Most environments that go through the model at once; None: all of them."""
    compiled: bool = False
    """Whether batches of a useful size run through torch.compile."""
    random_weights: bool = False
    """Whether `make_checkpoint` wrote the weights: the actions mean nothing."""
    commit: str = ""
    """Commit of the Hugging Face repo that the weights came from; empty for a folder."""

    def __post_init__(self) -> None:
        """Put the statistics on the device."""
        compiled = torch.compile(self.model, fullgraph=True, dynamic=False, options=COMPILE) if self.compiled else None
        self._compiled_model = compiled
        self._state = Scaler(self.metadata.state, self.joint_map, self.device)
        self._action = Scaler(self.metadata.action, self.joint_map, self.device)
        self._input_was_plausible = False

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        revision: str = "",
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        cameras: Sequence[str] | Mapping[str, str] | None = None,
        instruction: str | None = None,
        instruction_ids: Sequence[int] | None = None,
        instruction_form: str = "training",
        tokenizer: str | Path | None = None,
        embodiment: str = "new_embodiment",
        vision_config: VisionConfig | Mapping[str, Any] | None = None,
        text_config: TextConfig | Mapping[str, Any] | None = None,
        joint_map: JointMap | None = None,
        denoising_steps: int | None = None,
        micro_batch: int | None = None,
        compile: bool = False,
        fp8: bool = False,
    ) -> Gr00tPolicy:
        """Load a checkpoint in the official layout.

        Args:
            path: its folder, or a Hugging Face repo id.
            revision: commit, tag or branch of the repo; default: its main branch as it is now.
            device: where the model and all tensors of `chunk` live.
            dtype: of the weights and the arithmetic; a float32 checkpoint may run in bfloat16 and the reverse.
            cameras: views in the order of the images, or a mapping from the checkpoint's camera keys to views; None
                takes what the keys tell.
            instruction: text of the task, one of those whose ids are known; None is the training data's "None".
            instruction_ids: Qwen ids of any other instruction.
            tokenizer: folder with Qwen's vocab.json and merges.txt, for any other instruction as text.
            instruction_form: "training" (`None`) or "evaluation" (`['None']`, as NVIDIA's evaluation renders it).
            embodiment: name in metadata.json.
            vision_config: sizes of the image encoder if not the 3B's.
            text_config: sizes of the language model if not the 3B's.
            joint_map: signs and offsets between the simulation's joints and those of the training data.
            denoising_steps: fewer (or more) than the checkpoint's own 4.
            micro_batch: most environments a pass. A larger batch is split into passes of equal size, the last one
                padded. None: what fits into the GPU's free memory, at most 160; on the CPU the whole batch.
            compile: let torch.compile fuse the model, anew for each size of a pass of 16 or more (a minute or two
                each the first time).
            fp8: the large linear layers in fp8; faster and less exact, see `python -m bench.groot`.

        Raises:
            ConfigError: if `path` is no N1.5 checkpoint, its tensors are not those of its config, or a value is wrong.
            CheckpointError: if a file of it is missing or damaged.
        """
        device, dtype = _device(device), _dtype(dtype)
        for name, value in (("denoising_steps", denoising_steps), ("micro_batch", micro_batch)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; give a whole number above 0, or None.")
        folder = resolve_folder(path, revision)
        document = read_config(folder)
        config = ModelConfig.from_json(document, vision_config, text_config)
        metadata = Metadata.from_json(read_json(folder / METADATA), embodiment)
        views = match_cameras(metadata.cameras, cameras)
        prompt = _prompt(config, len(views), instruction, instruction_ids, instruction_form, tokenizer)
        _require_room(config, metadata)
        row = EMBODIMENT_IDS[embodiment]
        if row >= config.head.max_embodiments:
            raise ConfigError(
                f"Embodiment {embodiment!r} is row {row}; the checkpoint has {config.head.max_embodiments}."
            )
        files = TensorFiles(weight_files(folder))
        files.check(config)
        with torch.no_grad():
            model = Gr00tN15(Weights(files, device, dtype, row), config, prompt, denoising_steps)
            if fp8:
                use_float8(model, device, dtype)
        policy = cls(
            model, config, metadata, prompt, views, joint_map or JointMap(), device, dtype, micro_batch, compile,
            random_weights=bool(document.get(RANDOM)), commit=commit_of(path, folder),
        )  # fmt: skip
        if micro_batch is None and device.type == "cuda":
            policy.micro_batch = largest_micro_batch(free_memory(device), policy.bytes_per_sample)
        return policy

    @property
    def bytes_per_sample(self) -> int:
        """Memory that one environment of a pass takes, beside the weights."""
        return bytes_per_sample(self.config, len(self.cameras), len(self.prompt), self.dtype)

    @property
    def horizon(self) -> int:
        """Targets in a chunk."""
        return self.config.head.horizon

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest target [6] of each joint in the training data (rad), in the simulation's convention."""
        return in_simulation(self.metadata.action, self.joint_map)

    @property
    def state_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest measured angle [6] of each joint in the training data (rad), as `action_range`."""
        return in_simulation(self.metadata.state, self.joint_map)

    @torch.no_grad()  # inference_mode would break torch.compile here
    def chunk(self, images: torch.Tensor, state: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Chunks of absolute joint targets, float32 [batch, horizon, 6] (rad), in the simulation's joint convention.

        Args:
            images: uint8 [batch, camera, height, width, 3] sRGB, cameras in the order of `self.cameras`.
            state: float32 [batch, 6] measured joint positions (rad), gripper last.
            noise: float32 [batch, horizon, action_dim], standard normal: where the denoising starts.

        Raises:
            ConfigError: for another shape, dtype or device; on the first call also for a state or images that cannot
                be real (later calls are not looked into, which would wait for the device).
        """
        return self._action.restore(self.normalised_chunk(images, state, noise))

    @torch.no_grad()
    def normalised_chunk(self, images: torch.Tensor, state: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What the model itself gives: float32 [batch, horizon, action_dim] before un-normalising. See `chunk`."""
        self._require_inputs(images, state, noise)
        if not self._input_was_plausible:
            require_plausible(images, state, self.cameras)
            self._input_was_plausible = True
        batch = len(state)
        size = pass_size(batch, self.micro_batch)
        parts = []
        for start in range(0, batch, size):
            part = [x[start : start + size] for x in (images, state, noise)]
            missing = size - len(part[0])
            part = [torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x for x in part]
            parts.append(self._try_pass(*part)[: size - missing])
        return torch.cat(parts)

    def _try_pass(self, images: torch.Tensor, state: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`_pass`, with an error that says what would fit if the GPU's memory does not."""
        try:
            return self._pass(images, state, noise)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            most = largest_micro_batch(free_memory(self.device), self.bytes_per_sample)
            fits = min(most, max(1, len(state) // 2))
            raise ConfigError(
                f"The GPU's memory does not hold a pass of {len(state)} environments; {fits} fit: --micro-batch {fits}."
            ) from error

    def _pass(self, images: torch.Tensor, state: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Normalised actions, float32, of environments that go through the model together."""
        pixels = prepare_images(images, self.config.vision.image_size).to(self.dtype)
        state = F.pad(self._state.normalise(state), (0, self.config.head.state_dim - self._state.size)).to(self.dtype)
        small = self._compiled_model is None or len(state) < SMALLEST_COMPILED
        model = self.model if small else self._compiled_model
        with sdpa_kernel(ATTENTION, set_priority=True):
            return model(pixels, state, noise.to(self.dtype)).float()

    def _require_inputs(self, images: torch.Tensor, state: torch.Tensor, noise: torch.Tensor) -> None:
        """Raise ConfigError unless shapes, dtypes and devices are right; reads no values."""
        for name, value, dtype in (
            ("images", images, torch.uint8),
            ("state", state, torch.float32),
            ("noise", noise, torch.float32),
        ):
            if not isinstance(value, torch.Tensor):
                raise ConfigError(f"{name} is a {type(value).__name__}; a torch tensor is needed.")
            if value.dtype != dtype:
                raise ConfigError(f"{name} is {value.dtype}; it must be {dtype}.")
            if value.device != self._state.low.device:
                raise ConfigError(f"{name} is on {value.device}; the model is on {self._state.low.device}.")
        if images.ndim != 5 or images.shape[-1] != 3 or min(images.shape[2:4]) < 2:
            raise ConfigError(f"images has shape {tuple(images.shape)}; [batch, camera, height, width, 3] is needed.")
        if images.shape[1] != len(self.cameras):
            raise ConfigError(
                f"images hold {images.shape[1]} cameras; the checkpoint was trained on {len(self.cameras)}: "
                f"{', '.join(self.cameras)}."
            )
        batch = images.shape[0]
        for name, value, shape in (
            ("state", state, (batch, NUM_JOINTS)),
            ("noise", noise, (batch, self.horizon, self.config.head.action_dim)),
        ):
            if tuple(value.shape) != shape:
                raise ConfigError(f"{name} has shape {tuple(value.shape)}; {shape} is needed for {batch} images.")
        if batch == 0:
            raise ConfigError("The batch is empty.")


def pass_size(batch: int, most: int | None) -> int:
    """Environments in each of the fewest passes of at most `most` that hold `batch`, as equal as can be."""
    return batch if most is None or batch <= most else math.ceil(batch / math.ceil(batch / most))


def require_plausible(images: torch.Tensor, state: torch.Tensor, cameras: Sequence[str]) -> None:
    """Refuse inputs that no working robot or renderer gives; it waits for the device, so it is not for every chunk.

    Raises:
        ConfigError: for a state that is not finite, all zeros, one constant or in degrees, an image of one colour, or
            the same picture from two cameras.
    """
    if not torch.isfinite(state).all():
        raise ConfigError("state holds NaN or infinity.")
    flat = state.amax(dim=-1) == state.amin(dim=-1)
    if flat.any():
        env = int(flat.nonzero()[0])
        kind = "all zero" if state[env, 0] == 0 else f"{float(state[env, 0]):g} in all joints"
        raise ConfigError(f"state of environment {env} is {kind}; give the measured joint positions (qpos) in rad.")
    if state.abs().amax() > LARGEST_ANGLE:
        raise ConfigError(f"state reaches {float(state.abs().amax()):g}; it must be in radians.")
    pictures = images.flatten(2)
    plain = (pictures.amax(dim=2) == pictures.amin(dim=2)).all(dim=0)
    if plain.any():
        raise ConfigError(
            f"Every image of camera {cameras[int(plain.nonzero()[0])]!r} is of one colour: nothing drawn."
        )
    for i in range(len(cameras)):
        for j in range(i + 1, len(cameras)):
            if torch.equal(images[:, i], images[:, j]):
                raise ConfigError(f"Cameras {cameras[i]!r} and {cameras[j]!r} show the same picture.")


def _require_room(config: ModelConfig, metadata: Metadata) -> None:
    """Raise ConfigError if the model's vectors are too short for the numbers of the statistics."""
    for name, limit, bounds in (
        ("max_state_dim", config.head.state_dim, metadata.state),
        ("action_dim", config.head.action_dim, metadata.action),
    ):
        needed = NUM_JOINTS + bool(bounds.extra)
        if limit < needed:
            raise ConfigError(f"config.json: {name} is {limit}; the statistics in metadata.json hold {needed} numbers.")


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}; give 'cpu', 'cuda' or 'cuda:0'.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but this torch ({torch.__version__}) sees no CUDA GPU.")
    return found


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ConfigError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    return found


def _prompt(
    config: ModelConfig,
    cameras: int,
    instruction: str | None,
    ids: Sequence[int] | None,
    form: str,
    tokenizer: str | Path | None,
) -> Prompt:
    if tokenizer is not None:
        if instruction is None or ids is not None:
            raise ConfigError("tokenizer is given, but no instruction as text for it; give both, or neither.")
        require_choice("instruction_form", form, FORMS)
        ids = encode_instruction(instruction, form, tokenizer)
        instruction = None
    ids = instruction_ids(instruction, ids, form, config.text.vocab_size)
    prompt = build_prompt(cameras, config.vision.num_tokens, ids)
    if max(prompt.ids) >= config.text.vocab_size:
        raise ConfigError(
            f"text_config.vocab_size is {config.text.vocab_size}; the prompt needs {max(prompt.ids) + 1}."
        )
    return prompt
