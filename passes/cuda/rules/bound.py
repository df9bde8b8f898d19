"""Whether a function leaves nothing to the host."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.tirx import PrimFunc

__all__ = ["all_bound", "thread_loops"]


def thread_loops(stmt: tirx.Stmt) -> list[tirx.For]:
    """The loops of a statement that are bound to threads or blocks."""
    found: list[tirx.For] = []

    def visit(node: tirx.For) -> None:
        if node.kind == tirx.ForKind.THREAD_BINDING:
            found.append(node)

    tvm_ffi.structural_walk(stmt, (tirx.For, visit))
    return found


def all_bound(func: PrimFunc) -> bool:
    """Whether every store of the function is inside of a loop that is bound to threads."""
    inside = {s for loop in thread_loops(func.body) for s in _stores(loop.body)}
    return all(s in inside for s in _stores(func.body))


def _stores(stmt: tirx.Stmt) -> list[tirx.Stmt]:
    found: list[tirx.Stmt] = []
    tvm_ffi.structural_walk(stmt, (tirx.BufferStore, found.append))
    return found
