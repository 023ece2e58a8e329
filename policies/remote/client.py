"""The frozen base policy behind a socket: images and joint angles of a batch in, chunks of joint targets out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mjx_so101.errors import ConfigError, RemoteError
from policies.cameras import match_cameras
from policies.groot.config import LARGEST_ANGLE, NUM_JOINTS
from policies.joints import JointMap
from policies.remote.connection import Connection
from policies.remote.layout import Layout

DEFAULT_INSTRUCTION = "None"
"""The only task string of the data that phospho-app/gr00t-paper_return-7w9itxzsox was trained on."""


class RemotePolicy:
    """A policy that an inference service of Isaac-GR00T N1.5 runs, here or on another machine.

    Args:
        url: tcp://HOST:PORT of the server.
        timeout_s: how long one request may take.
        retries: further attempts after one that was not answered in time.
        batch_size: environments in one request.
        cameras: views in the order of the images, or a mapping from the server's camera keys to views; None takes
            what the keys tell.
        instruction: text of the task, the same for every environment.
        joint_map: signs and offsets between the simulation's joints and those of the server's training data.
        horizon: targets in a chunk, if the caller counts on a number; None takes the server's.
        single_arm: numbers under the server's key single_arm beside gripper, which it does not tell: 5, or 6, whose
            last is the gripper a first time. It is sent, and ignored in the answer.

    Raises:
        ConfigError: for a bad value, or cameras or a horizon that are not the server's.
        RemoteError: if the server does not answer, or serves no policy for this arm.
    """

    name = "remote"
    noise_shape: tuple[int, ...] = ()
    """The server draws its own noise."""
    training_range: tuple[np.ndarray, np.ndarray] | None = None
    """The server does not tell the range of its training data, neither of targets nor of states."""
    state_range: tuple[np.ndarray, np.ndarray] | None = None

    note = ""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 10.0,
        retries: int = 2,
        batch_size: int = 64,
        cameras: Sequence[str] | Mapping[str, str] | None = None,
        instruction: str = DEFAULT_INSTRUCTION,
        horizon: int | None = None,
        joint_map: JointMap | None = None,
        single_arm: int = 5,
    ):
        for name, value in (("batch_size", batch_size), ("horizon", 1 if horizon is None else horizon)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; give a whole number above 0.")
        if not isinstance(instruction, str) or not instruction:
            raise ConfigError(f"instruction is {instruction!r}; give the text of the task.")
        if single_arm not in (5, 6):
            raise ConfigError(f"single_arm is {single_arm!r}; it must be 5 or 6.")
        self.batch_size, self.instruction, self.joint_map = batch_size, instruction, joint_map or JointMap()
        self._connection = Connection(url, timeout_s, retries)
        try:
            self._connection.call("ping")
            self._layout = self._read_layout(horizon, single_arm)
            self.cameras: tuple[str, ...] = match_cameras(self._layout.cameras, cameras)
        except BaseException:
            self.close()
            raise
        self.horizon = self._layout.horizon

    def _read_layout(self, horizon: int | None, single_arm: int) -> Layout:
        url = self._connection.url
        reply = self._connection.call("get_modality_config")
        try:
            layout = Layout.from_reply(reply, single_arm)
        except ValueError as error:
            raise RemoteError(f"The policy at {url} cannot be used: {error}") from error
        if horizon not in (None, layout.horizon):
            raise ConfigError(f"horizon is {horizon}; chunks of {url} have {layout.horizon} targets: give that.")
        if layout.language is None and self.instruction != DEFAULT_INSTRUCTION:
            raise ConfigError(f"instruction is {self.instruction!r}, but the policy at {url} takes no text.")
        return layout

    def chunk(self, images: Any, state: Any, noise: Any = None) -> np.ndarray:
        """Chunks of absolute joint targets, float32 [batch, horizon, 6] (rad), gripper last.

        Args:
            images: uint8 [batch, camera, height, width, 3] sRGB, cameras in the order of `self.cameras`.
            state: float32 [batch, 6] measured joint positions (rad), gripper last.
            noise: not used; the server draws its own.

        Raises:
            ConfigError: for another shape or dtype, or a state that is not finite or not in radians.
            RemoteError: if the server does not answer, or its answer is not such a chunk.
        """
        del noise
        images, state = np.asarray(images), np.asarray(state)
        self._require_inputs(images, state)
        size = self.batch_size
        parts = [self._request(images[i : i + size], state[i : i + size]) for i in range(0, len(state), size)]
        return np.concatenate(parts)

    def _request(self, images: np.ndarray, state: np.ndarray) -> np.ndarray:
        state = self.joint_map.to_data(state)
        reply = self._connection.call("get_action", self._layout.observation(images, state, self.instruction))
        try:
            return self.joint_map.to_simulation(self._layout.targets(reply, len(state)))
        except ValueError as error:
            raise RemoteError(f"The reply of {self._connection.url} to get_action is refused: {error}") from error

    def _require_inputs(self, images: np.ndarray, state: np.ndarray) -> None:
        for name, value, dtype in (("images", images, np.uint8), ("state", state, np.float32)):
            if value.dtype != dtype:
                raise ConfigError(f"{name} is {value.dtype}; it must be {np.dtype(dtype)}.")
        if images.ndim != 5 or images.shape[-1] != 3:
            raise ConfigError(f"images has shape {images.shape}; [batch, camera, height, width, 3] is needed.")
        if images.shape[1] != len(self.cameras):
            raise ConfigError(
                f"images hold {images.shape[1]} cameras; the policy was trained on {len(self.cameras)}: "
                f"{', '.join(self.cameras)}."
            )
        if state.shape != (len(images), NUM_JOINTS):
            raise ConfigError(
                f"state has shape {state.shape}; {(len(images), NUM_JOINTS)} is needed for {len(images)} images."
            )
        if images.size == 0:
            raise ConfigError(f"images has shape {images.shape}: there is nothing in it.")
        if not np.isfinite(state).all():
            raise ConfigError("state holds NaN or infinity.")
        if np.abs(state).max() > LARGEST_ANGLE:
            raise ConfigError(f"state reaches {np.abs(state).max():g}; it must be in radians.")

    def describe(self) -> dict[str, Any]:
        """What it is, for the record beside a result; which checkpoint the server runs it does not tell."""
        return {
            "url": self._connection.url,
            "cameras": list(self.cameras),
            "instruction": self.instruction,
            "horizon": self.horizon,
            "batch_size": self.batch_size,
            "state": {key: len(joints) for key, joints in self._layout.state.items()},
        }

    def close(self) -> None:
        """Close the connection; the server goes on."""
        self._connection.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
