"""Tiles of operands on their way from global to shared memory: what they have in common.

A tile of depth ``k`` is fetched to registers while the one before it is multiplied; then it is put
into shared memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.kernels.register_tile import pick
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_spec import Segment
from ttsnn.passes.cuda.kernels.conv_tile import ConvTile
from ttsnn.passes.cuda.kernels.mma import word
from ttsnn.passes.tir.body import load, vector

__all__ = ["OperandTile", "Rows", "table", "width_of"]


def width_of(channels: int, lanes: int) -> int:
    """Elements of an access along channels: whole vectors, or single ones where some are left."""
    return lanes if channels % lanes == 0 else 1


def table(index: Expr, values: Sequence[int]) -> Expr:
    """``values[index]``, anything behind the last one; bits of a number where they are few.

    nvcc makes a copy of what follows for each value of a chain of selects.
    """
    low = min(values)
    bits = (max(values) - low).bit_length()
    even = len({b - a for a, b in itertools.pairwise(values)}) < 2
    if even or len(values) * bits > 63:
        return pick(index, values)
    packed = sum((v - low) << (i * bits) for i, v in enumerate(values))
    kind = "int32" if len(values) * bits < 32 else "int64"
    number = tirx.const(packed, kind) >> (index * bits).astype(kind)
    return (number & tirx.const((1 << bits) - 1, kind)).astype(str(index.ty)) + low


@dataclass(frozen=True)
class Rows:
    """A matrix in shared memory.

    Attributes:
        buffer: flat.
        first: its first element there.
        stride: elements from row to row.
    """

    buffer: Var
    first: Expr
    stride: int

    def at(self, row: Expr, column: Expr) -> Expr:
        """Where an element lies."""
        return self.first + (row * self.stride + column)


@dataclass
class OperandTile:
    """What tiles of both operands have.

    Attributes:
        b: where statements go.
        part: the segment.
        tile: shape of the block's tile.
        shared: the place in shared memory, of the sums' dtype.
        first: the block's first pixel, or output channel.
        thread: index of the thread in its group.
        lanes: elements of a vector.
        dtype: of the sums.
        precision: how numbers are rounded on their way to shared memory, see ``mma.py``.
    """

    b: CudaBody
    part: Segment
    tile: ConvTile
    shared: Rows
    first: Expr
    thread: Expr
    lanes: int
    dtype: str
    precision: str

    def put_words(self, at: Expr, numbers: Sequence[Expr]) -> None:
        """Neighbouring elements from ``at`` on ← words of neighbouring numbers."""
        b, pack = self.b, self.tile.pack
        words = len(numbers) // pack
        held = b.alloc(words, self.dtype, "words", "local")
        for i in range(words):
            b.store(held, word(self.precision, numbers[i * pack : (i + 1) * pack]), b.at(i))
        some = min(words, self.lanes)
        for first in range(0, words, some):
            value = load(held, vector(b.at(first), some))
            b.store(self.shared.buffer, value, vector(at + first, some))
