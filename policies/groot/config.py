"""Sizes of a GR00T N1.5 model: read from a checkpoint's config.json, the rest as NVIDIA built the 3B model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mjx_so101.errors import ConfigError

MODEL_TYPE = "gr00t_n1_5"

LARGEST_ANGLE = 10.0
"""No joint of the arm reaches this many radians; angles in degrees do."""
RANDOM = "random_weights"
"""Mark in config.json of a checkpoint that `make_checkpoint` wrote."""
EMBODIMENT_IDS = {"new_embodiment": 31, "oxe_droid": 17, "agibot_genie1": 26, "gr1": 24}
"""Row of the per-embodiment coders for each name in metadata.json (Isaac-GR00T 1.1.0)."""

NUM_JOINTS = 6


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP2 image encoder; the defaults are So400m/14 at 224 pixels."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig:
    """Qwen3 language model; the defaults are the 1.7B. How many layers are kept is in `ModelConfig.language_layers`."""

    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151680
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6


@dataclass(frozen=True)
class HeadConfig:
    """Action head: self-attention over the tokens, diffusion transformer (DiT), coders of state and action."""

    token_size: int
    """Width of the language tokens that the head reads."""
    width: int
    """Width of the DiT's own tokens."""
    coder_size: int
    """Hidden width of the state encoder and the action decoder, and of the DiT's output."""
    dit_layers: int
    dit_heads: int
    interleave_self_attention: bool
    """True: odd DiT layers attend to the sequence itself instead of the language tokens."""
    token_layers: int
    token_heads: int
    horizon: int
    action_dim: int
    state_dim: int
    future_tokens: int
    denoising_steps: int
    time_buckets: int
    max_embodiments: int
    max_positions: int


@dataclass(frozen=True)
class ModelConfig:
    """Every size of one checkpoint."""

    vision: VisionConfig
    text: TextConfig
    head: HeadConfig
    language_layers: int

    @classmethod
    def from_json(
        cls,
        document: Mapping[str, Any],
        vision: VisionConfig | Mapping[str, Any] | None = None,
        text: TextConfig | Mapping[str, Any] | None = None,
    ) -> ModelConfig:
        """Read a checkpoint's parsed config.json.

        NVIDIA's checkpoints do not hold the sizes of vision and language. They come from the arguments, else from
        `eagle_config` (which our own `make_checkpoint` writes), else they are the 3B's.

        Raises:
            ConfigError: for another model type, a missing or wrong size, or an option that this model has not.
        """
        require_model_type(document)
        eagle = document.get("eagle_config") or {}
        config = cls(
            vision=_sizes(VisionConfig, vision if vision is not None else eagle.get("vision_config"), "vision_config"),
            text=_sizes(TextConfig, text if text is not None else eagle.get("text_config"), "text_config"),
            head=_read_head(_Section("action_head_cfg", document)),
            language_layers=_read_language_layers(_Section("backbone_cfg", document)),
        )
        _require_coherent(config)
        return config


