"""What makes inference fast on a GPU: compilation, fp8 linear layers, and a micro-batch that fits into memory."""

from __future__ import annotations

import torch
from torch import nn

from mjx_so101.errors import ConfigError
from policies.groot.config import ModelConfig
from policies.groot.layers import constant
from policies.groot.model import Gr00tN15

LARGEST_FP8 = torch.finfo(torch.float8_e4m3fn).max
BEST_MICRO_BATCH = 160
"""Largest that is chosen without being asked for: it holds what 2,048 environments renew in a step (148)."""
SMALLEST_COMPILED = 16
"""Smaller batches run as written: compiling for each of their sizes would take longer than it saves."""
FP8_CAPABILITY = (8, 9)


class Float8Linear(nn.Module):
    """Linear layer in fp8 (e4m3): one scale for each output of the weight and, found while running, for each row."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, scale = quantize(layer.weight)
        self.weight, self.scale = constant(self.weight), constant(scale.T.contiguous())  # [out, in], [1, out]
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        rows, scale = quantize(x.flatten(0, -2))
        y = torch._scaled_mm(
            rows, self.weight.T, scale_a=scale, scale_b=self.scale, bias=self.bias, out_dtype=x.dtype,
            use_fast_accum=True,
        )  # fmt: skip
        return y.unflatten(0, x.shape[:-1])


def quantize(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, k] as float8_e4m3fn, each divided by its own scale, and the scales, float32 [n, 1]."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST_FP8
    return (rows / scale).to(torch.float8_e4m3fn), scale


def use_float8(model: Gr00tN15, device: torch.device, dtype: torch.dtype) -> None:
    """Turn the large linear layers of `model` into fp8; coders, norms and attention stay in bfloat16.

    Raises:
        ConfigError: without a GPU that multiplies fp8, or for weights that are not bfloat16.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise ConfigError(f"fp8 needs a GPU of compute capability 8.9 or newer (Ada, Hopper), not {device}.")
    if dtype != torch.bfloat16:
        raise ConfigError(f"fp8 goes with dtype 'bfloat16', not {str(dtype).removeprefix('torch.')!r}.")
    for part in (model.vision, model.language, model.action_head.token_attention, model.action_head.layers):
        _convert(part)


def _convert(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and child.in_features % 16 == 0 and child.out_features % 16 == 0:
            setattr(module, name, Float8Linear(child))
        else:
            _convert(child)


def bytes_per_sample(config: ModelConfig, cameras: int, tokens: int, dtype: torch.dtype) -> int:
    """Memory that one environment takes on its way through the model, beside the weights.

    The larger of vision (all images of the environment in one pass) and language, where the feed-forward part is
    widest, and what the action head remembers of the tokens. 55 MB for the 3B model with two cameras in bfloat16,
    as measured.
    """
    vision, text, head = config.vision, config.text, config.head
    seen = cameras * vision.num_tokens * (2 * vision.intermediate_size + 4 * vision.hidden_size)
    read = tokens * (3 * text.intermediate_size + 3 * text.hidden_size)
    remembered = (head.dit_layers // 2 if head.interleave_self_attention else head.dit_layers) * 2 * head.width * tokens
    return (max(seen, read) + remembered) * dtype.itemsize


def largest_micro_batch(free: int, per_sample: int) -> int:
    """Environments a pass that fit into `free` bytes with a fifth to spare, `BEST_MICRO_BATCH` at most.

    Raises:
        ConfigError: if not even one fits.
    """
    fitting = int(free / (1.25 * per_sample))
    if fitting < 1:
        raise ConfigError(
            f"{free / 2**30:.2f} GiB of memory are free, one environment needs {1.25 * per_sample / 2**30:.2f} GiB; "
            "give JAX less of the GPU (--jax-memory), or use one with more memory."
        )
    return min(fitting, BEST_MICRO_BATCH)


def free_memory(device: torch.device) -> int:
    """Bytes that torch may still take on a GPU: free on the device, or held by torch and unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
