"""SigLIP2 image encoder and the connector that brings its tokens to the language model's width."""

from __future__ import annotations

import torch
from torch import nn

from policies.groot.config import VisionConfig
from policies.groot.layers import FeedForward, SelfAttention, constant, layer_norm, linear, linear_of
from policies.groot.layout import CONNECTOR, VISION
from policies.groot.loader import Weights


class VisionLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, weights: Weights, config: VisionConfig):
        super().__init__()
        inputs = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.norm1 = layer_norm(weights, "layer_norm1", config.layer_norm_eps)
        self.attention = SelfAttention(weights, config.num_attention_heads, inputs, "self_attn.out_proj")
        self.norm2 = layer_norm(weights, "layer_norm2", config.layer_norm_eps)
        self.feed_forward = FeedForward(weights, "mlp.fc1", "mlp.fc2")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Vision(nn.Module):
    """Images to language-width tokens: patches, transformer, last norm, connector. The pooling head is not used."""

    def __init__(self, weights: Weights, config: VisionConfig):
        super().__init__()
        tower = weights.at(VISION)
        self.patch_size = config.patch_size
        weight = tower.tensor("embeddings.patch_embedding.weight")
        self.patch = linear_of(weight.flatten(1), tower.tensor("embeddings.patch_embedding.bias"))
        self.positions = constant(tower.tensor("embeddings.position_embedding.weight"))
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(VisionLayer(tower.at(f"encoder.layers.{i}."), config) for i in layers)
        self.last_norm = layer_norm(tower, "post_layernorm", config.layer_norm_eps)
        self.connector = linear(weights, CONNECTOR)

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """[image, 3, size, size] -> [image, patch, 3 * patch_size^2], channels first as the weights have them."""
        size = self.patch_size
        x = pixels.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [image, 3, row, y, column, x]
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[image, 3, size, size] normalised pixels -> [image, tokens, language width]."""
        x = self.patch(self.patches(pixels)) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.connector(self.last_norm(x))
