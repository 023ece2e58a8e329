"""The door between JAX and torch: arrays change sides without a copy, on the CPU and on the GPU.

Both libraries hand their streams over, so the exchange waits for nothing and keeps the order of work. Memory is
shared: never write into a tensor that came from JAX, and never donate a JAX array while torch still reads it. The
importing side holds a reference, so the memory lives as long as either of them needs it.
"""

from __future__ import annotations

import jax
import torch

from mjx_so101.errors import ConfigError
from policies.groot.policy import Gr00tPolicy


def to_torch(array: jax.Array) -> torch.Tensor:
    """Torch view of a JAX array on the same device. Raises ConfigError for a traced array."""
    if isinstance(array, jax.core.Tracer):
        raise ConfigError("GR00T runs between jitted segments, not inside jit: give concrete arrays.")
    return torch.from_dlpack(array)


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """JAX view of a torch tensor on the same device; a strided tensor is made compact first, which copies it."""
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def chunk_of_arrays(policy: Gr00tPolicy, images: jax.Array, state: jax.Array, noise: jax.Array) -> jax.Array:
    """`Gr00tPolicy.chunk` on JAX arrays: uint8 images, float32 state and noise -> float32 [batch, horizon, 6] (rad)."""
    return to_jax(policy.chunk(*map(to_torch, (images, state, noise))))
