"""What goes into the model and comes out of it, as it was in training: images, joint angles, statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mjx_so101.errors import ConfigError
from policies.groot.config import EMBODIMENT_IDS, LARGEST_ANGLE, NUM_JOINTS
from policies.joints import JointMap

CROP_SHARE = 0.95
SPLIT_LAYOUT = ("single_arm", "gripper")
"""Newer data splits the joints: the first five, then the gripper. The file may list them in either order."""
EXTRA = NUM_JOINTS - 1
"""Place of the number too many where `single_arm` holds six beside `gripper`: between the arm and the gripper."""


def prepare_images(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images uint8 [batch, camera, height, width, 3] -> float32 pixels in [-1, 1], [batch, camera, 3, size, size].

    Isaac-GR00T's evaluation transforms, all on the images' device: centre crop of 95 %, bilinear resize with
    antialiasing (a 4:3 picture is squeezed to a square), truncation to whole grey levels, then (x / 255 - 0.5) / 0.5.
    """
    batch, cameras, height, width, _ = images.shape
    crop_height, crop_width = int(height * CROP_SHARE), int(width * CROP_SHARE)
    top, left = round((height - crop_height) / 2), round((width - crop_width) / 2)
    crop = images[:, :, top : top + crop_height, left : left + crop_width].flatten(0, 1)
    x = crop.permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    x = (x * 255).floor().clamp(0, 255)
    return ((x / 255 - 0.5) / 0.5).unflatten(0, (batch, cameras))


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of each of the six joints in the training data (rad), gripper last."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...] | None = None
    """Where the file tells it."""
    extra: str = ""
    """What the model's vector holds at EXTRA, before the gripper: '' (nothing: it has six numbers), 'gripper' (the
    gripper a first time) or 'middle' (something else, which is shown as the middle of its range)."""


class Scaler:
    """Maps joint angles of the simulation (rad) to the model's [-1, 1] and back; a joint that never moved maps to 0.

    The model's vector has `size` numbers: six, or seven where `Range.extra` says so. The one too many is never read
    from the model's answer.
    """

    def __init__(self, bounds: Range, joint_map: JointMap, device: torch.device):
        low, high = (torch.tensor(x, dtype=torch.float32, device=device) for x in (bounds.low, bounds.high))
        self.low, self.span = low, high - low
        self.moves = self.span > 0
        self.sign = torch.tensor(joint_map.sign, dtype=torch.float32, device=device)
        self.offset = torch.tensor(joint_map.offset, dtype=torch.float32, device=device)
        self.extra = bounds.extra
        self.size = NUM_JOINTS + bool(bounds.extra)

    def normalise(self, joints: torch.Tensor) -> torch.Tensor:
        """Angles [..., 6] -> [..., size]; values outside the training range are kept, not clipped."""
        data = self.sign * joints + self.offset
        scaled = 2 * (data - self.low) / torch.where(self.moves, self.span, 1) - 1
        scaled = torch.where(self.moves, scaled, 0)
        if not self.extra:
            return scaled
        arm, gripper = scaled[..., :EXTRA], scaled[..., EXTRA:]
        return torch.cat([arm, gripper if self.extra == "gripper" else torch.zeros_like(gripper), gripper], dim=-1)

    def restore(self, normalised: torch.Tensor) -> torch.Tensor:
        """Inverse of `normalise`: [..., size or more] -> angles [..., 6]."""
        if self.extra:
            normalised = torch.cat([normalised[..., :EXTRA], normalised[..., EXTRA + 1 : EXTRA + 2]], dim=-1)
        data = (normalised[..., :NUM_JOINTS] + 1) / 2 * self.span + self.low
        return self.sign * (data - self.offset)