def require_model_type(document: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a parsed config.json says that it is a GR00T N1.5."""
    found = document.get("model_type")
    if found == MODEL_TYPE:
        return
    name = str(found).lower().replace("_", "").replace(".", "").replace("-", "")
    if found is None and document.get("type") == "groot":
        why = (
            "it is LeRobot's policy config, which holds no sizes. Put the config.json and experiment_cfg/metadata.json "
            "of the GR00T N1.5 model that was fine-tuned beside the weights"
        )
    elif "gr00tn16" in name or "gr00tn1d6" in name:
        why = "it is GR00T N1.6, another architecture"
    elif "gr00tn17" in name or "gr00tn1d7" in name:
        why = "it is GR00T N1.7, another architecture"
    elif "gr00tn1" in name:
        why = "it is another GR00T version"
    else:
        why = "it is not a GR00T checkpoint"
    raise ConfigError(f"config.json has model_type {found!r}: {why}. Only {MODEL_TYPE!r} (GR00T N1.5) can be loaded.")


class _Section:
    """One object inside config.json, read with messages that name the full key."""

    def __init__(self, path: str, parent: Mapping[str, Any]):
        self.path = path
        values = parent.get(path.rsplit(".", 1)[-1])
        if not isinstance(values, Mapping):
            raise ConfigError(f"config.json has no {path!r}: it is not a complete GR00T N1.5 config.")
        self.values = values

    def section(self, key: str) -> _Section:
        return _Section(f"{self.path}.{key}", self.values)

    def size(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"config.json: {self.path}.{key} is {value!r}; it must be a whole number above 0.")
        return value

    def require(self, key: str, needed: Any) -> None:
        value = self.values.get(key, needed)
        if value != needed:
            raise ConfigError(f"config.json: {self.path}.{key} is {value!r}; only {needed!r} is supported.")


def _read_head(head: _Section) -> HeadConfig:
    dit, tokens = head.section("diffusion_model_cfg"), head.section("vl_self_attention_cfg")
    head.require("use_vlln", True)
    head.require("add_pos_embed", True)
    dit.require("norm_type", "ada_norm")
    dit.require("positional_embeddings", None)
    tokens.require("positional_embeddings", None)
    widths = {
        "action_head_cfg.input_embedding_dim": (head.size("input_embedding_dim"), dit),
        "action_head_cfg.backbone_embedding_dim": (head.size("backbone_embedding_dim"), tokens),
    }
    for name, (width, part) in widths.items():
        inner = part.size("num_attention_heads") * part.size("attention_head_dim")
        if inner != width:
            raise ConfigError(f"config.json: {name} is {width}, but {part.path} has heads x head_dim = {inner}.")
    for key, other in (("output_dim", "hidden_size"), ("cross_attention_dim", "backbone_embedding_dim")):
        if dit.size(key) != head.size(other):
            raise ConfigError(f"config.json: {dit.path}.{key} is {dit.size(key)}, {other} is {head.size(other)}.")
    return HeadConfig(
        token_size=head.size("backbone_embedding_dim"),
        width=head.size("input_embedding_dim"),
        coder_size=head.size("hidden_size"),
        dit_layers=dit.size("num_layers"),
        dit_heads=dit.size("num_attention_heads"),
        interleave_self_attention=bool(dit.values.get("interleave_self_attention", False)),
        token_layers=tokens.size("num_layers"),
        token_heads=tokens.size("num_attention_heads"),
        horizon=head.size("action_horizon"),
        action_dim=head.size("action_dim"),
        state_dim=head.size("max_state_dim"),
        future_tokens=head.size("num_target_vision_tokens", 32),
        denoising_steps=head.size("num_inference_timesteps"),
        time_buckets=head.size("num_timestep_buckets", 1000),
        max_embodiments=head.size("max_num_embodiments", 32),
        max_positions=head.size("max_seq_len", 1024),
    )


def _read_language_layers(backbone: _Section) -> int:
    backbone.require("project_to_dim", None)
    return backbone.size("select_layer")


def _sizes(kind: type, given: Any, name: str) -> Any:
    """Instance of the dataclass `kind` from an instance, a mapping of some of its fields, or None (the 3B's sizes)."""
    if isinstance(given, kind):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{name} is {given!r}; give a {kind.__name__} or a mapping.")
    given = dict(given or {})
    fields = {field.name: type(field.default) for field in dataclasses.fields(kind)}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise ConfigError(f"{name} has unknown keys {', '.join(unknown)}; valid are {', '.join(fields)}.")
    for key, value in given.items():
        allowed = (int, float) if fields[key] is float else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed) or value <= 0:
            raise ConfigError(f"{name}.{key} is {value!r}; it must be a positive {fields[key].__name__}.")
    return kind(**given)


def _require_coherent(config: ModelConfig) -> None:
    vision, text, head = config.vision, config.text, config.head
    problems = []
    if vision.image_size % vision.patch_size:
        problems.append(f"vision_config.image_size {vision.image_size} is no multiple of its patch_size")
    if vision.hidden_size % vision.num_attention_heads:
        problems.append("vision_config.hidden_size is no multiple of num_attention_heads")
    if text.num_attention_heads % text.num_key_value_heads:
        problems.append("text_config.num_attention_heads is no multiple of num_key_value_heads")
    if text.hidden_size != head.token_size:
        problems.append(
            f"text_config.hidden_size is {text.hidden_size}, action_head_cfg.backbone_embedding_dim {head.token_size}: "
            "for sizes other than the 3B's give vision_config and text_config"
        )
    if min(head.action_dim, head.state_dim) < NUM_JOINTS:
        problems.append(f"action_dim {head.action_dim} or max_state_dim {head.state_dim} is below {NUM_JOINTS}")
    if head.horizon > head.max_positions:
        problems.append(f"action_horizon {head.horizon} is above max_seq_len {head.max_positions}")
    if head.width % 2:
        problems.append(f"action_head_cfg.input_embedding_dim {head.width} is odd")
    if problems:
        raise ConfigError(f"The sizes of the checkpoint do not fit together: {'; '.join(problems)}.")
