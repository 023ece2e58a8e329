"""Signals end a command at any time, and only ask while a run trains or saves. In processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IN_C = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)'  # for many minutes
ENDED = """
import hashlib, os, time
from train.signals import ended_by_signals, last_words
with ended_by_signals(), last_words("So far."):
    print("not flushed")
    os.write(1, b"ready\\n")
    if {blocks}:
        {wait}
    while True:
        try:
            time.sleep(0.01)
        except BaseException:  # as JAX's callbacks do
            pass
"""
SAVING = """
import sys, time
from train.signals import Stop, ended_by_signals
with ended_by_signals(), Stop().listening() as stop:
    with stop.held():
        print("ready", flush=True)
        while not stop:
            time.sleep(0.01)
        time.sleep({seconds})
    print("saved", flush=True)
"""


WAITING = """
import hashlib, os, time
from train.signals import Stop, ended_by_signals, last_words
with ended_by_signals(), last_words("Saved."), Stop(saved=lambda: {saved}).listening():
    os.write(1, b"ready\\n")
    {wait}
print("done")
"""


@pytest.fixture
def started():
    """Function that starts a script and gives its process once it says that it is ready."""
    processes = []

    def start(script):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, **pipes)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_what_swallows_exceptions_or_waits_in_c(started, which, blocks):
    process = started(ENDED.format(blocks=blocks, wait=IN_C))
    process.send_signal(which)
    out, said = process.communicate(timeout=10)
    assert process.returncode == 128 + which
    assert said.strip() == "So far."
    assert out == "not flushed\n"


def test_second_ctrl_c_lets_a_save_end(started):
    process = started(SAVING.format(seconds=1.5))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    out, said = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "saved\n")
    assert "saving" in said and "still saving" in said and "Traceback" not in said


def test_third_ctrl_c_ends_a_save_that_hangs(started):
    process = started(SAVING.format(seconds=100))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130 and "Stopped at once" in said and "Traceback" not in said


def test_stop_that_waits_in_c_with_nothing_to_save_ends_within_seconds(started):
    """As in a compilation."""
    process, begin = started(WAITING.format(saved=True, wait=IN_C)), time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said.endswith("Saved.\n") and "Traceback" not in said
    assert 3 < time.monotonic() - begin < 15


def test_stop_with_something_to_save_is_waited_for(started):
    process = started(WAITING.format(saved=False, wait="time.sleep(6)"))
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "done\n") and "saving after this step" in said


@pytest.mark.slow
@pytest.mark.parametrize(("which", "seconds"), [(signal.SIGINT, 2), (signal.SIGTERM, 3), (signal.SIGINT, 4.5),
                                                (signal.SIGTERM, 6)])  # fmt: skip
def test_signal_in_the_first_seconds_of_a_run_ends_it(tiny_flags, tmp_path, which, seconds):
    command = [sys.executable, "-m", "train.cli", "train", *tiny_flags, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment) as process:
        time.sleep(seconds)
        process.send_signal(which)
        _, said = process.communicate(timeout=10)
    assert process.returncode in (130, 128 + which), said
    assert "Traceback" not in said and "Exception ignored" not in said
