"""Settings of the base policies that run a model: `groot` from a checkpoint, `remote` from a server."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

from mjx_so101.errors import ConfigError, require_choice
from policies.joints import JointMap

if TYPE_CHECKING:
    from policies.chunked import ChunkSource

OF_THE_MACHINE = ("checkpoint", "url", "compile", "micro_batch", "jax_memory", "timeout_s", "retries")
"""Options that say where and how a model runs, not what it answers: a resumed run may have others."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
PICTURE_SIZE = (320, 240)
"""Width and height (px) of the pictures that phospho-app/gr00t-paper_return-7w9itxzsox was trained on."""
SMALLEST_PICTURE, LARGEST_PICTURE = 16, 2048


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """What `--base groot` and `--base remote` run, and how."""

    checkpoint: str = ""
    """groot: folder of a GR00T N1.5 checkpoint, or a Hugging Face repo id."""
    revision: str = ""
    """groot: commit, tag or branch of a Hugging Face repo; default: its main branch as it is now."""
    url: str = ""
    """remote: address of the inference service, such as tcp://127.0.0.1:5555."""
    horizon: int = 16
    """Actions of a chunk that an environment executes before it gets a new one."""
    camera_map: tuple[str, ...] = ()
    """Which of the scene's cameras the checkpoint's are, as KEY=CAMERA; default: what the keys tell."""
    instruction: str = ""
    """Task in words; default: the 'None' of the training data."""
    instruction_form: str = "training"
    """'training', or 'evaluation' as NVIDIA's evaluation writes the instruction."""
    tokenizer: str = ""
    """groot: folder with Qwen's vocab.json and merges.txt, for an instruction other than the known ones."""
    embodiment: str = "new_embodiment"
    """groot: name in metadata.json."""
    joint_sign: tuple[float, ...] = (1.0,) * 6
    """Training data = sign * simulation + offset, for each joint, gripper last."""
    joint_offset: tuple[float, ...] = (0.0,) * 6
    """rad, see joint_sign."""
    denoising_steps: int = 0
    """groot: fewer steps are faster; 0: the checkpoint's own number."""
    dtype: str = "auto"
    """groot: 'float32', 'bfloat16' or 'float16'; auto: bfloat16 on a GPU, else float32."""
    fp8: bool = False
    """groot: large linear layers in fp8 (Ada or Hopper GPU)."""
    compile: bool = True
    """groot: torch.compile on a GPU; the first pass takes a minute or two longer."""
    micro_batch: int = 0
    """groot: most environments that go through the model at once; 0: what fits into the free memory, at most 160."""
    jax_memory: float = 0.2
    """groot: share of the GPU that JAX takes; the rest is for torch and the renderer."""
    base_renderer: str = "auto"
    """Draws what the model sees: 'quad', 'warp', 'madrona' or 'mujoco' (OpenGL, one by one); 'auto': quad, or warp."""
    base_width: int = PICTURE_SIZE[0]
    """Pixels across of each picture that the model is shown, before it is cropped and squeezed to a square."""
    base_height: int = PICTURE_SIZE[1]
    """Pixels down."""
    any_start: bool = False
    """groot: run from a start pose that is unlike the states of the training data, instead of refusing it."""
    single_arm: int = 5
    """remote: joints under the server's key single_arm, beside gripper: 5, or 6 where the gripper is there twice."""
    timeout_s: float = 10.0
    """remote: longest wait for one answer."""
    retries: int = 2
    """remote: further tries after a timeout."""

    def __post_init__(self) -> None:
        require_choice("dtype", self.dtype, DTYPES)
        for name, least in (("horizon", 1), ("denoising_steps", 0), ("micro_batch", 0), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        for name in ("base_width", "base_height"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} is {value!r}; give a whole number of pixels.")
            if not SMALLEST_PICTURE <= value <= LARGEST_PICTURE:
                raise ConfigError(f"{name} is {value}; give {SMALLEST_PICTURE} to {LARGEST_PICTURE} pixels.")
        if self.single_arm not in (5, 6):
            raise ConfigError(f"single_arm is {self.single_arm}; it must be 5 or 6.")
        if not 0 < self.jax_memory < 1:
            raise ConfigError(f"jax_memory is {self.jax_memory}; give a share of the GPU between 0 and 1.")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise ConfigError(f"timeout_s is {self.timeout_s}; it must be greater than 0 s.")
        self.cameras()  # raises for an entry that is no KEY=CAMERA

    def cameras(self) -> dict[str, str] | None:
        """`camera_map` as a mapping, None if it is empty."""
        wrong = [entry for entry in self.camera_map if entry.count("=") != 1 or "" in entry.split("=")]
        if wrong:
            raise ConfigError(f"camera_map holds {wrong[0]!r}; write KEY=CAMERA, such as image_cam_0=top.")
        return dict(entry.split("=") for entry in self.camera_map) or None

    def require(self, base: str) -> None:
        """Raise ConfigError if base policy `base` needs something that is not given."""
        if base == "groot" and not self.checkpoint:
            raise ConfigError("base 'groot' needs --checkpoint: a folder in GR00T N1.5's layout, or a repo id.")
        if base == "remote" and not self.url:
            raise ConfigError("base 'remote' needs --url, such as --url tcp://127.0.0.1:5555.")

    def pinned(self) -> ModelOptions:
        """The same with the commit of a Hugging Face repo, so that a run can say which model it had. It is fetched.

        Raises ConfigError for a checkpoint that is neither a folder here nor can be fetched.
        """
        from policies.groot import require_torch

        require_torch()
        from policies.groot.loader import commit_of, resolve_folder

        commit = commit_of(self.checkpoint, resolve_folder(self.checkpoint, self.revision))
        return dataclasses.replace(self, revision=commit or self.revision)

    def home(self) -> tuple[float, ...]:
        """Start pose [6] (rad) in the middle of the checkpoint's states, see `policies.start.middle_of`.

        Raises ConfigError if there is no checkpoint, or no such pose.
        """
        if not self.checkpoint:
            raise ConfigError(
                "--home checkpoint needs --checkpoint: the start pose comes from its statistics. A server does not "
                "tell them; give --home with six angles in rad, gripper last."
            )
        return _home(self.checkpoint, self.revision, self.embodiment, self.joint_sign, self.joint_offset)

    def load(self, base: str) -> ChunkSource:
        """The model of base policy `base`. Raises ConfigError or CheckpointError for what it lacks or refuses."""
        self.require(base)
        return _load(base, self)


@functools.lru_cache(maxsize=1)  # the gate, training and its evaluation share one
def _load(base: str, options: ModelOptions) -> ChunkSource:
    if base == "remote":
        from policies.remote import RemotePolicy

        text = {"instruction": options.instruction} if options.instruction else {}
        return RemotePolicy(
            options.url,
            timeout_s=options.timeout_s,
            retries=options.retries,
            cameras=options.cameras(),
            joint_map=JointMap(options.joint_sign, options.joint_offset),
            single_arm=options.single_arm,
            **text,
        )
    from policies.groot import require_torch

    require_torch()
    from policies.groot.source import Gr00tSource

    return Gr00tSource.load(options)


@functools.lru_cache(maxsize=4)
def _home(
    checkpoint: str, revision: str, embodiment: str, sign: tuple[float, ...], offset: tuple[float, ...]
) -> tuple[float, ...]:
    from policies.start import home_of_checkpoint

    return home_of_checkpoint(checkpoint, revision, embodiment, JointMap(sign, offset))
