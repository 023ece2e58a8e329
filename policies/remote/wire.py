"""Messages of Isaac-GR00T's inference service as bytes: msgpack, with arrays in NumPy's npy format. Never pickle.

Source: gr00t/eval/service.py of NVIDIA/Isaac-GR00T at the time of N1.5. Its earlier TorchSerializer (torch.save, a zip
that holds a pickle) and phosphobot's copy (bare pickle) run code of the sender when read, so they are refused.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

ARRAY_MARK, ARRAY_BYTES = "__ndarray_class__", "as_npy"
CONFIG_MARK, CONFIG_JSON = "__ModalityConfig_class__", "as_json"
LAST_PICKLE_PROTOCOL = 5
ZIP_START = b"PK\x03\x04"
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
UNSAFE = (
    "which can run any code when it is read, so it is not. Serve with the msgpack server of Isaac-GR00T N1.5, or load "
    "the checkpoint locally with --base groot --checkpoint DIR."
)


def encode(message: Mapping[str, Any]) -> bytes:
    """Bytes of a message made of dicts, lists, text, numbers and NumPy arrays."""
    return msgpack.packb(message, default=_encode_array)


def decode(message: bytes) -> Any:
    """Inverse of `encode`; a modality config becomes the dict that its JSON holds.

    Raises:
        ValueError: if the bytes are a pickle, no msgpack, or hold an array that NumPy may not read.
    """
    if len(message) > 1 and message[0] == 0x80 and message[1] <= LAST_PICKLE_PROTOCOL:
        raise ValueError(f"this is a pickle, {UNSAFE}")
    if message.startswith(ZIP_START):
        raise ValueError(f"this is a file of torch.save, which holds a pickle, {UNSAFE}")
    try:
        return msgpack.unpackb(message, object_hook=_decode_object)
    except _ContentError:
        raise
    except ValueError as error:  # all of msgpack's errors are ValueErrors
        raise ValueError(f"this is not msgpack: {message[:40]!r} ({error or type(error).__name__}).") from error


class _ContentError(ValueError):
    """The msgpack is well formed, but not what stands in it."""


def _encode_array(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"A {type(value).__name__} has no place in a message.")
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {ARRAY_MARK: True, ARRAY_BYTES: file.getvalue()}


def _decode_object(value: dict[Any, Any]) -> Any:
    if ARRAY_MARK in value:
        return _read_array(value.get(ARRAY_BYTES))
    if CONFIG_MARK in value:
        text = value.get(CONFIG_JSON)
        try:
            return json.loads(text) if isinstance(text, str) else text
        except (ValueError, RecursionError) as error:
            raise _ContentError(f"a modality config is not JSON: {error}.") from error
    return value


def _read_array(data: Any) -> np.ndarray:
    """Array of an npy file whose header agrees with its length, so that no header makes NumPy reserve the memory."""
    if not isinstance(data, bytes):
        raise _ContentError(f"{ARRAY_BYTES} of an array is a {type(data).__name__}, not bytes.")
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in NPY_HEADERS:
            raise ValueError(f"npy version {version} is not one of {', '.join(map(str, NPY_HEADERS))}")
        shape, _, dtype = NPY_HEADERS[version](file)
        found, stated = len(data) - file.tell(), math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and found != stated:
            raise ValueError(f"the header states {stated} bytes of data, {found} follow")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header as Python literals, which fails in many ways
        raise _ContentError(f"an array is not a readable npy file: {error}.") from error
