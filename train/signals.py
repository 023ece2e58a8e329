"""Ctrl-C and SIGTERM: while a run trains they ask it to save and stop, at any other time they end the process.

Neither raises an exception where there is nothing to clean up: raised inside one of JAX's callbacks it is lost, or
aborts the process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_S = 4.0
"""How long a `Stop` that has nothing to save may take to answer: it may be in a compilation, which cannot be left."""
AT_ONCE = "Stopped at once; the checkpoint before counts."
_last_words = "Stopped."


class Stop:
    """Truthy once a signal has asked to stop; from then on a second one raises KeyboardInterrupt."""

    def __init__(self, saved: Callable[[], bool] = lambda: False):
        """saved: whether the process could end as it is, with nothing to save."""
        self._saved = saved
        self._count = 0
        self._held = 0

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def may_end(self) -> bool:
        """Whether nothing is lost if the process ends at once."""
        return not self._held and self._saved()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within this block, while something is saved, a second signal does nothing; a third ends the process."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def _handle(self, signum: int, _frame: object) -> None:
        self._count += 1
        name = signal.Signals(signum).name
        if self._count == 1:
            _say(f"\n{name}: saving after this step; once more stops without saving ...")
        elif self._count > 2:
            _end(130, AT_ONCE)
        elif self._held:
            _say(f"{name}: still saving; once more stops at once ...")
        else:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Within this block, and only there, SIGTERM and Ctrl-C ask for a stop."""
        global _listening
        with _handlers(self._handle):
            _listening = self
            try:
                yield self
            finally:
                _listening = None
                self._count = 0


_listening: Stop | None = None


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within this block SIGTERM and Ctrl-C end the process with one line, unless a `Stop` listens.

    The handler in C writes the signal's number into a pipe, and a thread that reads it ends the process: Python's own
    handlers would wait for the end of a compilation.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="signals").start()
    try:
        with _handlers(lambda *_: None), _wakeup(writer):
            yield
    finally:
        os.close(writer)


def _watch(reader: int) -> None:
    """End the process at a signal, or, while a `Stop` listens, if it does not answer although it may end; until the
    other end of the pipe is closed."""
    count, since = 0, 0.0
    while True:
        ready, _, _ = select.select([reader], [], [], 0.1 if count else None)
        if ready:
            numbers = os.read(reader, 1)
            if not numbers:
                break
            if numbers[0] not in _SIGNALS:
                continue
            if _listening is None:
                _end(128 + numbers[0])
            count, since = count + 1, since or time.monotonic()
        stop = _listening
        if stop is None:  # it has answered
            count, since = 0, 0.0
        elif count > 2:
            _end(130, AT_ONCE)
        elif time.monotonic() - since > GRACE_S and stop.may_end:
            _end(130)
    os.close(reader)


@contextlib.contextmanager
def last_words(text: str) -> Iterator[None]:
    """Within this block `text` is what an ended process says."""
    global _last_words
    before, _last_words = _last_words, text
    try:
        yield
    finally:
        _last_words = before


def said_last() -> str:
    """What an ended process says."""
    return f"\n{_last_words}"


def _end(status: int, words: str | None = None) -> None:
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)  # which may wait for the thread that is to end
    flush.start()
    flush.join(2.0)
    _say(f"\n{words}" if words else said_last())
    os._exit(status)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, f"{text}\n".encode())  # print could not be called again within itself


@contextlib.contextmanager
def _handlers(handle) -> Iterator[None]:
    old = {}
    for which in _SIGNALS:
        with contextlib.suppress(ValueError):  # not in the main thread
            old[which] = signal.signal(which, handle)
    try:
        yield
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)


@contextlib.contextmanager
def _wakeup(descriptor: int) -> Iterator[None]:
    try:
        old = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
