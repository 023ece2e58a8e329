"""Which key of the server's messages holds which joints and which picture, and what may stand there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.groot.config import LARGEST_ANGLE, NUM_JOINTS

ARM, GRIPPER = tuple(range(NUM_JOINTS - 1)), (NUM_JOINTS - 1,)
SPLIT_LAYOUT = {5: {"single_arm": ARM, "gripper": GRIPPER}, 6: {"single_arm": ARM + GRIPPER, "gripper": GRIPPER}}
"""Joints under each key, by the length of `single_arm`: its sixth is the gripper a first time."""


@dataclass(frozen=True)
class Layout:
    """What get_modality_config says. All methods raise ValueError for what cannot be used."""

    video: tuple[str, ...]
    """Keys of the pictures, in the order of the prompt."""
    state: Mapping[str, tuple[int, ...]]
    """Which of the six joints each key holds."""
    action: Mapping[str, tuple[int, ...]]
    language: str | None
    horizon: int

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any], single_arm: int = 5) -> Layout:
        """Read the answer to get_modality_config. single_arm: numbers under that key, 5 or 6; it does not tell."""
        for modality in ("video", "state"):
            frames = _entries(reply, modality, "delta_indices", int)
            if frames != (0,):
                raise ValueError(f"{modality}.delta_indices is {list(frames)}; only [0], the present, can be given.")
        language = _entries(reply, "language", "modality_keys", str) if "language" in reply else ()
        if len(language) > 1:
            raise ValueError(f"language has {len(language)} keys ({', '.join(language)}); one is needed.")
        return cls(
            video=_keys(reply, "video"),
            state=_joints(reply, "state", single_arm),
            action=_joints(reply, "action", single_arm),
            language=language[0] if language else None,
            horizon=len(_entries(reply, "action", "delta_indices", int)),
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of the pictures without their prefix, as in the checkpoint's metadata.json."""
        return tuple(key.removeprefix("video.") for key in self.video)

    def observation(self, images: np.ndarray, state: np.ndarray, instruction: str) -> dict[str, np.ndarray]:
        """Data of get_action for a batch of images [batch, camera, height, width, 3] and states [batch, 6].

        The axis of time after the batch tells the server that the input is batched. float64 as NVIDIA's own clients
        send: a server keeps to the dtype that it saw first. The instructions are an array because a server that does
        not make one of a list would split the texts, not the list.
        """
        data = {key: images[:, place][:, None] for place, key in enumerate(self.video)}
        data |= {key: state[:, None, list(joints)].astype(np.float64) for key, joints in self.state.items()}
        if self.language is not None:
            data[self.language] = np.array([instruction] * len(state))
        return data

    def targets(self, reply: Mapping[str, Any], batch: int) -> np.ndarray:
        """Targets float32 [batch, horizon, 6] (rad) of an answer to get_action."""
        missing = [key for key in self.action if key not in reply]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} is missing; expected {', '.join(self.action)}, got {_listed(reply)}."
            )
        targets = np.empty((batch, self.horizon, NUM_JOINTS), np.float32)
        for key in sorted(self.action, key=lambda key: len(self.action[key]), reverse=True):  # the gripper's own last
            joints = list(self.action[key])
            targets[..., joints] = _angles(key, reply[key], (batch, self.horizon, len(joints)))
        return targets


def _entries(reply: Mapping[str, Any], modality: str, field: str, kind: type) -> tuple[Any, ...]:
    config = reply.get(modality)
    if not isinstance(config, Mapping):
        raise ValueError(f"the modality config has no {modality}; it has {_listed(reply)}.")
    values = config.get(field)
    if not isinstance(values, list) or not values or not all(type(value) is kind for value in values):
        raise ValueError(f"{modality}.{field} is {values!r}; a list of {kind.__name__} is needed.")
    return tuple(values)


def _keys(reply: Mapping[str, Any], modality: str) -> tuple[str, ...]:
    keys = _entries(reply, modality, "modality_keys", str)
    for key in keys:
        if not key.startswith(f"{modality}."):
            raise ValueError(f"key {key!r} does not begin with '{modality}.': this is no server of GR00T N1.5.")
    if len(set(keys)) != len(keys):
        raise ValueError(f"{modality}.modality_keys is {list(keys)}: one stands there twice.")
    return keys


def _joints(reply: Mapping[str, Any], modality: str, single_arm: int) -> dict[str, tuple[int, ...]]:
    keys = _keys(reply, modality)
    if len(keys) == 1:
        return {keys[0]: ARM + GRIPPER}
    split = SPLIT_LAYOUT[single_arm]
    names = [key.removeprefix(f"{modality}.") for key in keys]
    if set(names) != set(split):
        raise ValueError(
            f"{modality} has keys {', '.join(keys)}; one key of {NUM_JOINTS} joints, or {modality}.single_arm and "
            f"{modality}.gripper, is needed. Is this a policy for the SO-100 or SO-101?"
        )
    return {key: split[name] for key, name in zip(keys, names, strict=True)}


def _angles(key: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{key} is a {type(value).__name__}; an array is needed.")
    if value.dtype.kind not in "fiu":
        raise ValueError(f"{key} has dtype {value.dtype}; numbers are needed.")
    if shape[0] == 1 and _without_ones(value.shape) == _without_ones(shape):
        value = value.reshape(shape)  # a server for one observation squeezes its answer
    if value.shape != shape:
        hint = " The server answers one observation at a time: give batch_size=1." if value.shape == shape[1:] else ""
        if key == "action.single_arm" and value.shape in ((*shape[:-1], width) for width in SPLIT_LAYOUT):
            hint = f" Give --single-arm {value.shape[-1]}."
        raise ValueError(f"{key} has shape {value.shape}; {shape} [batch, horizon, joint] is needed.{hint}")
    largest = np.abs(value.astype(np.float64)).max()
    if not math.isfinite(largest):
        raise ValueError(f"{key} holds NaN or infinity.")
    if largest > LARGEST_ANGLE:
        raise ValueError(f"{key} reaches {largest:g}, not radians; serve a checkpoint whose data is in radians.")
    return value


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(map(str, names)) or "nothing"
