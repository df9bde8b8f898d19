"""The progress bar of a training run."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["Progress"]


class Progress:
    """A bar on stderr with epoch, loss and remaining time; nothing where that is no terminal.

    Args:
        show: False: nothing.
        total: updates of the run.
        done: updates made before.
    """

    def __init__(self, show: bool, total: int, done: int) -> None:
        self._bar: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("training", total=total, completed=done, loss="–")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, epoch: int, epochs: int, loss: float) -> None:
        """One more update."""
        if self._bar is not None:
            self._bar.update(
                self._task, advance=1, description=f"epoch {epoch}/{epochs}", loss=f"{loss:.4f}"
            )
