"""The innermost loops: a tile of output pixels × channels whose sums live in registers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.kernels.tir import Body, i64, load, splat, vector

__all__ = ["RegisterTile", "chunks"]


def chunks(width: int, lanes: int) -> list[tuple[int, int]]:
    """(offset, lanes) of the vectors that cover ``width`` channels: whole ones, then halves, …"""
    out, start = [], 0
    while start < width:
        while lanes > width - start:
            lanes //= 2
        out.append((start, lanes))
        start += lanes
    return out


@dataclass
class RegisterTile:
    """Sums of ``rows`` pixels × one panel of channels.

    The buffer is indexed by constants only, so that LLVM keeps it in registers.
    """

    body: Body
    dtype: str
    rows: int
    vectors: Sequence[tuple[int, int]]
    name: str = "acc"

    def __post_init__(self) -> None:
        self.width = sum(n for _, n in self.vectors)
        size = self.rows * self.width
        self.buffer = self.body.alloc(size, self.dtype, self.name, scope="local")

    def elements(self) -> Iterator[tuple[int, int, int, Expr]]:
        """(row, first channel, lanes, index in the buffer) of each vector."""
        for row in range(self.rows):
            for start, lanes in self.vectors:
                yield row, start, lanes, vector(row * self.width + start, lanes)

    def zero(self) -> None:
        """Set all sums to zero."""
        for _, _, lanes, at in self.elements():
            self.body.store(self.buffer, splat(0.0, self.dtype, lanes), at)

    def accumulate(
        self,
        source: Var,
        base: Expr,
        row_offsets: Sequence[int | Expr],
        tap_offsets: Sequence[int],
        channels: int,
        weight: Var,
        weight_base: Expr,
        weight_stride: int,
        k_unroll: int,
    ) -> None:
        """Add the products of a stage.

        Args:
            source: flat buffer of inputs; pixel ``row`` of the tile, tap ``j``, channel ``k``
                is at ``base + row_offsets[row] + tap_offsets[j] + k``.
            channels: number of input channels.
            weight: flat weights; tap ``j``, channel ``k``, vector start ``c`` is at
                ``weight_base + (j · channels + k) · weight_stride + c``.
            k_unroll: channels a step of the inner loop.
        """
        b = self.body
        with b.loop(len(tap_offsets), "tap") as tap:
            at = b.bind(base + _pick(tap, tap_offsets), "at")
            w_at = b.bind(weight_base + tap * (channels * weight_stride), "w_at")
            unroll = min(k_unroll, channels)
            steps, rest = divmod(channels, unroll)
            with b.loop(steps, "ko") as ko:
                for u in range(unroll):
                    k = ko * unroll + u
                    self._rank1(source, at, row_offsets, k, weight, w_at + k * weight_stride)
            for k in range(channels - rest, channels):
                self._rank1(source, at, row_offsets, k, weight, w_at + k * weight_stride)

    def _rank1(
        self,
        source: Var,
        at: Expr,
        row_offsets: Sequence[int | Expr],
        k: Expr | int,
        weight: Var,
        w_at: Expr,
    ) -> None:
        """Add the outer product of one input channel of all rows and one row of weights."""
        b = self.body
        loaded = [b.bind(load(weight, vector(w_at + c, n)), "w") for c, n in self.vectors]
        for row, offset in enumerate(row_offsets):
            x = b.bind(load(source, at + offset + k), "a")
            for (c, n), w in zip(self.vectors, loaded):
                index = vector(row * self.width + c, n)
                product = splat(x, self.dtype, n) * w
                b.store(self.buffer, load(self.buffer, index) + product, index)


def _pick(index: Expr, values: Sequence[int]) -> Expr:
    """``values[index]`` as arithmetic where they are equally spaced, else as a chain of selects."""
    steps = {b - a for a, b in itertools.pairwise(values)}
    if len(values) == 1:
        return i64(values[0])
    if len(steps) == 1:
        return index * steps.pop() + values[0]
    out = i64(values[-1])
    for i in range(len(values) - 2, -1, -1):
        out = tirx.Select(index == i, i64(values[i]), out)
    return out
