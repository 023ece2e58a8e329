"""Measurements of GR00T alone: inferences/s, fp8, kernels, memory, and the exchange of arrays between JAX and torch."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch

from policies.groot.dlpack import to_torch
from policies.groot.policy import Gr00tPolicy
from policies.groot.source import Gr00tSource
from policies.model import ModelOptions


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gpu_memory() -> dict[str, float]:
    """Peak GiB of torch, and GiB in use on the whole device: JAX's share, Warp's buffers and torch."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "torch_peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "torch_reserved_gib": torch.cuda.memory_reserved() / 2**30,
        "device_in_use_gib": (total - free) / 2**30,
    }


def random_inputs(policy: Gr00tPolicy, batch: int) -> tuple[torch.Tensor, ...]:
    """Images of noise at the renderer's size, joint angles and starting noise, on the policy's device."""
    random = torch.Generator(policy.device).manual_seed(0)
    make = {"device": policy.device, "generator": random}
    return (
        torch.randint(0, 256, (batch, len(policy.cameras), 240, 320, 3), dtype=torch.uint8, **make),
        0.5 * torch.rand(batch, 6, **make),
        torch.randn(batch, policy.horizon, policy.config.head.action_dim, **make),
    )


def measure_inference(policy: Gr00tPolicy, batch: int, repeats: int = 10) -> dict[str, Any]:
    """Inferences/s of one micro-batch from uint8 images to joint targets, with what the first call took."""
    policy.micro_batch = batch
    inputs = random_inputs(policy, batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    policy.chunk(*inputs)
    synchronize()
    first = time.perf_counter() - begin
    policy.chunk(*inputs)
    synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        policy.chunk(*inputs)
    synchronize()
    seconds = (time.perf_counter() - begin) / repeats
    return {
        "micro_batch": batch,
        "inferences_per_s": batch / seconds,
        "seconds_per_pass": seconds,
        "first_pass_s": first,
        **gpu_memory(),
    }


def write_profile(policy: Gr00tPolicy, batch: int, path: Path) -> None:
    """Write the time of each kernel of one pass, the longest first."""
    inputs = random_inputs(policy, batch)
    with torch.profiler.profile() as profile:
        policy.chunk(*inputs)
        synchronize()
    column = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(profile.key_averages().table(sort_by=column, row_limit=60, max_name_column_width=100))
    print(f"written: {path}")


def measure_fp8(options: ModelOptions, reference: Gr00tPolicy, batch: int) -> dict[str, Any]:
    """Inferences/s in fp8, and how far its targets are from those of `reference` on the same inputs and noise."""
    policy = Gr00tSource.load(dataclasses.replace(options, fp8=True)).policy
    row = measure_inference(policy, batch)
    inputs = random_inputs(policy, batch)
    exact, fast = reference.chunk(*inputs), policy.chunk(*inputs)
    difference = (fast - exact).abs()
    return {
        **row,
        "mean_action_error_rad": float(difference.mean()),
        "largest_action_error_rad": float(difference.max()),
        "standard_deviation_of_actions_rad": float(exact.std(dim=(0, 1)).mean()),
    }


def measure_exchange(source: Gr00tSource, batch: int) -> dict[str, Any]:
    """Whether arrays change sides between JAX and torch in place: addresses, and copies to the host in a profile."""
    inputs = [jnp.asarray(x.cpu().numpy()) for x in random_inputs(source.policy, batch)]
    there = [to_torch(array) for array in inputs]
    jax.block_until_ready(source.chunk(*inputs))
    with torch.profiler.profile() as profile:
        targets = source.chunk(*inputs)
        jax.block_until_ready(targets)
    copies = [event.key for event in profile.key_averages() if "DtoH" in event.key or "HtoD" in event.key]
    return {
        "same_addresses": [a.unsafe_buffer_pointer() == b.data_ptr() for a, b in zip(inputs, there, strict=True)],
        "copies_between_host_and_device": copies,
    }