@dataclass(frozen=True)
class Metadata:
    """What experiment_cfg/metadata.json says of one embodiment."""

    embodiment: str
    state: Range
    action: Range
    cameras: tuple[str, ...]
    """Keys of the cameras, in the order of the prompt."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any], embodiment: str) -> Metadata:
        """Read the parsed metadata.json. Raises ConfigError for an unknown embodiment or wrong statistics."""
        if embodiment not in document:
            raise ConfigError(
                f"embodiment is {embodiment!r}; metadata.json of this checkpoint has {', '.join(map(repr, document))}."
            )
        if embodiment not in EMBODIMENT_IDS:
            raise ConfigError(f"embodiment is {embodiment!r}; known are {', '.join(map(repr, EMBODIMENT_IDS))}.")
        entry = document[embodiment]
        _require_absolute(entry, embodiment)
        statistics = _object(entry, "statistics", embodiment)
        video = _object(_object(entry, "modalities", embodiment), "video", f"{embodiment}.modalities")
        return cls(
            embodiment=embodiment,
            state=_read_range(statistics, "state", embodiment),
            action=_read_range(statistics, "action", embodiment),
            cameras=tuple(video),
        )


def _require_absolute(entry: Any, embodiment: str) -> None:
    """Raise ConfigError if the file says that the actions are changes instead of targets."""
    modalities = entry.get("modalities") if isinstance(entry, Mapping) else None
    actions = modalities.get("action") if isinstance(modalities, Mapping) else None
    for name, action in actions.items() if isinstance(actions, Mapping) else ():
        if isinstance(action, Mapping) and action.get("absolute") is False:
            raise ConfigError(
                f"metadata.json: {embodiment}.modalities.action.{name} is not absolute; only absolute joint targets "
                "are supported: retrain the checkpoint on them."
            )


def _object(parent: Any, key: str, path: str) -> Mapping[str, Any]:
    value = parent.get(key) if isinstance(parent, Mapping) else None
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"metadata.json has no {path}.{key}; the model cannot be fed without it.")
    return value


def _read_range(statistics: Mapping[str, Any], modality: str, embodiment: str) -> Range:
    """Range of the six joints from one key (`arm_0`, `action_space`) or from `single_arm` and `gripper`."""
    path = f"{embodiment}.statistics.{modality}"
    groups = _object(statistics, modality, f"{embodiment}.statistics")
    keys = SPLIT_LAYOUT if set(groups) == set(SPLIT_LAYOUT) else tuple(groups)
    if len(keys) > 1 and keys != SPLIT_LAYOUT:
        raise ConfigError(f"metadata.json: {path} has keys {', '.join(keys)}; one key or {SPLIT_LAYOUT} is needed.")
    ends = {name: [x for key in keys for x in _numbers(groups, key, name, path)] for name in ("min", "max")}
    widths = [len(groups[key]["min"]) for key in keys]
    extra = ""
    if keys == SPLIT_LAYOUT and widths == [NUM_JOINTS, 1] and len(ends["max"]) == NUM_JOINTS + 1:
        extra = "gripper" if all(values[EXTRA] == values[EXTRA + 1] for values in ends.values()) else "middle"
    mean = _mean(groups, keys)
    low, high = (_without_extra(ends[name], extra) for name in ("min", "max"))
    if len(low) != NUM_JOINTS or len(high) != NUM_JOINTS:
        raise ConfigError(f"metadata.json: {path} has {len(low)} min and {len(high)} max; {NUM_JOINTS} are needed.")
    if keys == SPLIT_LAYOUT and widths not in ([NUM_JOINTS - 1, 1], [NUM_JOINTS, 1]):
        raise ConfigError(
            f"metadata.json: {path}.single_arm must have {NUM_JOINTS - 1} joints (or {NUM_JOINTS}, whose last is not "
            "used) and gripper one."
        )
    _require_radians(low, high, path)
    return Range(tuple(low), tuple(high), None if mean is None else tuple(_without_extra(mean, extra)), extra)


def _without_extra(values: list[float], extra: str) -> list[float]:
    return values[:EXTRA] + values[EXTRA + 1 :] if extra else values


def _mean(groups: Mapping[str, Any], keys: tuple[str, ...]) -> list[float] | None:
    """The mean of every number in the file's statistics, None where it does not tell: nothing needs it."""
    values = []
    for key in keys:
        found = groups[key].get("mean")
        if not isinstance(found, list) or len(found) != len(groups[key]["min"]):
            return None
        values += found
    finite = all(isinstance(x, (int, float)) and math.isfinite(x) for x in values)
    return [float(x) for x in values] if finite else None


def _require_radians(low: list[float], high: list[float], path: str) -> None:
    """Raise ConfigError for ranges in degrees, or with min above max."""
    largest = max(map(abs, low + high))
    if largest > LARGEST_ANGLE:
        raise ConfigError(
            f"metadata.json: {path} reaches {largest:g}, so its joints are not in radians; retrain the checkpoint on "
            "data in radians, or convert the statistics of state and action."
        )
    wrong = [joint for joint, (a, b) in enumerate(zip(low, high, strict=True)) if a > b]
    if wrong:
        raise ConfigError(f"metadata.json: {path} has min above max for joint {wrong[0]}.")


def _numbers(groups: Mapping[str, Any], key: str, name: str, path: str) -> list[float]:
    values = groups[key].get(name) if isinstance(groups[key], Mapping) else None
    real = isinstance(values, list) and all(isinstance(x, (int, float)) and math.isfinite(x) for x in values)
    if not real or not values:
        raise ConfigError(f"metadata.json: {path}.{key}.{name} is {values!r}; a list of finite numbers is needed.")
    return [float(x) for x in values]
