"""One case, in a process of its own: its file of results grows with each contender.

The parent (:mod:`gpu.run`) starts it again with the contenders that are left where one breaks the
device or the process. The file says who was running.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpu import agreement
from gpu.cases import Case, read_index
from gpu.clock import Clock, times
from gpu.contenders import Setting, make
from gpu.names import OURS
from gpu.store import write_json

CHECK = "check"
"""Stands for the comparison of results where a contender's name is wanted."""


def run_child(args: argparse.Namespace) -> int:
    """Measure the contenders of one case; writes ``args.row`` after each."""
    about = next(a for a in read_index(args.folder) if Case.of(a).name == args.case)
    clock, row = Clock(args.device), Row(args.row)
    setting = Setting.of(about, args.folder, args.device)
    for name in args.contenders:
        with row.running(name), time_limit(args.contender_seconds):
            if name == CHECK:
                row.tell(CHECK, agreement.check(setting))
            else:
                row.tell(name, measured(name, setting, clock, args))
        clock.free()
        clock.wait()  # a broken device ends this process here; the next one goes on
    return 0


def measured(name: str, setting: Setting, clock: Clock, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and memory of a contender."""
    call, memory = clock.first_calls(partial(make, name, setting), own=name != OURS)
    found = times(call, clock, repeats=args.repeats, seconds=args.seconds)
    return found | {"memory_mb": memory}


class Row:
    """The file: ``{"running": name, "found": {name: {…}}}``; an error is found too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data: dict[str, Any] = {"running": None, "found": {}}

    def tell(self, name: str, found: dict[str, Any]) -> None:
        """Write and print what was found."""
        if "error" in found:
            text = found["error"]
        elif name == CHECK:
            text = agreement.text(found)
        else:
            text = f"{found['ms']:.3f} ms"
        print(f"  {name}: {text}", flush=True)
        self._data["found"][name] = found
        self._write()

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """While a contender runs; its error is written, and others go on."""
        self._data["running"] = name
        self._write()
        try:
            yield
        except Exception as e:  # a peer that is missing, or runs out of memory, is a result too
            first = (str(e).strip().splitlines() or [""])[0]
            self.tell(name, {"error": f"{type(e).__name__}: {first}"[:500]})
        self._data["running"] = None
        self._write()

    def _write(self) -> None:
        write_json(self._path, self._data)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this thread after a while."""

    def stop(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
