"""The innermost loops: a tile of output pixels × channels whose sums live in registers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.tir.body import Body, flat_index, load, splat, vector

__all__ = ["Pixels", "Point", "RegisterTile", "chunks", "pick"]

Point = tuple[Expr, Expr, Expr]
"""Timestep, row and column of a pixel within a register tile."""


@dataclass(frozen=True)
class Pixels:
    """Inputs of a register tile: channel 0 of pixel (t, y, x) is at ``base + offset(t, y, x)``
    of a flat buffer."""

    buffer: Var
    base: Expr
    offset: Callable[[Expr, Expr, Expr], Expr]


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
    """Sums of a block of pixels × one panel of channels.

    Its loops are unrolled by TVM, so that all indices become constants and LLVM keeps the buffer
    in registers.

    Attributes:
        shape: (timesteps, rows, columns) of the pixels.
        vectors: (first channel, lanes) of the vectors of a panel.
    """

    body: Body
    dtype: str
    shape: tuple[int, int, int]
    vectors: Sequence[tuple[int, int]]
    name: str = "acc"

    def __post_init__(self) -> None:
        self.width = sum(n for _, n in self.vectors)
        size = math.prod(self.shape) * self.width
        self.buffer = self.body.alloc(size, self.dtype, self.name, scope="local")

    @contextmanager
    def pixels(self) -> Iterator[Point]:
        """Unrolled loops over the pixels."""
        b, (t, h, w) = self.body, self.shape
        with (
            b.loop(t, "dt", "unrolled") as dt,
            b.loop(h, "dy", "unrolled") as dy,
            b.loop(w, "dx", "unrolled") as dx,
        ):
            yield dt, dy, dx

    def _at(self, pixel: Point, start: int, lanes: int) -> Expr:
        return vector(flat_index(pixel, self.shape) * self.width + start, lanes)

    def get(self, pixel: Point, start: int, lanes: int) -> Expr:
        """The sums of ``lanes`` channels from ``start`` on."""
        return load(self.buffer, self._at(pixel, start, lanes))

    def set(self, value: Expr, pixel: Point, start: int, lanes: int) -> None:
        """Replace these sums."""
        self.body.store(self.buffer, value, self._at(pixel, start, lanes))

    def start(self, bias: Var | None = None, channel: Expr | int = 0) -> None:
        """Set all sums to zero, or to the bias of channels ``channel …``."""
        values = [
            splat(0.0, self.dtype, n)
            if bias is None
            else self.body.bind(load(bias, vector(channel + c, n)), "b")
            for c, n in self.vectors
        ]
        with self.pixels() as pixel:
            for (c, n), value in zip(self.vectors, values):
                self.set(value, pixel, c, n)

    def accumulate(
        self,
        source: Pixels,
        tap_offsets: Sequence[int],
        channels: int,
        weight: Var,
        weight_base: Expr,
        weight_stride: int,
        k_unroll: int,
    ) -> None:
        """Add the products of a stage.

        Args:
            source: inputs; tap ``j``, channel ``k`` of a pixel is ``tap_offsets[j] + k`` behind
                its channel 0.
            channels: number of input channels.
            weight: flat weights; tap ``j``, channel ``k``, vector start ``c`` is at
                ``weight_base + (j · channels + k) · weight_stride + c``.
            k_unroll: channels a step of the inner loop.
        """
        b = self.body
        unroll = min(k_unroll, channels)
        steps, rest = divmod(channels, unroll)
        with b.loop(len(tap_offsets), "tap") as tap:
            at = b.bind(source.base + pick(tap, tap_offsets), "at")
            w_at = b.bind(weight_base + tap * (channels * weight_stride), "w_at")

            def add(k: Expr) -> None:
                """Add the outer product of one channel of all pixels and one row of weights."""
                row = w_at + k * weight_stride
                loaded = [b.bind(load(weight, vector(row + c, n)), "w") for c, n in self.vectors]
                with self.pixels() as pixel:
                    x = b.bind(load(source.buffer, at + source.offset(*pixel) + k), "a")
                    for (c, n), w in zip(self.vectors, loaded):
                        product = splat(x, self.dtype, n) * w
                        self.set(self.get(pixel, c, n) + product, pixel, c, n)

            with b.loop(steps, "ko") as ko, b.loop(unroll, "ki", "unrolled") as ki:
                add(ko * unroll + ki)
            if rest:
                with b.loop(rest, "ki", "unrolled", start=channels - rest) as ki:
                    add(ki)


def pick(index: Expr, values: Sequence[int]) -> Expr:
    """``values[index]`` as arithmetic where they are equally spaced, else as a chain of selects."""
    steps = {b - a for a, b in itertools.pairwise(values)}
    numbers: list[Expr] = [tirx.IntImm(str(index.ty), v) for v in values]
    if len(values) == 1:
        return numbers[0]
    if len(steps) == 1:
        return index * steps.pop() + values[0]
    out = numbers[-1]
    for i in range(len(values) - 2, -1, -1):
        out = tirx.Select(index == i, numbers[i], out)
    return out
