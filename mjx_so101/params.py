"""What may differ from episode to episode: `EnvParams`, the ranges it is drawn from, and named presets."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from mjx_so101.errors import ConfigError, require_choice

MAX_LATENCY = 6
"""Longest sensing latency in control steps; it sets the length of the sheet's history."""
TABLE_TEXTURES = ("melamine", "wood", "felt", "concrete", "tiles")
SHEET_TEXTURES = ("blank", "text", "lined", "squared")


class Field(NamedTuple):
    """One randomizable quantity: default value, unit, valid limits, number of values, and meaning."""

    default: float
    unit: str
    low: float
    high: float
    size: int
    integer: bool
    meaning: str
    group: str  # 'physics', 'start' or 'look'


def _field(default, unit, low, high, meaning, size=1, integer=False, group="physics") -> Field:
    return Field(default, unit, low, high, size, integer, meaning, group)


def _start(default, unit, low, high, meaning, size=1) -> Field:
    return _field(default, unit, low, high, meaning, size, group="start")


def _look(default, unit, low, high, meaning, size=1, integer=False) -> Field:
    return _field(default, unit, low, high, meaning, size, integer, group="look")


FIELDS: dict[str, Field] = {
    "sheet_mass_scale": _field(1.0, "-", 0.1, 10.0, "sheet mass over its nominal 5 g; inertia follows"),
    "sheet_friction_scale": _field(1.0, "-", 0.0, 10.0, "dry friction of the sheet on the table over nominal"),
    "sheet_damping_scale": _field(1.0, "-", 0.1, 10.0, "viscous damping of the sheet over nominal"),
    "fingertip_friction": _field(1.0, "-", 0.05, 3.0, "friction of fingertip on sheet, net of finger over table"),
    "kp_scale": _field(1.0, "-", 0.1, 3.0, "position gain of all motors over nominal"),
    "force_limit_scale": _field(1.0, "-", 0.1, 3.0, "torque limit of all motors over nominal 3.35 N m"),
    "joint_damping_scale": _field(1.0, "-", 0.1, 10.0, "damping of all arm joints over nominal"),
    "joint_bias": _field(0.0, "rad", -0.2, 0.2, "calibration error: measured = true + bias", size=6),
    "action_delay": _field(0, "substeps", 0, 8, "delay of the motor targets", integer=True),
    "sensing_latency": _field(0, "control steps", 0, MAX_LATENCY, "age of the sheet pose seen", integer=True),
    "sheet_position_noise": _field(0.0, "m", 0.0, 0.05, "standard deviation of the seen sheet position"),
    "sheet_yaw_noise": _field(0.0, "rad", 0.0, 0.5, "standard deviation of the seen sheet yaw"),
    "start_distance": _start(0.1, "m", 0.0, 0.3, "start distance of the sheet's centre from the goal"),
    "start_direction": _start(math.pi / 2, "rad", -math.pi, math.pi, "direction of the start from the goal"),
    "start_yaw": _start(0.0, "rad", -math.pi / 2, math.pi / 2, "start yaw of the sheet against the goal yaw"),
    "start_joint_offset": _start(0.0, "rad", -0.1, 0.1, "start of the five arm joints against home", size=5),
    # how things look; only renderers read them
    "table_color": _look(0.0, "-", -1.0, 1.0, "added to the table's sRGB colour, per channel", size=3),
    "sheet_color": _look(0.0, "-", -1.0, 1.0, "added to the sheet's colour", size=3),
    "tape_color": _look(0.0, "-", -1.0, 1.0, "added to the tape's colour", size=3),
    "link_color": _look(0.0, "-", -1.0, 1.0, "added to the colour of the robot's links", size=3),
    "finger_color": _look(0.0, "-", -1.0, 1.0, "added to the colour of gripper and jaw", size=3),
    "table_texture": _look(0, "index", 0, len(TABLE_TEXTURES) - 1, "which of TABLE_TEXTURES", integer=True),
    "sheet_texture": _look(0, "index", 0, len(SHEET_TEXTURES) - 1, "which of SHEET_TEXTURES", integer=True),
    "light_azimuth": _look(0.0, "rad", -math.pi, math.pi, "main light turned round the goal's vertical"),
    "light_tilt": _look(0.0, "rad", -1.0, 1.0, "main light tilted away from its nominal height"),
    "light_intensity": _look(1.0, "-", 0.0, 3.0, "lamps over nominal; the light from all around stays"),
    "light_color": _look(1.0, "-", 0.0, 2.0, "main light's colour over nominal, per channel", size=3),
    "light_shadow": _look(1, "-", 0, 1, "1: the main light casts shadows", integer=True),
    "top_camera_position": _look(0.0, "m", -0.2, 0.2, "top camera moved along world x, y, z", size=3),
    "top_camera_rotation": _look(0.0, "rad", -0.5, 0.5, "top camera turned about its own axes", size=3),
    "top_camera_fovy": _look(0.0, "deg", -20.0, 20.0, "added to the top camera's vertical field of view"),
    "wrist_camera_position": _look(0.0, "m", -0.05, 0.05, "wrist camera moved along the gripper's axes", size=3),
    "wrist_camera_rotation": _look(0.0, "rad", -0.5, 0.5, "wrist camera turned about its own axes", size=3),
    "wrist_camera_fovy": _look(0.0, "deg", -20.0, 20.0, "added to the wrist camera's field of view"),
    # what the image sensor does to the picture (render.sensor)
    "exposure": _look(0.0, "stops", -3.0, 3.0, "brightness, linear light times 2 ** exposure"),
    "white_balance": _look(0.0, "-", -1.0, 1.0, "red over blue in linear light: 2 ** (white_balance / 2) each way"),
    "image_gamma": _look(1.0, "-", 0.3, 3.0, "exponent of the picture's contrast curve"),
    "image_blur": _look(0.0, "px", 0.0, 3.0, "standard deviation of a Gaussian blur"),
    "image_noise": _look(0.0, "-", 0.0, 0.3, "standard deviation of pixel noise, 1 is white"),
}


