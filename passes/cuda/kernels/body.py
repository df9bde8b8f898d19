"""Statements of a GPU kernel: the builder of :mod:`ttsnn.passes.tir.body`, with threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

from tvm.ir import Expr, Range, StringImm
from tvm.tirx import AssertStmt, For, ForKind, IntImm, IterVar, Var

from ttsnn.passes.tir.body import Body

__all__ = ["NARROW", "CudaBody"]

NARROW = 1 << 31
"""Elements that an array with 32-bit indices has fewer than."""


class CudaBody(Body):
    """A function's statements; several thread-bound loops side by side are several launches.

    Args:
        largest: elements of the largest array: where they fit, indices have 32 bits, which a GPU
            computes faster; None where a size is symbolic, which counts as fitting.
    """

    def __init__(self, largest: int | None = None) -> None:
        super().__init__()
        self.index = "int64" if largest is not None and largest >= NARROW else "int32"

    def check_narrow(self, params: Sequence[Var], batch: Expr) -> None:
        """Refuse, at run time, a batch for which an array is too large for 32-bit indices.

        Args:
            params: the arrays, whose sizes are fixed but for the batch.
            batch: its size.
        """
        if isinstance(batch, IntImm):
            return
        fixed = [prod(int(s) for s in p.shape if isinstance(s, IntImm)) for p in params]
        most = (NARROW - 1) // max(fixed)
        self.emit(
            # the condition first, whatever TVM's signature says
            AssertStmt(
                batch <= most,
                StringImm("ValueError"),
                [StringImm(f"CUDA kernel: the batch is limited to {most} samples")],
            )
        )

    def narrow(self, size: int | Expr) -> Expr:
        """A size that may be symbolic, in the type of indices."""
        if isinstance(size, int | IntImm):
            return self.at(int(size))
        return self.bind(size.astype(self.index), "size")

    def unsigned(self, index: Expr) -> Expr:
        """An index that is not negative, so that nvcc adds its terms up before it widens them."""
        if self.index == "int64":
            return index
        return index.astype("uint32").astype("int64")

    @contextmanager
    def bound(self, extent: int | Expr, tag: str) -> Iterator[Expr]:
        """A loop whose iterations are blocks or threads: ``tag`` is ``"blockIdx.x"`` and so on."""
        var = Var(tag.replace("Idx.", "_"), self.index)
        axis = IterVar(Range(self.at(0), self.at(extent)), var, IterVar.ThreadIndex, tag)
        with self.collected(lambda body: For(var, self.at(0), self.at(extent), _BOUND, body, axis)):
            yield var

    @contextmanager
    def launch(self, blocks: int | Expr, threads: int) -> Iterator[tuple[Expr, Expr]]:
        """One kernel of ``blocks`` × ``threads``; yields the two indices."""
        with (
            self.bound(blocks, "blockIdx.x") as block,
            self.bound(threads, "threadIdx.x") as thread,
        ):
            yield block, thread

    @contextmanager
    def each(self, count: int | Expr, threads: int = 256) -> Iterator[Expr]:
        """One kernel with a thread for each of ``count`` items; yields the item."""
        known = int(count) if isinstance(count, int | IntImm) else None
        if known is not None and known <= threads:
            with self.launch(1, max(1, known)) as (_, thread):
                yield thread
            return
        with self.launch((count + (threads - 1)) // threads, threads) as (block, thread):
            item = self.bind(block * threads + thread, "item")
            if known is not None and known % threads == 0:
                yield item
            else:
                with self.when(item < count):
                    yield item

    def grouped(self, thread: Expr, size: int, count: int) -> tuple[Expr, Expr]:
        """Number of the group of ``size`` threads that a thread is in, and its index there."""
        if count == 1:
            return self.at(0), thread
        return self.bind(thread // size, "group"), self.bind(thread % size, "own_thread")


_BOUND = ForKind.THREAD_BINDING
