"""Kernels that do not depend on each other as one launch: each has blocks of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var
from tvm.tirx.stmt import AttrStmt, DeclBuffer, IfThenElse, SeqStmt, Stmt

from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.schedule_kernels import MACS
from ttsnn.passes.tir.finished import finished

__all__ = ["Launch", "launches_of", "side_by_side"]

_LOWER = [
    s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.LowerMatchBuffer(),
    s_tir.transform.LowerOpaqueBlock(),
]
"""What TVM's own pipeline makes of blocks: statements. But buffers keep their size: made smaller
here, TVM's pipeline would do it a second time, and stumble over the conditions around them."""


@dataclass(frozen=True)
class Launch:
    """What one launch of a function does.

    Attributes:
        block, thread: variables of the indices.
        blocks, threads: how many.
        body: what a thread does.
    """

    block: Var
    thread: Var
    blocks: int
    threads: int
    body: Stmt


def launches_of(func: PrimFunc) -> tuple[list[DeclBuffer], list[Launch]] | None:
    """Names that a scheduled function gives to its arguments, and its launches, in any order.

    None where they are not all of numbered blocks of numbered threads alone, threads exchange
    something, or one launch reads what another one writes.
    """
    if not _threads_apart(func):
        return None
    mod = tvm.IRModule({"f": func.with_attr("global_symbol", "f")})
    body = tvm.transform.Sequential(_LOWER)(mod)["f"].body
    stmts = list(body) if isinstance(body, SeqStmt) else [body]
    views = [s for s in stmts if isinstance(s, DeclBuffer)]
    found = [_launch(s) for s in stmts if not isinstance(s, DeclBuffer)]
    launches = [launch for launch in found if launch is not None]
    if not launches or len(launches) < len(found):
        return None
    return (views, launches) if _independent(views, launches) else None


def side_by_side(parts: Sequence[tuple[PrimFunc, int]]) -> PrimFunc:
    """The function (inputs of each…, results of each…): one launch for those of all functions.

    Args:
        parts: scheduled functions that have :func:`launches_of` and write nothing that another
            one reads, each with how many results it has; one may be there several times.
    """
    b = CudaBody()
    inputs: list[Var] = []
    results: list[Var] = []
    launches: list[Launch] = []
    for func, count in parts:
        own = s_tir.renew_defs(func)
        inputs += own.params[: len(own.params) - count]
        results += own.params[len(own.params) - count :]
        views, found = launches_of(own) or ([], [])
        launches += found
        for view in views:
            b.emit(view)
    ends = [0]
    for launch in launches:
        ends.append(ends[-1] + launch.blocks)
    threads = max(launch.threads for launch in launches)
    with b.launch(ends[-1], threads) as (block, thread):

        def part(first: int, last: int) -> Stmt:
            """The launches ``first`` … ``last - 1``, found by halving."""
            if last - first > 1:
                middle = (first + last) // 2
                return IfThenElse(block < ends[middle], part(first, middle), part(middle, last))
            return _renumbered(launches[first], block - ends[first], thread, threads)

        b.emit(part(0, len(launches)))
    macs = sum(int(func.attrs[MACS]) for func, _ in parts)
    return finished(b, [*inputs, *results], "side_by_side", macs)


def _renumbered(launch: Launch, block: Expr, thread: Expr, threads: int) -> Stmt:
    """A launch's body for other indices of blocks and threads."""
    given = {
        launch.block: block.astype(str(launch.block.ty.dtype)),
        launch.thread: thread.astype(str(launch.thread.ty.dtype)),
    }
    stmt = tvm_ffi.structural_map(launch.body, (Var, lambda var: given.get(var, var)))
    return IfThenElse(thread < launch.threads, stmt, None) if launch.threads < threads else stmt


def _launch(stmt: Stmt) -> Launch | None:
    """The launch that a statement is."""
    axes = []
    while isinstance(stmt, AttrStmt) and stmt.attr_key == "thread_extent":
        axes.append((stmt.node.thread_tag, stmt.node.var, stmt.value))
        stmt = stmt.body
    if [tag for tag, _, _ in axes] != ["blockIdx.x", "threadIdx.x"]:
        return None
    sizes = [extent for *_, extent in axes]
    if not all(isinstance(s, tirx.IntImm) for s in sizes):
        return None
    (_, block, _), (_, thread, _) = axes
    return Launch(block, thread, int(sizes[0]), int(sizes[1]), stmt)


def _independent(views: Sequence[DeclBuffer], launches: Sequence[Launch]) -> bool:
    """Whether no launch touches what another one writes."""
    whole = {view.buffer: view.data.args[0] for view in views}
    touched: list[set[Var]] = []
    written: list[set[Var]] = []
    for launch in launches:
        names: list[Var] = []
        stores: list[tirx.BufferStore] = []
        tvm_ffi.structural_walk(launch.body, (Var, names.append))
        tvm_ffi.structural_walk(launch.body, (tirx.BufferStore, stores.append))
        touched.append({whole.get(v, v) for v in names})
        written.append({whole.get(s.buffer, s.buffer) for s in stores})
    pairs = itertools.permutations(range(len(launches)), 2)
    return all(not written[i] & touched[j] for i, j in pairs)


def _threads_apart(func: PrimFunc) -> bool:
    """Whether threads exchange nothing: no shared memory, no sum over threads."""
    apart = True

    def shared(node: tirx.AllocBuffer) -> None:
        nonlocal apart
        apart = apart and node.buffer.ty.storage_scope == "local"

    def block(node: s_tir.stmt.SBlock) -> None:
        nonlocal apart
        apart = apart and node.init is None and not node.alloc_buffers

    tvm_ffi.structural_walk(func.body, [(tirx.AllocBuffer, shared), (s_tir.stmt.SBlock, block)])
    return apart