@flax.struct.dataclass
class EnvParams:
    """One draw of everything randomizable; `FIELDS` gives unit, limits and meaning. Leading axis [env] if batched."""

    sheet_mass_scale: jax.Array
    sheet_friction_scale: jax.Array
    sheet_damping_scale: jax.Array
    fingertip_friction: jax.Array
    kp_scale: jax.Array
    force_limit_scale: jax.Array
    joint_damping_scale: jax.Array
    joint_bias: jax.Array  # [6]
    action_delay: jax.Array  # int32
    sensing_latency: jax.Array  # int32
    sheet_position_noise: jax.Array
    sheet_yaw_noise: jax.Array
    start_distance: jax.Array
    start_direction: jax.Array
    start_yaw: jax.Array
    start_joint_offset: jax.Array  # [5]
    table_color: jax.Array  # [3]
    sheet_color: jax.Array  # [3]
    tape_color: jax.Array  # [3]
    link_color: jax.Array  # [3]
    finger_color: jax.Array  # [3]
    table_texture: jax.Array  # int32
    sheet_texture: jax.Array  # int32
    light_azimuth: jax.Array
    light_tilt: jax.Array
    light_intensity: jax.Array
    light_color: jax.Array  # [3]
    light_shadow: jax.Array  # int32
    top_camera_position: jax.Array  # [3]
    top_camera_rotation: jax.Array  # [3]
    top_camera_fovy: jax.Array
    wrist_camera_position: jax.Array  # [3]
    wrist_camera_rotation: jax.Array  # [3]
    wrist_camera_fovy: jax.Array
    exposure: jax.Array
    white_balance: jax.Array
    image_gamma: jax.Array
    image_blur: jax.Array
    image_noise: jax.Array


Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Randomization:
    """Uniform range (low, high) of each field of `EnvParams`; equal ends fix a value. Integers include both ends."""

    name: str
    ranges: Mapping[str, Range]

    def __post_init__(self) -> None:
        for name, value in self.ranges.items():
            require_choice("randomization field", name, FIELDS)
            _check_range(name, value)

    def range(self, name: str) -> Range:
        """The range of one field; a field not named keeps its default."""
        default = FIELDS[name].default
        low, high = self.ranges.get(name, (default, default))  # a list where a file gave it
        return low, high

    def varied(self, names: Iterable[str]) -> list[str]:
        """Those of the named fields that are not always at their default."""
        return [name for name in names if self.range(name) != (FIELDS[name].default, FIELDS[name].default)]

    def sample(self, key: jax.Array) -> EnvParams:
        """Draw one EnvParams (unbatched; vmap over keys for more)."""
        keys = jax.random.split(key, len(FIELDS))
        return EnvParams(**{name: self.draw(name, k) for name, k in zip(FIELDS, keys, strict=True)})

    def draw(self, name: str, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw one field: float32, or int32 where the field counts; vectors get independent entries."""
        field = FIELDS[name]
        low, high = self.range(name)
        shape = (*shape, field.size) if field.size > 1 else shape
        if field.integer:
            return jax.random.randint(key, shape, int(low), int(high) + 1)
        if low == high:
            return jnp.full(shape, low, jnp.float32)
        return jax.random.uniform(key, shape, minval=low, maxval=high)

    def to_dict(self) -> dict[str, Any]:
        """Name and every resolved range, for the record beside a result."""
        return {"name": self.name, "ranges": {name: list(self.range(name)) for name in FIELDS}}


def _check_range(name: str, value: Any) -> None:
    field = FIELDS[name]
    valid = f"[low, high] with {field.low:g} <= low <= high <= {field.high:g} ({field.unit})"
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise ConfigError(f"range of {name} is {value!r}; give {valid}.")
    low, high = value
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in (low, high)):
        raise ConfigError(f"range of {name} is {value!r}; both ends must be finite numbers: {valid}.")
    if low > high:
        raise ConfigError(f"range of {name} is inverted or empty: {value!r}; give {valid}.")
    if low < field.low or high > field.high:
        raise ConfigError(f"range of {name} is {value!r}, outside its limits; give {valid}.")
    if field.integer and not (float(low).is_integer() and float(high).is_integer()):
        raise ConfigError(f"range of {name} is {value!r}; it counts {field.unit}, so both ends must be whole.")


_STARTS = {
    "start_distance": (0.04, 0.15),
    "start_direction": (-math.pi, math.pi),
    "start_yaw": (-0.5, 0.5),
    "start_joint_offset": (-0.03, 0.03),
}
_QUARTER = (0.75, 1.25)
_PLAIN = {
    **_STARTS,
    "sheet_mass_scale": _QUARTER,
    "sheet_friction_scale": _QUARTER,
    "sheet_damping_scale": _QUARTER,
    "fingertip_friction": _QUARTER,
    "kp_scale": _QUARTER,
    "force_limit_scale": _QUARTER,
    "joint_damping_scale": _QUARTER,
    "action_delay": (0, 2),
}
_REAL = {
    **_PLAIN,
    "joint_bias": (-0.02, 0.02),
    "sheet_position_noise": (0.003, 0.003),
    "sheet_yaw_noise": (0.02, 0.02),
    "sensing_latency": (0, 3),
    "fingertip_friction": (0.3, 0.8),
}
_WILD = {
    **_REAL,
    "sheet_mass_scale": (0.5, 2.0),
    "sheet_friction_scale": (0.5, 2.0),
    "sheet_damping_scale": (0.5, 2.0),
    "fingertip_friction": (0.2, 1.5),
    "kp_scale": (0.5, 1.5),
    "force_limit_scale": (0.6, 1.4),
    "joint_damping_scale": (0.5, 2.0),
    "joint_bias": (-0.035, 0.035),
    "action_delay": (0, 4),
    "sheet_position_noise": (0.0, 0.006),
    "sheet_yaw_noise": (0.0, 0.04),
    "sensing_latency": (0, 5),
    "start_yaw": (-0.7, 0.7),
}
_LOOKS = {
    "table_color": (-0.05, 0.45),
    "sheet_color": (-0.15, 0.05),
    "tape_color": (-0.12, 0.12),
    "link_color": (-0.3, 0.07),
    "finger_color": (-0.2, 0.2),
    "table_texture": (0, len(TABLE_TEXTURES) - 1),
    "sheet_texture": (0, len(SHEET_TEXTURES) - 1),
    "light_azimuth": (-math.pi, math.pi),
    "light_tilt": (-0.4, 0.4),
    "light_intensity": (0.6, 1.4),
    "light_color": (0.8, 1.2),
    "light_shadow": (0, 1),
    "top_camera_position": (-0.015, 0.015),
    "top_camera_rotation": (-0.03, 0.03),
    "top_camera_fovy": (-2.0, 2.0),
    "wrist_camera_position": (-0.004, 0.004),
    "wrist_camera_rotation": (-0.04, 0.04),
    "wrist_camera_fovy": (-3.0, 3.0),
    "exposure": (-0.5, 0.5),
    "white_balance": (-0.4, 0.4),
    "image_gamma": (0.85, 1.15),
    "image_blur": (0.0, 0.7),
    "image_noise": (0.0, 0.03),
}
_PHYSICAL = {"nominal": _STARTS, "plain": _PLAIN, "real": _REAL, "wild": _WILD}
PRESETS: dict[str, Randomization] = {
    **{name: Randomization(name, ranges) for name, ranges in _PHYSICAL.items()},
    **{f"{name}+looks": Randomization(f"{name}+looks", {**ranges, **_LOOKS}) for name, ranges in _PHYSICAL.items()},
}
"""`nominal`, `plain`, `real`, `wild` vary the physics; with `+looks` the pictures vary as well."""


def load_randomization(name_or_file: str | Path | Randomization) -> Randomization:
    """A preset by name, or a JSON or TOML file with optional `base` (a preset) and one [low, high] per field.

    Raises ConfigError for an unknown preset or field, an unreadable file, or an empty or inverted range.
    """
    if isinstance(name_or_file, Randomization):
        return name_or_file
    text = str(name_or_file)
    path = Path(text)
    if text in PRESETS:
        return PRESETS[text]
    if path.suffix not in (".json", ".toml"):
        require_choice("randomization", text, [*PRESETS, "FILE.json", "FILE.toml"])
    try:
        raw = path.read_text()
        content = json.loads(raw) if path.suffix == ".json" else tomllib.loads(raw)
    except FileNotFoundError:
        raise ConfigError(f"randomization file {text!r} does not exist; presets are {', '.join(PRESETS)}.") from None
    except OSError as error:
        raise ConfigError(f"randomization file {text!r} cannot be read ({error}); give a readable file.") from None
    except ValueError as error:
        raise ConfigError(f"randomization file {text!r} is not valid {path.suffix[1:].upper()}: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"randomization file {text!r} must hold a table of fields, not {type(content).__name__}.")
    content = dict(content)
    base = require_choice("base preset", content.pop("base", "nominal"), PRESETS)
    return Randomization(path.stem, {**PRESETS[base].ranges, **content})
