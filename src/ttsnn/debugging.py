"""What the compiler shows of itself: dumps of the IR after every pass, and checks of it.

Environment: ``TTSNN_DUMP_IR=DIR`` dumps, ``TTSNN_VERIFY=1`` checks every pass' result.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import tvm
from tvm import relax
from tvm.ir.instrument import pass_instrument

from ttsnn.errors import PassError
from ttsnn.program import PARAMS

__all__ = ["instruments"]

_active: ContextVar[str | None] = ContextVar("ttsnn_instruments", default=None)


class _Depth:
    """How many passes the current one runs inside of; lists of passes do not count."""

    def __init__(self) -> None:
        self.depth = 0

    def enter(self, info: tvm.transform.PassInfo) -> bool:
        """A pass begins; whether it is one of the pipeline's own."""
        if info.name == "sequential":
            return False
        self.depth += 1
        return self.depth == 1

    def leave(self, info: tvm.transform.PassInfo) -> bool:
        """A pass ends; whether it is one of the pipeline's own."""
        if info.name == "sequential":
            return False
        self.depth -= 1
        return self.depth == 0


@pass_instrument
class _Dump:
    """Write ``DIR/007_FoldBatchNorm.py`` after each pass that changed the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.depth = _Depth()
        self.before: tvm.IRModule | None = None

    def run_before_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        if self.depth.enter(info):
            self.before = mod

    def run_after_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        if not self.depth.leave(info) or (self.before is not None and mod.same_as(self.before)):
            return
        self.count += 1
        if mod.attrs is not None and PARAMS in mod.attrs:
            mod = mod.without_attr(PARAMS)  # values would drown the text
        name = info.name.rpartition(".")[2]
        (self.folder / f"{self.count:03d}_{name}.py").write_text(mod.script())


@pass_instrument
class _Verify:
    """Fail on the first pass that leaves an ill-formed module."""

    def __init__(self) -> None:
        self.depth = _Depth()

    def run_before_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        self.depth.enter(info)

    def run_after_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        if self.depth.leave(info) and not relax.analysis.check_well_formed(mod):
            raise PassError(f"pass {info.name} left an ill-formed module; this is a bug of ttsnn")


@contextlib.contextmanager
def instruments(dump_ir: str | os.PathLike | None = None) -> Iterator[None]:
    """Run the block's passes with the dumps and checks that were asked for.

    Blocks nest: an inner one that names the same folder, or none, goes on with the outer one's
    numbering.
    """
    dump_ir = dump_ir or os.environ.get("TTSNN_DUMP_IR") or None
    active = _active.get()
    if active is not None and (dump_ir is None or os.fspath(dump_ir) == active):
        yield
        return
    chosen: list = []
    if dump_ir is not None:
        folder = Path(dump_ir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PassError(f"{folder}: cannot dump the IR there: {error.strerror}") from error
        chosen.append(_Dump(folder))
    if os.environ.get("TTSNN_VERIFY", "") not in ("", "0"):
        chosen.append(_Verify())
    if not chosen:
        yield
        return
    token = _active.set(os.fspath(dump_ir or ""))
    try:
        with tvm.transform.PassContext(instruments=chosen):
            yield
    finally:
        _active.reset(token)
