"""The log of a resumed run holds each step once."""

import json
import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog

from train.log import Log


def evaluation(steps):
    return {"steps": steps, "success": {"5": {"rate": steps / 10}}, "success_at_end": {}}


def write(out, rows, steps=0, evaluations=()):
    with Log(out, steps, list(evaluations)) as log:
        for kind, at in rows:
            log.metrics(at, {"reward": 1.0}) if kind == "train" else log.evaluation(evaluation(at))


def steps_in_file(out):
    return [(r["kind"], r["steps"]) for r in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]


def steps_in_tensorboard(out):
    """(tag, step) as TensorBoard shows them: a session's start hides what came before it from its step on."""
    shown = []
    for file in sorted((out / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == SessionLog.START:
                shown = [(tag, step) for tag, step in shown if step < event.step]
            shown += [(value.tag, event.step) for value in event.summary.value]
    return shown


def test_what_was_logged_after_the_checkpoint_goes(tmp_path):
    """Killed after the evaluation at 4, whose checkpoint it never wrote: it goes on from 2."""
    write(tmp_path, [("evaluation", 0), ("train", 1), ("train", 2), ("evaluation", 2), ("train", 3), ("train", 4),
                     ("evaluation", 4)])  # fmt: skip
    write(tmp_path, [("train", 3), ("train", 4), ("evaluation", 4)], 2, [evaluation(0), evaluation(2)])
    wanted = [("evaluation", 0), ("train", 1), ("train", 2), ("evaluation", 2), ("train", 3), ("train", 4),
              ("evaluation", 4)]  # fmt: skip
    assert steps_in_file(tmp_path) == wanted
    tags = {"train": "train/reward", "evaluation": "evaluation/success_5mm"}
    assert sorted(steps_in_tensorboard(tmp_path)) == sorted((tags[kind], step) for kind, step in wanted)


def test_run_that_begins_anew_begins_its_log_anew(tmp_path):
    write(tmp_path, [("evaluation", 0), ("train", 1)])
    write(tmp_path, [("evaluation", 0)])
    assert steps_in_file(tmp_path) == [("evaluation", 0)]
    assert steps_in_tensorboard(tmp_path) == [("evaluation/success_5mm", 0)]


def test_evaluation_that_the_checkpoint_does_not_know_goes(tmp_path):
    """Of the same step: it was interrupted, and is made again."""
    write(tmp_path, [("evaluation", 0), ("train", 1), ("evaluation", 1)])
    write(tmp_path, [("evaluation", 1)], 1, [evaluation(0)])
    assert steps_in_file(tmp_path) == [("evaluation", 0), ("train", 1), ("evaluation", 1)]


def test_line_that_was_being_written_goes(tmp_path):
    write(tmp_path, [("train", 1)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "ste')
    write(tmp_path, [("train", 2)], 1, [evaluation(0)])
    assert steps_in_file(tmp_path) == [("train", 1), ("train", 2)]
