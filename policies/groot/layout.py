"""Name and shape of every tensor in a GR00T N1.5 checkpoint, from its sizes. Torch-free."""

from __future__ import annotations

from policies.groot.config import HeadConfig, ModelConfig, TextConfig, VisionConfig

Shapes = dict[str, tuple[int, ...]]

VISION = "backbone.eagle_model.vision_model.vision_model."
CONNECTOR = "backbone.eagle_model.mlp1.0"
LANGUAGE = "backbone.eagle_model.language_model."
EMBEDDING = LANGUAGE + "model.embed_tokens.weight"
OUTPUT_HEAD = LANGUAGE + "lm_head.weight"
HEAD = "action_head."
TIME_CHANNELS = 256
"""Sines and cosines that the DiT's time encoder reads (diffusers' `Timesteps`)."""


def required_shapes(config: ModelConfig) -> Shapes:
    """Tensors that the model reads; the token embedding is apart, see `embedding_shapes`."""
    return {
        **_vision(config.vision),
        **_linear(CONNECTOR, config.text.hidden_size, config.vision.hidden_size),
        **_language(config.text, config.language_layers),
        **_coders(config.head),
        **_token_attention(config.head),
        **_dit(config.head),
    }


def embedding_shapes(config: ModelConfig) -> Shapes:
    """The token embedding under its two names: tied weights may be stored under either or both."""
    shape = (config.text.vocab_size, config.text.hidden_size)
    return {EMBEDDING: shape, OUTPUT_HEAD: shape}


def unused_shapes(config: ModelConfig) -> Shapes:
    """SigLIP's pooling head: NVIDIA's checkpoints store it and nothing reads it."""
    width, hidden, head = config.vision.hidden_size, config.vision.intermediate_size, VISION + "head."
    return {
        head + "probe": (1, 1, width),
        head + "attention.in_proj_weight": (3 * width, width),
        head + "attention.in_proj_bias": (3 * width,),
        **_linear(head + "attention.out_proj", width, width),
        **_norm(head + "layernorm", width),
        **_linear(head + "mlp.fc1", hidden, width),
        **_linear(head + "mlp.fc2", width, hidden),
    }


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    weight: Shapes = {name + ".weight": (outputs, inputs)}
    return {**weight, name + ".bias": (outputs,)} if bias else weight


def _norm(name: str, width: int) -> Shapes:
    return {name + ".weight": (width,), name + ".bias": (width,)}


def _vision(config: VisionConfig) -> Shapes:
    width, hidden = config.hidden_size, config.intermediate_size
    shapes: Shapes = {
        VISION + "embeddings.patch_embedding.weight": (width, 3, config.patch_size, config.patch_size),
        VISION + "embeddings.patch_embedding.bias": (width,),
        VISION + "embeddings.position_embedding.weight": (config.num_tokens, width),
        **_norm(VISION + "post_layernorm", width),
    }
    for i in range(config.num_hidden_layers):
        layer = f"{VISION}encoder.layers.{i}."
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= _norm(layer + name, width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}self_attn.{name}", width, width)
        shapes |= _linear(layer + "mlp.fc1", hidden, width) | _linear(layer + "mlp.fc2", width, hidden)
    return shapes


def _language(config: TextConfig, layers: int) -> Shapes:
    width, hidden = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes: Shapes = {LANGUAGE + "model.norm.weight": (width,)}
    for i in range(layers):
        layer = f"{LANGUAGE}model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (width,),
            layer + "post_attention_layernorm.weight": (width,),
            layer + "self_attn.q_norm.weight": (config.head_dim,),
            layer + "self_attn.k_norm.weight": (config.head_dim,),
            layer + "self_attn.q_proj.weight": (queries, width),
            layer + "self_attn.k_proj.weight": (keys, width),
            layer + "self_attn.v_proj.weight": (keys, width),
            layer + "self_attn.o_proj.weight": (width, queries),
            layer + "mlp.gate_proj.weight": (hidden, width),
            layer + "mlp.up_proj.weight": (hidden, width),
            layer + "mlp.down_proj.weight": (width, hidden),
        }
    return shapes


def _coders(config: HeadConfig) -> Shapes:
    """State encoder, action encoder and decoder: one matrix [inputs, outputs] for each embodiment."""
    width, hidden = config.width, config.coder_size
    shapes: Shapes = {}
    for name, inputs, outputs in (
        ("state_encoder.layer1", config.state_dim, hidden),
        ("state_encoder.layer2", hidden, width),
        ("action_encoder.W1", config.action_dim, width),
        ("action_encoder.W2", 2 * width, width),
        ("action_encoder.W3", width, width),
        ("action_decoder.layer1", hidden, hidden),
        ("action_decoder.layer2", hidden, config.action_dim),
    ):
        shapes[f"{HEAD}{name}.W"] = (config.max_embodiments, inputs, outputs)
        shapes[f"{HEAD}{name}.b"] = (config.max_embodiments, outputs)
    shapes[HEAD + "future_tokens.weight"] = (config.future_tokens, width)
    shapes[HEAD + "position_embedding.weight"] = (config.max_positions, width)
    return shapes


def _block(prefix: str, width: int, key_width: int) -> Shapes:
    """Attention and feed-forward of one transformer block of the action head."""
    return {
        **_linear(prefix + "attn1.to_q", width, width),
        **_linear(prefix + "attn1.to_k", width, key_width),
        **_linear(prefix + "attn1.to_v", width, key_width),
        **_linear(prefix + "attn1.to_out.0", width, width),
        **_linear(prefix + "ff.net.0.proj", 4 * width, width),
        **_linear(prefix + "ff.net.2", width, 4 * width),
    }


def _token_attention(config: HeadConfig) -> Shapes:
    width = config.token_size
    shapes = _norm(HEAD + "vlln", width)
    for i in range(config.token_layers):
        block = f"{HEAD}vl_self_attention.transformer_blocks.{i}."
        shapes |= _block(block, width, width) | _norm(block + "norm1", width) | _norm(block + "norm3", width)
    return shapes


def _dit(config: HeadConfig) -> Shapes:
    width, model = config.width, HEAD + "model."
    shapes = {
        **_linear(model + "timestep_encoder.timestep_embedder.linear_1", width, TIME_CHANNELS),
        **_linear(model + "timestep_encoder.timestep_embedder.linear_2", width, width),
        **_linear(model + "proj_out_1", 2 * width, width),
        **_linear(model + "proj_out_2", config.coder_size, width),
    }
    for i in range(config.dit_layers):
        block = f"{model}transformer_blocks.{i}."
        shapes |= _block(block, width, width if is_self_attention(config, i) else config.token_size)
        shapes |= _linear(block + "norm1.linear", 2 * width, width)
    return shapes


def is_self_attention(config: HeadConfig, layer: int) -> bool:
    """True if a DiT layer attends to its own sequence, False if to the language tokens."""
    return config.interleave_self_attention and layer % 2 == 1
