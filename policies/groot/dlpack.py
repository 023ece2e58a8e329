"""The door between JAX and torch: arrays change sides without a copy, on the CPU and on the GPU.

Both libraries hand their streams over, so the exchange waits for nothing and keeps the order of work. Memory is
shared: never write into a tensor that came from JAX, and never donate a JAX array while torch still reads it. The
importing side holds a reference, but a reference does not know of kernels that are queued: once it is gone, the
exporting library may give the memory to its next array while the other one's kernels have yet to read it.
`chunk_of_arrays` therefore keeps what it was given until torch's kernels have run, and gives an array of JAX's own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
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
    """`Gr00tPolicy.chunk` on JAX arrays: uint8 images, float32 state and noise -> float32 [batch, horizon, 6] (rad).

    The caller may let go of all of them at once; nothing is waited for. The targets (384 bytes a chunk) are copied.
    """
    _forget_what_was_read()
    inputs = (images, state, noise)
    targets = policy.chunk(*map(to_torch, inputs)).detach().contiguous()
    read = torch.cuda.Event() if targets.device.type == "cuda" else None
    if read is not None:
        read.record(torch.cuda.current_stream(targets.device))
    copy = jnp.array(to_jax(targets), copy=True)
    _in_use.append((read, copy, (inputs, targets)))
    return copy


_in_use: list[tuple[torch.cuda.Event | None, jax.Array, Any]] = []
"""For each pass not known to be over: torch's mark behind its kernels, JAX's copy, and what both read."""


def _forget_what_was_read() -> None:
    """Let go of the arrays of passes in which torch has read its inputs and JAX has made its copy."""
    _in_use[:] = [kept for kept in _in_use if not ((kept[0] is None or kept[0].query()) and kept[1].is_ready())]
