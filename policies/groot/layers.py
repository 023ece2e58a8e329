"""Building blocks shared by the parts of the model. Each is built from a checkpoint's weights, ready for inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from policies.groot.loader import Weights


def constant(tensor: torch.Tensor) -> nn.Parameter:
    """Parameter that is never trained: the base policy is frozen."""
    return nn.Parameter(tensor, requires_grad=False)


def linear_of(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """Linear layer with the given weight [outputs, inputs] and bias [outputs]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = constant(weight)
    if bias is not None:
        layer.bias = constant(bias)
    return layer


def linear(weights: Weights, *names: str) -> nn.Linear:
    """Linear layer of the checkpoint; several names are fused into one that gives their outputs side by side."""
    bias = weights.tensor(*(f"{name}.bias" for name in names)) if weights.has(f"{names[0]}.bias") else None
    return linear_of(weights.tensor(*(f"{name}.weight" for name in names)), bias)


def embodiment_linear(weights: Weights, name: str) -> nn.Linear:
    """One embodiment's layer of a coder, stored as W [embodiments, inputs, outputs] and b [embodiments, outputs]."""
    matrix, bias = weights.of_embodiment(f"{name}.W"), weights.of_embodiment(f"{name}.b")
    return linear_of(matrix.T.contiguous().to(weights.dtype), bias.to(weights.dtype))


def layer_norm(weights: Weights, name: str, eps: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm with the checkpoint's scale and shift."""
    scale = weights.tensor(f"{name}.weight")
    norm = nn.LayerNorm(scale.shape[0], eps=eps, device="meta")
    norm.weight, norm.bias = constant(scale), constant(weights.tensor(f"{name}.bias"))
    return norm


def rms_norm(weights: Weights, name: str, eps: float) -> nn.RMSNorm:
    """RMSNorm with the checkpoint's scale."""
    scale = weights.tensor(f"{name}.weight")
    norm = nn.RMSNorm(scale.shape[0], eps=eps, device="meta")
    norm.weight = constant(scale)
    return norm


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, tokens, heads * d] -> [batch, heads, tokens, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, d] -> [batch, tokens, heads * d]."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Bidirectional attention among the tokens, query, key and value in one matrix product."""

    def __init__(self, weights: Weights, heads: int, inputs: tuple[str, str, str], output: str):
        super().__init__()
        self.heads = heads
        self.qkv = linear(weights, *inputs)
        self.out = linear(weights, output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same shape."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(join_heads(F.scaled_dot_product_attention(q, k, v)))


@torch.library.custom_op("mjx_so101::linear_gelu", mutates_args=())
def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU (tanh form) of a linear layer on a GPU, applied by the matrix product itself before it writes its result.

    An operator of its own, because torch.compile would take the two apart again.
    """
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True)
    return rows.unflatten(0, x.shape[:-1])


@linear_gelu.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    del bias
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class FeedForward(nn.Module):
    """Two linear layers with the tanh form of GELU between them."""

    def __init__(self, weights: Weights, first: str, second: str):
        super().__init__()
        self.first = linear(weights, first)
        self.second = linear(weights, second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same shape."""
        if x.is_cuda and isinstance(self.first, nn.Linear):
            return self.second(linear_gelu(x, self.first.weight, self.first.bias))
        return self.second(F.gelu(self.first(x), approximate="tanh"))
