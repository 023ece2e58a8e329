"""The first layers of Qwen3, run over the prompt with the image tokens in place. No logits are computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from policies.groot.config import TextConfig
from policies.groot.layers import join_heads, linear, rms_norm, split_heads
from policies.groot.layout import LANGUAGE
from policies.groot.loader import Weights


def rotary_table(length: int, config: TextConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary position embedding, float32 [length, head_dim] each."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.arange(length, dtype=torch.float32)[:, None] / config.rope_theta**exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Apply the rotary position embedding to [batch, head, token, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


class LanguageLayer(nn.Module):
    """One Qwen3 layer: causal grouped-query attention with normalised queries and keys, then SwiGLU."""

    def __init__(self, weights: Weights, config: TextConfig):
        super().__init__()
        eps = config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.sizes = [heads * config.head_dim for heads in (self.heads, self.kv_heads, self.kv_heads)]
        self.norm1 = rms_norm(weights, "input_layernorm", eps)
        self.qkv = linear(weights, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.query_norm = rms_norm(weights, "self_attn.q_norm", eps)
        self.key_norm = rms_norm(weights, "self_attn.k_norm", eps)
        self.attention_out = linear(weights, "self_attn.o_proj")
        self.norm2 = rms_norm(weights, "post_attention_layernorm", eps)
        self.gate_up = linear(weights, "mlp.gate_proj", "mlp.up_proj")
        self.down = linear(weights, "mlp.down_proj")

    def attention(self, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """Each token attends to itself and to those before it."""
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        q = rotate(self.query_norm(split_heads(q, self.heads)), cosines, sines)
        k = rotate(self.key_norm(split_heads(k, self.kv_heads)), cosines, sines)
        v = split_heads(v, self.kv_heads)
        return self.attention_out(join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)))

    def forward(self, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same shape."""
        x = x + self.attention(self.norm1(x), cosines, sines)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Language(nn.Module):
    """Prompt and image tokens to hidden states after the final norm, which is what the action head was trained on.

    The prompt is the same for every environment, so its text is embedded once, while loading. `text_parts` are the
    ids before, between and after the images: one part more than there are cameras.
    """

    def __init__(self, weights: Weights, config: TextConfig, layers: int, text_parts: list[list[int]], length: int):
        super().__init__()
        model = weights.at(LANGUAGE + "model.")
        self.text = nn.ParameterList(nn.Parameter(weights.embed(ids), requires_grad=False) for ids in text_parts)
        self.layers = nn.ModuleList(LanguageLayer(model.at(f"layers.{i}."), config) for i in range(layers))
        self.last_norm = rms_norm(model, "norm", config.rms_norm_eps)
        cosines, sines = rotary_table(length, config)
        self.register_buffer("cosines", cosines.to(weights.device, weights.dtype))
        self.register_buffer("sines", sines.to(weights.device, weights.dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, camera, tokens, width] -> [batch, prompt length, width]."""
        batch = images.shape[0]
        parts = [self.text[0].expand(batch, -1, -1)]
        for camera, text in enumerate(list(self.text)[1:]):
            parts += [images[:, camera], text.expand(batch, -1, -1)]
        x = torch.cat(parts, dim=1)
        for layer in self.layers:
            x = layer(x, self.cosines, self.sines)
        return self.last_norm(x)
