"""Per-embodiment coders of the action head: state encoder, action encoder and action decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from policies.groot.config import HeadConfig
from policies.groot.layers import constant, embodiment_linear, linear_of
from policies.groot.layout import HEAD
from policies.groot.loader import Weights


class Perceptron(nn.Module):
    """Two layers with ReLU between them: the state encoder and the action decoder."""

    def __init__(self, weights: Weights, name: str):
        super().__init__()
        self.first = embodiment_linear(weights, f"{HEAD}{name}.layer1")
        self.second = embodiment_linear(weights, f"{HEAD}{name}.layer2")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.second(F.relu(self.first(x)))


def time_waves(times: torch.Tensor, width: int) -> torch.Tensor:
    """Sines, then cosines, of the denoising times [n] at `width / 2` frequencies: [n, width]."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=times.device) * (-math.log(10000.0) / half))
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ActionEncoder(nn.Module):
    """Noisy actions at one of the fixed denoising times to DiT tokens, with learned positions.

    The second layer reads [action, time]. The times are fixed, so its time half is multiplied out while loading and
    becomes a bias of each denoising step.
    """

    step_bias: torch.Tensor
    """What the time adds in the second layer at each denoising step, [step, width]."""

    def __init__(self, weights: Weights, config: HeadConfig, times: torch.Tensor):
        super().__init__()
        self.first = embodiment_linear(weights, HEAD + "action_encoder.W1")
        matrix = weights.of_embodiment(HEAD + "action_encoder.W2.W")
        self.second = linear_of(matrix[: config.width].T.contiguous().to(weights.dtype), None)
        time_part = time_waves(times, config.width) @ matrix[config.width :]
        step_bias = time_part + weights.of_embodiment(HEAD + "action_encoder.W2.b")
        self.register_buffer("step_bias", step_bias.to(weights.dtype))
        self.third = embodiment_linear(weights, HEAD + "action_encoder.W3")
        positions = weights.at(HEAD).tensor("position_embedding.weight")[: config.horizon]
        self.positions = constant(positions.clone())

    def forward(self, actions: torch.Tensor, step: int) -> torch.Tensor:
        """[batch, horizon, action_dim] -> [batch, horizon, width]."""
        hidden = F.silu(self.second(self.first(actions)) + self.step_bias[step])
        return self.third(hidden) + self.positions
