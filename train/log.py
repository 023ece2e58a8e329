"""The run's log: metrics.jsonl and TensorBoard events, which a resumed run continues from its checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from train.files import write_text


class Log:
    """metrics.jsonl and TensorBoard events in the run folder."""

    def __init__(self, out: Path, steps: int = 0, evaluations: list[dict[str, Any]] | None = None):
        """steps, evaluations: those of the checkpoint that the run goes on from; what was logged after it goes."""
        path = out / "metrics.jsonl"
        evaluated = [record["steps"] for record in evaluations or []]
        purge_step = None
        if path.exists():
            _drop_later(path, steps, evaluated)
            purge_step = steps + 1 if evaluated else 0  # TensorBoard hides what it holds from this step on
        self._file = path.open("a")
        # named by its first step, or two parts begun in the same second would share a file
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=purge_step, filename_suffix=f".{steps}")

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def metrics(self, steps: int, metrics: dict[str, float]) -> None:
        """Log an iteration."""
        self._write({"kind": "train", "steps": steps, **metrics})
        for name, value in metrics.items():
            if np.isfinite(value):
                self._board.add_scalar(f"train/{name}", value, steps)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Log an evaluation."""
        self._write({"kind": "evaluation", **record})
        for name in ("success", "success_at_end"):
            for tolerance, entry in record[name].items():
                self._board.add_scalar(f"evaluation/{name}_{tolerance}mm", entry["rate"], record["steps"])

    def sync(self) -> None:
        """Wait until all of it is on the disk, so that no checkpoint knows of more than the log."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def _write(self, record: dict[str, Any]) -> None:
        clean = {k: (None if isinstance(v, float) and not np.isfinite(v) else v) for k, v in record.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()


def _drop_later(path: Path, steps: int, evaluated: list[int]) -> None:
    """Keep the records of iterations up to `steps` and of the evaluations made by then; a torn last line goes."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
            known = record["steps"] in evaluated if record["kind"] == "evaluation" else record["steps"] <= steps
        except ValueError:
            known = False  # the process was killed while it wrote this line
        if known:
            kept.append(line + "\n")
    write_text(path, "".join(kept))
