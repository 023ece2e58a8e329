"""GR00T as the model of `policies.chunked.ChunkedPolicy`."""

from __future__ import annotations

from typing import Any

import jax
import torch

from policies.groot.dlpack import chunk_of_arrays
from policies.groot.policy import Gr00tPolicy
from policies.joints import JointMap
from policies.model import ModelOptions


class Gr00tSource:
    """A loaded `Gr00tPolicy` that takes and gives JAX arrays. See `policies.chunked.ChunkSource`."""

    name = "groot"

    def __init__(self, policy: Gr00tPolicy, checkpoint: str = ""):
        """checkpoint: where it came from, for the record."""
        self.policy, self.checkpoint = policy, checkpoint
        self.cameras, self.horizon = policy.cameras, policy.horizon
        self.noise_shape = (policy.horizon, policy.config.head.action_dim)
        self.training_range, self.state_range = policy.action_range, policy.state_range
        self.note = (
            "GR00T has random weights: its actions, and any success, mean nothing." if policy.random_weights else ""
        )

    @classmethod
    def load(cls, config: ModelOptions) -> Gr00tSource:
        """Load the checkpoint on the device that JAX computes on."""
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        dtype = {"cuda": "bfloat16", "cpu": "float32"}[device] if config.dtype == "auto" else config.dtype
        policy = Gr00tPolicy.from_checkpoint(
            config.checkpoint,
            revision=config.revision,
            device=device,
            dtype=dtype,
            cameras=config.cameras(),
            instruction=config.instruction or None,
            instruction_form=config.instruction_form,
            tokenizer=config.tokenizer or None,
            embodiment=config.embodiment,
            joint_map=JointMap(config.joint_sign, config.joint_offset),
            denoising_steps=config.denoising_steps or None,
            micro_batch=config.micro_batch or None,
            compile=config.compile and device == "cuda",
            fp8=config.fp8,
        )
        source = cls(policy, config.checkpoint)
        print(source.memory(), flush=True)
        return source

    def chunk(self, images: jax.Array, state: jax.Array, noise: jax.Array) -> jax.Array:
        """See `ChunkSource.chunk`; the arrays change sides through DLPack."""
        return chunk_of_arrays(self.policy, images, state, noise)

    def memory(self) -> str:
        """One line on where the model lives and how the GPU is shared."""
        policy = self.policy
        line = f"GR00T N1.5 on {policy.device} in {str(policy.dtype).removeprefix('torch.')}"
        if policy.device.type != "cuda":
            return line
        statistics = jax.local_devices()[0].memory_stats() or {}
        free, total = torch.cuda.mem_get_info(policy.device)
        return (
            f"{line}, {torch.cuda.memory_allocated(policy.device) / 2**30:.1f} GiB of weights, micro-batch "
            f"{policy.micro_batch} ({policy.micro_batch * policy.bytes_per_sample / 2**30:.1f} GiB); JAX may take "
            f"{statistics.get('bytes_limit', 0) / 2**30:.1f} of {total / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
        )

    def describe(self) -> dict[str, Any]:
        """See `ChunkSource.describe`."""
        policy = self.policy
        return {
            "checkpoint": self.checkpoint,
            "commit": policy.commit,
            "cameras": list(self.cameras),
            "dtype": str(policy.dtype).removeprefix("torch."),
            "device": str(policy.device),
            "micro_batch": policy.micro_batch,
            "compiled": policy.compiled,
            "denoising_steps": policy.model.action_head.steps,
            "torch": torch.__version__,
        }
