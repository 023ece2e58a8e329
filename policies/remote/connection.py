"""Request and reply over ZeroMQ, with a time limit and retries."""

from __future__ import annotations

import math
import re
from typing import Any

import zmq

from mjx_so101.errors import ConfigError, RemoteError
from policies.remote.wire import decode, encode

URL = re.compile(r"tcp://[^\s:/*]+:([0-9]{1,5})")
LARGEST_PORT = 65535
LARGEST_REPLY = 2**24
"""Bytes; ZeroMQ drops a longer message unread. Chunks of 64 environments take 50 kB."""


class Connection:
    """A ZeroMQ REQ socket to one server, opened anew whenever an answer does not come in time."""

    def __init__(self, url: str, timeout_s: float, retries: int):
        match = URL.fullmatch(url) if isinstance(url, str) else None
        if match is None or not 0 < int(match[1]) <= LARGEST_PORT:
            raise ConfigError(f"url is {url!r}; give tcp://HOST:PORT, for example tcp://localhost:5555.")
        number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
        if not number or not math.isfinite(timeout_s) or timeout_s < 0.001:
            raise ConfigError(f"timeout_s is {timeout_s!r}; give seconds, 0.001 or more.")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigError(f"retries is {retries!r}; give a whole number, 0 or more.")
        self.url, self.timeout_s, self.retries = url, timeout_s, retries
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None

    def call(self, endpoint: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the server answers at `endpoint`.

        Raises:
            RemoteError: if it does not answer in time, or with an error, or with anything but a msgpack map.
        """
        request: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            request["data"] = data
        message = self._exchange(endpoint, encode(request))
        try:
            reply = decode(message)
        except ValueError as error:
            raise RemoteError(f"The reply of {self.url} to {endpoint} is refused: {error}") from error
        if not isinstance(reply, dict):
            raise RemoteError(f"The reply of {self.url} to {endpoint} is a {type(reply).__name__}; a map is needed.")
        if "error" in reply:
            raise RemoteError(f"The server at {self.url} answers {endpoint} with an error: {reply['error']}")
        return reply

    def _exchange(self, endpoint: str, request: bytes) -> bytes:
        if self._context.closed:
            raise RemoteError(f"The connection to {self.url} has been closed; build the policy again.")
        for _ in range(1 + self.retries):
            socket = self._open()
            try:
                socket.send(request)
                return b"".join(socket.recv_multipart())
            except BaseException as error:  # Ctrl-C too: without its answer a REQ socket can send nothing more
                self._drop()
                if not isinstance(error, zmq.Again):
                    raise
        raise RemoteError(
            f"{self.url} gave no answer to {endpoint} within {self.timeout_s:g} s, {1 + self.retries} times (an answer "
            f"above {LARGEST_REPLY // 2**20} MiB counts as none). Check that the GR00T server runs and that host and "
            f"port are right; give a slow server more time (--timeout-s)."
        )

    def _open(self) -> zmq.Socket:
        if self._socket is None:
            milliseconds = int(self.timeout_s * 1000)
            self._socket = self._context.socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.SNDTIMEO, milliseconds)
            self._socket.setsockopt(zmq.RCVTIMEO, milliseconds)
            self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_REPLY)
            try:
                self._socket.connect(self.url)
            except zmq.ZMQError as error:
                self._drop()
                raise ConfigError(f"url is {self.url!r}, which ZeroMQ cannot connect to: {error}.") from error
        return self._socket

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def close(self) -> None:
        """Close the socket; requests under way are forgotten."""
        self._drop()
        self._context.term()
