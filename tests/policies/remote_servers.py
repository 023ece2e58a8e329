"""A stand-in for Isaac-GR00T's inference service on loopback; it encodes by itself, as gr00t/eval/service.py does."""

import io
import json
import threading
import time
from typing import Any

import msgpack
import numpy as np
import zmq

HORIZON = 16
JOINTS = {"arm_0": 6, "single_arm": 5, "gripper": 1}
LAYOUTS = {"one": ["arm_0"], "split": ["single_arm", "gripper"], "gripper first": ["gripper", "single_arm"]}
DIE = object()
"""What a handler returns to close the socket without an answer and to open it again a little later."""


def array(value: np.ndarray) -> dict:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def unpack(message: bytes) -> Any:
    def hook(value):
        return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False) if "__ndarray_class__" in value else value

    return msgpack.unpackb(message, object_hook=hook)


def modality(keys: list[str], steps: int = 1) -> dict:
    text = json.dumps({"delta_indices": list(range(steps)), "modality_keys": keys})
    return {"__ModalityConfig_class__": True, "as_json": text}


def modality_config(layout: str = "one", cameras=("image_cam_0", "image_cam_1"), horizon: int = HORIZON) -> dict:
    return {
        "video": modality([f"video.{name}" for name in cameras]),
        "state": modality([f"state.{name}" for name in LAYOUTS[layout]]),
        "action": modality([f"action.{name}" for name in LAYOUTS[layout]], horizon),
        "language": modality(["annotation.human.task_description"]),
    }


def expected_chunk(images: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The targets that the honest server gives: each depends on its own environment, camera order, joint and step."""
    first, last = images[:, 0].mean((1, 2, 3)) / 255, images[:, -1].mean((1, 2, 3)) / 255
    return state[:, None] + np.arange(HORIZON)[:, None] / 100 + (2 * first - last)[:, None, None]


def act(data: dict, layout: str) -> dict:
    """Answer to get_action as Gr00tPolicy gives it for batched input: one array [batch, horizon, joint] a key."""
    pictures = [value[:, 0] for key, value in data.items() if key.startswith("video.")]
    state = np.concatenate([data[f"state.{name}"][:, 0] for name in sorted(LAYOUTS[layout], reverse=True)], -1)
    chunk = expected_chunk(np.stack(pictures, 1), state).astype(np.float32)
    reply, start = {}, 0
    for name in sorted(LAYOUTS[layout], reverse=True):  # single_arm, then gripper
        reply[f"action.{name}"] = array(chunk[..., start : start + JOINTS[name]])
        start += JOINTS[name]
    return reply


class Server(threading.Thread):
    """Answers honestly, except where `spoilt` maps an endpoint to a function from the request to another answer."""

    def __init__(self, layout: str = "one", config: dict | None = None, **spoilt):
        super().__init__(daemon=True)
        self.layout, self.config, self.spoilt = layout, config or modality_config(layout), spoilt
        self.requests: list[dict] = []
        self.stopping = threading.Event()
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)  # unlike REP it may leave a request without an answer
        self.url = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"

    def answer(self, request: dict) -> Any:
        endpoint = request["endpoint"]
        if endpoint in self.spoilt:
            return self.spoilt[endpoint](request)
        if endpoint == "ping":
            return {"status": "ok", "message": "Server is running"}
        if endpoint == "get_modality_config":
            return self.config
        assert endpoint == "get_action", endpoint
        return act(request["data"], self.layout)

    def run(self) -> None:
        while not self.stopping.is_set():
            if not self.socket.poll(10):
                continue
            *address, message = self.socket.recv_multipart()
            self.requests.append(unpack(message))
            answer = self.answer(self.requests[-1])
            if answer is DIE:
                self.socket.close(linger=0)
                time.sleep(0.1)
                self.socket = self.context.socket(zmq.ROUTER)
                self.socket.bind(self.url)
            elif answer is not None:
                data = answer if isinstance(answer, bytes) else msgpack.packb(answer)
                self.socket.send_multipart([*address, data])
        self.context.destroy(linger=0)

    def data(self) -> list[dict]:
        """Data of the requests to get_action."""
        return [request["data"] for request in self.requests if request["endpoint"] == "get_action"]

    def stop(self) -> None:
        self.stopping.set()
        self.join(5)
