"""Logs of a training run: CSV and JSON lines, and TensorBoard's files where wanted."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ttsnn.artifact import replacing
from ttsnn.errors import DataError

__all__ = ["EVAL_FIELDS", "STEP_FIELDS", "RunLog"]

STEP_FIELDS = ("step", "epoch", "loss", "accuracy", "lr", "grad_norm", "seconds")
"""Columns of ``steps.csv``: loss and accuracy of that update's batch, before it."""

EVAL_FIELDS = ("step", "epoch", "accuracy", "samples", "seconds")
"""Columns of ``evals.csv``."""

_JSONL = "log.jsonl"


class RunLog:
    """Writes ``steps.csv``, ``evals.csv`` and ``log.jsonl`` in a run's folder.

    A resumed run drops the lines after its checkpoint, which it will write again, so that the
    logs are those of an uninterrupted run (but for ``seconds``).

    Args:
        folder: of the run; must exist.
        step: updates of the checkpoint that the run goes on from; 0 starts afresh.
        tensorboard: write TensorBoard's event files in ``folder/tensorboard`` too.

    Raises:
        DataError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, step: int = 0, *, tensorboard: bool = False) -> None:
        self.folder = folder
        for name, fields in (("steps.csv", STEP_FIELDS), ("evals.csv", EVAL_FIELDS)):
            _truncate(folder / name, _csv_step, step, header=",".join(fields) + "\n")
        _truncate(folder / _JSONL, _json_step, step)
        self._board = _board(folder / "tensorboard", step) if tensorboard else None

    def train(self, row: dict[str, Any]) -> None:
        """One update: values for :data:`STEP_FIELDS`."""
        self._write("steps.csv", "train", STEP_FIELDS, row)

    def eval(self, row: dict[str, Any]) -> None:
        """One evaluation: values for :data:`EVAL_FIELDS`."""
        self._write("evals.csv", "eval", EVAL_FIELDS, row)

    def _write(self, file: str, kind: str, fields: tuple[str, ...], row: dict[str, Any]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row.get(f, "") for f in fields])
        _append(self.folder / file, line.getvalue())
        known = {f: row[f] for f in fields if f in row}
        _append(self.folder / _JSONL, json.dumps({"kind": kind, **known}) + "\n")
        if self._board is not None:
            for name, value in known.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(f"{kind}/{name}", value, row["step"])

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()


def _append(path: Path, text: str) -> None:
    # opened for each line: a killed process loses nothing, and never more than one line
    with open(path, "a") as file:
        file.write(text)


def _csv_step(line: str) -> int:
    return int(line.split(",", 1)[0])


def _json_step(line: str) -> int:
    return int(json.loads(line)["step"])


def _truncate(path: Path, step_of: Callable[[str], int], step: int, header: str = "") -> None:
    """Keep the lines up to a step; a line that a killed process left half-written goes too."""
    kept = []
    if step and path.is_file():
        for line in path.read_text().splitlines(keepends=True):
            try:
                if line.endswith("\n") and step_of(line) <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # the header, or a torn line
    with replacing(path) as temporary:
        temporary.write_text(header + "".join(kept))


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DataError(
            f"TensorBoard is not installed ({error}); pip install tensorboard, or leave it out"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
