"""How a GPU passes over images: a thread for each element, sums over pixels in two launches.

Blocks sum parts of the pixels, then a block for some channels adds the parts up in order, so
results do not depend on which block ends first. Sums are in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cuda.gpu import Gpu
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_load import width_of
from ttsnn.passes.tir.body import load
from ttsnn.passes.training_kernels.arrays import (
    WIDE,
    Arrays,
    Element,
    Shape,
    StreamTotals,
    Terms,
)

__all__ = ["CudaArrays"]

CHANNELS, ROWS = 32, 8
"""Channels and rows of pixels of a block's threads, where sums are taken."""

LAST_ROWS = 32
"""Rows of a block that adds parts up."""

PIXELS = 4
"""Pixels that a thread reads at once, where it does nothing but sum."""

BLOCKS = 6
"""Blocks for each multiprocessor that take sums: enough loads on their way to fill the bus."""


class CudaArrays(Arrays):
    """:class:`Arrays` of a GPU.

    Args:
        shape, dtype, steps: as there.
        gpu: which.
    """

    most_unrolled = 16

    def __init__(self, shape: Shape, dtype: str, gpu: Gpu, steps: int = 1) -> None:
        super().__init__(CudaBody(prod(shape)), shape, dtype, steps)
        self.gpu = gpu

    def stream(self, element: Element, sums: _Sums | None = None) -> None:
        if sums is not None:
            sums.take(element, 1)
            return
        # with time a thread has loads enough, and needs its registers
        lanes = width_of(self.channels, self.gpu.vector(self.dtype)) if self.steps == 1 else 1
        groups = self.channels // lanes
        with self.b.each(self.pixels * groups) as item:
            element(item * lanes, item % groups * lanes, lanes)

    def sums(self, count: int) -> _Sums:
        return _Sums(self, count)

    def channel_sums(self, terms: Terms, count: int) -> _Sums:
        sums = _Sums(self, count)

        def element(at: Expr, c: Expr, lanes: int) -> None:
            for i, term in enumerate(terms(at, c, lanes)):
                sums.add(i, c, lanes, term)

        sums.take(element, PIXELS)
        return sums

    @contextmanager
    def each_channel(self, totals: _Sums) -> Iterator[Expr]:
        with totals.added() as c:
            yield c


class _Sums(StreamTotals):
    """``count`` sums for each channel: a launch that takes them, and one that adds them up."""

    def __init__(self, a: CudaArrays, count: int) -> None:
        self.a, self.b, self.count = a, a.b, count
        self.columns = ceil(a.channels / CHANNELS)
        # enough blocks for all multiprocessors, but none with less than a few pixels a thread
        wanted = ceil(BLOCKS * a.gpu.multiprocessors / self.columns)
        self.parts = max(1, min(wanted, a.pixels // (4 * ROWS)))
        self.partial = self.b.alloc(self.parts * count * a.channels, WIDE, "partial")

    def take(self, element: Element, pixels: int) -> None:
        """The first launch; a thread works on ``pixels`` pixels at once."""
        b, a = self.b, self.a
        with (
            b.bound(self.parts, "blockIdx.x") as part,
            b.bound(self.columns, "blockIdx.y") as column,
            b.bound(CHANNELS * ROWS, "threadIdx.x") as thread,
        ):
            row, c = self._start(column, thread)
            low = b.bind(self._share(part), "low")
            high = b.bind(self._share(part + 1), "high")
            whole = b.bind((high - low) // (ROWS * pixels), "whole")
            with b.when(c < a.channels):
                # nothing is asked in this loop: what belongs to the channel is read before it,
                # and the pixels of a step at once
                with b.loop(whole, "step") as step, b.loop(pixels, "i", "unrolled") as i:
                    pixel = low + (step * pixels + i) * ROWS + row
                    element(b.bind(pixel * a.channels + c, "at"), c, 1)
                with b.loop(pixels, "i", "unrolled") as i:
                    pixel = b.bind(low + (whole * pixels + i) * ROWS + row, "pixel")
                    with b.when(pixel < high):
                        element(b.bind(pixel * a.channels + c, "at"), c, 1)
            held = self._hold(thread, ROWS)
            with b.when(tirx.all(row < 1, c < a.channels)):
                for i in range(self.count):
                    total = self._folded(held, i, thread, ROWS)
                    b.store(self.partial, total, self._at(part, i, c))

    @contextmanager
    def added(self) -> Iterator[Expr]:
        """The second launch: all parts of a channel added up, then what the caller emits."""
        b, a = self.b, self.a
        # few blocks, which wait for memory: many threads, each with few parts
        rows = ROWS if self.parts <= ROWS else LAST_ROWS
        with (
            b.bound(self.columns, "blockIdx.x") as column,
            b.bound(CHANNELS * rows, "threadIdx.x") as thread,
        ):
            row, c = self._start(column, thread)
            with b.loop(ceil(self.parts / rows), "step") as step:
                part = b.bind(step * rows + row, "part")
                with b.when(tirx.all(part < self.parts, c < a.channels)):
                    for i in range(self.count):
                        self.add(i, c, 1, load(self.partial, self._at(part, i, c)))
            held = self._hold(thread, rows)
            with b.when(tirx.all(row < 1, c < a.channels)):
                for i in range(self.count):
                    b.store(self.own, self._folded(held, i, thread, rows), b.at(i))
                yield c

    def add(self, which: int, channel: Expr, lanes: int, value: Expr) -> None:
        self.b.store(self.own, load(self.own, self.b.at(which)) + value, self.b.at(which))

    def total(self, which: int, channel: Expr) -> Expr:
        return load(self.own, self.b.at(which))

    # -- parts of a launch -------------------------------------------------------------------

    def _start(self, column: Expr, thread: Expr) -> tuple[Expr, Expr]:
        """Row and channel of a thread, its sums zero."""
        b = self.b
        self.own = b.alloc(self.count, WIDE, "sums", "local")
        for i in range(self.count):
            b.store(self.own, tirx.const(0.0, WIDE), b.at(i))
        row = b.bind(thread // CHANNELS, "row")
        return row, b.bind(column * CHANNELS + thread % CHANNELS, "c")

    def _share(self, part: Expr) -> Expr:
        """First pixel of a part."""
        whole, rest = divmod(self.a.pixels, self.parts)
        return part * whole + (tirx.min(part, self.b.at(rest)) if rest else 0)

    def _at(self, part: Expr, which: int, c: Expr) -> Expr:
        return (part * self.count + which) * self.a.channels + c

    def _hold(self, thread: Expr, rows: int) -> Var:
        """Every thread's sums in shared memory, [count, rows, channels]."""
        b = self.b
        held = b.alloc(self.count * rows * CHANNELS, WIDE, "held", "shared")
        for i in range(self.count):
            b.store(held, load(self.own, b.at(i)), thread + i * rows * CHANNELS)
        return held

    def _folded(self, held: Var, which: int, thread: Expr, rows: int) -> Expr:
        """The rows' sums added up, for a thread of row 0."""
        total = load(held, thread + which * rows * CHANNELS)
        for r in range(1, rows):
            total = total + load(held, thread + (which * rows + r) * CHANNELS)
        return total
