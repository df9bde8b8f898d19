"""Sums split over groups of a block's threads, and the shared memory of a block.

A small layer has too few blocks to fill a GPU, and each would wait for one step of the sum after
the other. So groups of threads, whole warps each, work on a part of the sum at the same time; then
the first group adds the parts up in their order, and finishes the tile. float32 sums are rounded
in another order than without, the same one every time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil

from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_load import Rows
from ttsnn.passes.cuda.kernels.conv_tile import ConvTile
from ttsnn.passes.tir.body import load, vector

__all__ = ["Split"]


@dataclass
class Split:
    """Groups of the block's threads; where one group is all, nothing is emitted for it.

    Attributes:
        b: where statements go.
        tile: the block's.
        thread: index of the thread in the block.
        dtype: of the sums.
        lanes: elements of a vector.
    """

    b: CudaBody
    tile: ConvTile
    thread: Expr
    dtype: str
    lanes: int

    def __post_init__(self) -> None:
        b, tile = self.b, self.tile
        self.alone = tile.split == 1
        self.part, self.own = b.grouped(self.thread, tile.group, tile.split)
        x, w = tile.shared_rows(self.lanes)
        # all in one array: the parts of the sums take the place of the operands
        size = max(tile.split * (x + w), (tile.split - 1) * tile.sums * tile.group)
        self.shared = b.alloc(size, self.dtype, "shared", "shared")
        self.x = Rows(self.shared, self.part * x, tile.x_stride(self.lanes))
        self.w = Rows(self.shared, self.part * w + tile.split * x, tile.w_stride)

    def share(self, total: int) -> tuple[int, Expr]:
        """Of a sum of ``total`` steps: how many each group does, and the first of this one."""
        count = ceil(total / self.tile.split)
        return count, self.part * count

    def within(self, step: Expr, total: int) -> AbstractContextManager[None]:
        """What is done only for steps that there are: the last groups may have fewer."""
        even = total % self.tile.split == 0
        return nullcontext() if even else self.b.when(step < total)

    def first_group(self) -> AbstractContextManager[None]:
        """What only the group does that finishes the tile."""
        return nullcontext() if self.alone else self.b.when(self.part < 1)

    def add_up(self, sums: Var) -> None:
        """Sums of the first group ← those of all groups, in order."""
        if self.alone:
            return
        b, tile, lanes = self.b, self.tile, self.lanes
        vectors = tile.sums // lanes

        def at(part: Expr, i: Expr) -> Expr:
            return vector(((part * vectors + i) * tile.group + self.own) * lanes, lanes)

        with b.when(self.part > 0), b.loop(vectors, "i", "unrolled") as i:
            b.store(self.shared, load(sums, vector(i * lanes, lanes)), at(self.part - 1, i))
        with (
            b.when(self.part < 1),
            b.loop(tile.split - 1, "p", "unrolled") as p,
            b.loop(vectors, "i", "unrolled") as i,
        ):
            here = vector(i * lanes, lanes)
            b.store(sums, load(sums, here) + load(self.shared, at(p, i)), here)
