"""Action head: self-attention over the language tokens, then the diffusion transformer (DiT) that makes actions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from policies.groot.coders import ActionEncoder, Perceptron
from policies.groot.config import HeadConfig
from policies.groot.layers import FeedForward, SelfAttention, constant, join_heads, layer_norm, linear, split_heads
from policies.groot.layout import HEAD, TIME_CHANNELS, is_self_attention
from policies.groot.loader import Weights

ATTENTION_INPUTS = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
ATTENTION_OUTPUT = "attn1.to_out.0"
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")

KeyValue = tuple[torch.Tensor, torch.Tensor]


class TokenLayer(nn.Module):
    """One bidirectional transformer layer over the language tokens."""

    def __init__(self, weights: Weights, heads: int):
        super().__init__()
        self.norm1 = layer_norm(weights, "norm1")
        self.attention = SelfAttention(weights, heads, ATTENTION_INPUTS, ATTENTION_OUTPUT)
        self.norm2 = layer_norm(weights, "norm3")  # diffusers' name: its norm2 belongs to a cross-attention
        self.feed_forward = FeedForward(weights, *FEED_FORWARD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class TokenAttention(nn.Module):
    """LayerNorm and self-attention that prepare the language tokens for the DiT."""

    def __init__(self, weights: Weights, config: HeadConfig):
        super().__init__()
        self.norm = layer_norm(weights, HEAD + "vlln")
        blocks = weights.at(HEAD + "vl_self_attention.transformer_blocks.")
        layers = range(config.token_layers)
        self.layers = nn.ModuleList(TokenLayer(blocks.at(f"{i}."), config.token_heads) for i in layers)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same shape."""
        x = self.norm(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


class CrossAttention(nn.Module):
    """Attention of the DiT's sequence to the language tokens, whose keys and values are made once a chunk."""

    def __init__(self, weights: Weights, heads: int):
        super().__init__()
        self.heads = heads
        self.query = linear(weights, "attn1.to_q")
        self.key_value = linear(weights, "attn1.to_k", "attn1.to_v")
        self.out = linear(weights, ATTENTION_OUTPUT)

    def remember(self, tokens: torch.Tensor) -> KeyValue:
        """Keys and values [batch, head, token, d] of the language tokens."""
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        return split_heads(key, self.heads), split_heads(value, self.heads)

    def forward(self, x: torch.Tensor, memory: KeyValue) -> torch.Tensor:
        """[batch, sequence, width] and what `remember` gave -> the same shape."""
        q = split_heads(self.query(x), self.heads)
        return self.out(join_heads(F.scaled_dot_product_attention(q, *memory)))


def embed_times(weights: Weights, times: torch.Tensor) -> torch.Tensor:
    """The DiT's embedding of the denoising times [n], after SiLU, float32 [n, width] (diffusers' embedding)."""
    half = TIME_CHANNELS // 2
    frequencies = torch.exp(torch.arange(half, device=times.device) * (-math.log(10000.0) / (half - 1)))
    angles = times.float()[:, None] * frequencies
    x = torch.cat([angles.cos(), angles.sin()], dim=-1)
    x = F.silu(_float32_linear(weights, "timestep_encoder.timestep_embedder.linear_1", x))
    return F.silu(_float32_linear(weights, "timestep_encoder.timestep_embedder.linear_2", x))


def _float32_linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights.float32(f"{name}.weight"), weights.float32(f"{name}.bias"))


class TimedNorm(nn.Module):
    """LayerNorm whose scale and shift follow the denoising time; both are computed for each step while loading."""

    def __init__(self, weights: Weights, scale: torch.Tensor, shift: torch.Tensor, eps: float):
        super().__init__()
        self.eps = eps
        self.scale = constant((1 + scale).to(weights.dtype))  # [step, width]
        self.shift = constant(shift.to(weights.dtype))  # [step, width]

    def forward(self, x: torch.Tensor, step: int) -> torch.Tensor:
        """[batch, sequence, width] -> the same shape."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.scale[step] + self.shift[step]


class DiTLayer(nn.Module):
    """One DiT layer: it attends to the language tokens or to its own sequence, then feed-forward."""

    def __init__(self, weights: Weights, config: HeadConfig, layer: int, time: torch.Tensor):
        super().__init__()
        scale, shift = _float32_linear(weights, "norm1.linear", time).chunk(2, dim=-1)
        self.norm1 = TimedNorm(weights, scale, shift, eps=1e-5)
        self.crosses = not is_self_attention(config, layer)
        self.attention: CrossAttention | SelfAttention
        if self.crosses:
            self.attention = CrossAttention(weights, config.dit_heads)
        else:
            self.attention = SelfAttention(weights, config.dit_heads, ATTENTION_INPUTS, ATTENTION_OUTPUT)
        self.feed_forward = FeedForward(weights, *FEED_FORWARD)

    def remember(self, tokens: torch.Tensor) -> tuple[KeyValue, ...]:
        """What `forward` wants of the language tokens: keys and values, or nothing."""
        return (self.attention.remember(tokens),) if self.crosses else ()

    def forward(self, x: torch.Tensor, memory: tuple[KeyValue, ...], step: int) -> torch.Tensor:
        """[batch, sequence, width] and what `remember` gave -> the same shape."""
        x = x + self.attention(self.norm1(x, step), *memory)
        return x + self.feed_forward(F.layer_norm(x, x.shape[-1:]))


class ActionHead(nn.Module):
    """Turns noise into a chunk of actions by a few Euler steps along the flow that the DiT predicts."""

    def __init__(self, weights: Weights, config: HeadConfig, steps: int):
        super().__init__()
        self.steps = steps
        self.horizon = config.horizon
        buckets = [int(i / steps * config.time_buckets) for i in range(steps)]
        times = torch.tensor(buckets, device=weights.device)
        model = weights.at(HEAD + "model.")
        time = embed_times(model, times)
        self.token_attention = TokenAttention(weights, config)
        self.state_encoder = Perceptron(weights, "state_encoder")
        self.action_encoder = ActionEncoder(weights, config, times)
        self.future_tokens = constant(weights.tensor(HEAD + "future_tokens.weight"))
        blocks = model.at("transformer_blocks.")
        layers = range(config.dit_layers)
        self.layers = nn.ModuleList(DiTLayer(blocks.at(f"{i}."), config, i, time) for i in layers)
        shift, scale = _float32_linear(model, "proj_out_1", time).chunk(2, dim=-1)  # the other order than in a layer
        self.last_norm = TimedNorm(weights, scale, shift, eps=1e-6)
        self.project = linear(model, "proj_out_2")
        self.action_decoder = Perceptron(weights, "action_decoder")

    def forward(self, tokens: torch.Tensor, state: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Language tokens [batch, length, width], state [batch, state_dim], noise [batch, horizon, action_dim] ->
        actions [batch, horizon, action_dim], all normalised."""
        tokens = self.token_attention(tokens)
        memories = [layer.remember(tokens) for layer in self.layers]
        lead = torch.cat([self.state_encoder(state)[:, None], self.future_tokens.expand(len(state), -1, -1)], dim=1)
        actions = noise
        for step in range(self.steps):
            x = torch.cat([lead, self.action_encoder(actions, step)], dim=1)
            for layer, memory in zip(self.layers, memories, strict=True):
                x = layer(x, memory, step)
            x = self.project(self.last_norm(x[:, -self.horizon :], step))
            actions = actions + self.action_decoder(x) / self.steps
        return actions
