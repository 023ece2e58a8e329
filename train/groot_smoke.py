"""`so101 groot smoke`: load a checkpoint, show it the cameras once and compare its targets with its training data."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mjx_so101.errors import ConfigError, HealthError, require_choice
from mjx_so101.render import AUTO, BACKENDS
from mjx_so101.scene import JOINTS
from policies.groot import require_torch
from policies.model import PICTURE_SIZE, ModelOptions
from policies.start import outside_training, require_start
from train.config import TrainConfig
from train.run_folder import prepare_folder


@dataclasses.dataclass(frozen=True)
class SmokeFlags:
    """Flags of `so101 groot smoke`."""

    checkpoint: str
    """Folder of a checkpoint, or a Hugging Face repo id."""
    revision: str = ""
    """Commit, tag or branch of a Hugging Face repo; default: its main branch as it is now."""
    home: tuple[float, ...] | str = "task"
    """Start pose: 'task', 'checkpoint' (the middle of its states) or six angles in rad, gripper last."""
    any_start: bool = False
    """Do not refuse a start pose that is unlike the states of the training data."""
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
    embodiment: str = "new_embodiment"
    """Name in metadata.json."""
    instruction: str = ""
    """Task in words; default: the 'None' of the training data."""
    instruction_form: str = "training"
    """'training' or 'evaluation'."""
    tokenizer: str = ""
    """Folder with Qwen's vocab.json and merges.txt, for an instruction other than the known ones."""
    denoising_steps: int = 0
    """0: the checkpoint's own number."""
    base_renderer: str = "auto"
    """'auto', 'quad', 'warp', 'madrona' or 'mujoco', as for train and gate."""
    base_width: int = PICTURE_SIZE[0]
    """Pixels across of each picture, as for train and gate."""
    base_height: int = PICTURE_SIZE[1]
    """Pixels down."""
    seed: int = 0
    """Of the starts and of the noise."""
    out: Path | None = None
    """Folder for cameras.png (what is drawn) and model_input.png (what the model sees of it)."""

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ConfigError(f"num_envs is {self.num_envs}; it must be at least 1.")
        if self.dtype is not None:
            require_choice("dtype", self.dtype, ("float32", "bfloat16"))
        self.as_for_train()  # raises for a bad size or camera map

    def as_for_train(self) -> TrainConfig:
        """The flags that `so101 train` has too."""
        names = {field.name for field in dataclasses.fields(ModelOptions)} & {f.name for f in dataclasses.fields(self)}
        given = {name: getattr(self, name) for name in names - {"dtype"}}
        return TrainConfig(base="groot", home=self.home, randomization="nominal", model=ModelOptions(**given))


def smoke(flags: SmokeFlags) -> None:
    """Draw reset environments, ask the policy once and say whether its targets are plausible.

    Raises HealthError if a target is not finite.
    """
    require_choice("base_renderer", flags.base_renderer, (AUTO, *BACKENDS))
    if flags.out:
        prepare_folder(flags.out)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU is shared with torch
    require_torch()
    import torch

    from policies.groot import Gr00tPolicy, JointMap

    device = flags.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = flags.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    start = time.perf_counter()
    policy = Gr00tPolicy.from_checkpoint(
        flags.checkpoint,
        revision=flags.revision,
        device=device,
        dtype=dtype,
        cameras=ModelOptions(camera_map=flags.camera_map).cameras(),
        joint_map=JointMap(flags.joint_sign, flags.joint_offset),
        embodiment=flags.embodiment,
        instruction=flags.instruction or None,
        instruction_form=flags.instruction_form,
        tokenizer=flags.tokenizer or None,
        denoising_steps=flags.denoising_steps or None,
    )
    if policy.random_weights:
        print("random weights: the targets mean nothing")
    weights = sum(x.numel() * x.element_size() for x in policy.model.parameters())
    print(f"loaded in {time.perf_counter() - start:.1f} s: {weights:,} bytes of weights in {dtype} on {device}")

    images, state, limits, home = _draw(policy.cameras, flags)
    print(f"drawn by {flags.base_renderer}: cameras {', '.join(policy.cameras)}, uint8 {list(images.shape)}")
    generator = torch.Generator().manual_seed(flags.seed)
    shape = (flags.num_envs, policy.horizon, policy.config.head.action_dim)
    noise = torch.randn(shape, generator=generator)
    inputs = [x.to(device) for x in (torch.from_numpy(images), torch.from_numpy(state), noise)]
    if flags.out:
        _save_pictures(flags.out, images, inputs[0], policy.config.vision.image_size)
    else:
        print("pictures are not kept; --out FOLDER keeps what is drawn and what the model sees of it")

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        chunk = policy.chunk(*inputs).cpu().numpy()  # .cpu() waits for the device
        seconds.append(time.perf_counter() - start)
    print(f"state {list(state.shape)}, noise {list(noise.shape)} to targets {chunk.dtype} {list(chunk.shape)}")
    print(f"first call {seconds[0]:.3f} s, second call {seconds[1]:.3f} s for {flags.num_envs} environments")
    print(_memory(device))
    print("\n".join(_compare(chunk, policy, limits)))
    strange = outside_training(home, policy.state_range)
    print(f"start pose (rad): {', '.join(f'{angle:.3f}' for angle in home)}", *strange, sep="\n  unlike training: ")
    if not np.isfinite(chunk).all():
        raise HealthError(f"targets hold NaN or infinity in {dtype} on {device}; the checkpoint may be damaged.")
    if not flags.any_start:
        require_start(home, policy.state_range)


def _draw(cameras: tuple[str, ...], flags: SmokeFlags) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...]]:
    """Pictures [env, camera, height, width, 3], measured joints [env, 6], joint limits [6, 2] and the start pose [6]
    of a reset."""
    from mjx_so101 import SceneConfig
    from mjx_so101.render import RenderConfig, make_renderer
    from mjx_so101.scene import CAMERAS

    foreign = [name for name in cameras if name not in CAMERAS]
    if foreign:
        raise ConfigError(
            f"The scene has no camera {foreign[0]!r}; it has {', '.join(CAMERAS)}. Say what each of the checkpoint's "
            "cameras shows, as in --camera-map KEY=top (so101 groot inspect lists the keys)."
        )
    train = flags.as_for_train()
    config = RenderConfig(flags.base_renderer, cameras, flags.base_width, flags.base_height)
    # before the environment: Madrona comes before JAX
    renderer = make_renderer(config, SceneConfig(), flags.num_envs, train.load_randomization())
    env = train.environment(flags.num_envs, training=False)
    state = env.reset(flags.seed)
    images = np.array(renderer.render(state))
    joints = np.array(env.observe(state).joint_pos, np.float32)
    renderer.close()
    return images, joints, env.model.jnt_range[: len(JOINTS)], env.task.config.home


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


def _compare(chunk: np.ndarray, policy: Any, limits: np.ndarray) -> list[str]:
    """Targets [env, horizon, 6] beside the training range and the joint limits."""
    targets = chunk.reshape(-1, len(JOINTS))
    trained = np.stack(policy.action_range)
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
    return rows
