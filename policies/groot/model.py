"""GR00T N1.5 as one module: pixels, state and noise to a chunk of normalised actions."""

from __future__ import annotations

import torch
from torch import nn

from policies.groot.action_head import ActionHead
from policies.groot.config import ModelConfig
from policies.groot.language import Language
from policies.groot.loader import Weights
from policies.groot.prompt import Prompt
from policies.groot.vision import Vision


class Gr00tN15(nn.Module):
    """Native inference of N1.5 for one embodiment and one prompt.

    What does not change between calls is computed while loading: the embedded prompt, the time-dependent norms and
    the time half of the action encoder. What no output depends on is left out: logits and SigLIP's pooling head.
    """

    def __init__(self, weights: Weights, config: ModelConfig, prompt: Prompt, denoising_steps: int | None = None):
        super().__init__()
        text_parts = [list(part) for part in prompt.text_parts]
        self.vision = Vision(weights, config.vision)
        self.language = Language(weights, config.text, config.language_layers, text_parts, len(prompt))
        self.action_head = ActionHead(weights, config.head, denoising_steps or config.head.denoising_steps)
        self.eval()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [batch, camera, 3, size, size] -> language tokens [batch, prompt length, width]."""
        return self.language(self.vision(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2]))

    def forward(self, pixels: torch.Tensor, state: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Actions [batch, horizon, action_dim], normalised, in the model's dtype."""
        return self.action_head(self.encode(pixels), state, noise)
