"""Kernels that pass once over arrays [T, pixels, channels], channels innermost.

Everything between two convolutions is of this kind: normalisation, neurons, sums of gradients
over pixels. :func:`stream` walks over the elements of all timesteps in parallel;
:func:`channel_sums` adds up over pixels, :class:`StreamSums` does so beside a stream's work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.kernels.register_tile import chunks
from ttsnn.passes.tir.body import Body, at_most, i64, load, splat, vector
from ttsnn.passes.training_kernels.arrays import StreamTotals

__all__ = ["StreamSums", "channel_sums", "for_channels", "stream"]

STREAM_UNIT = 8192
"""Elements of a unit of parallel work."""

SUM_ROWS = 32
"""Pixels after which sums go from registers to memory."""

SUM_CHANNELS = 4
"""Vectors of float64 sums that registers hold, for each of two sums."""


def for_channels(b: Body, channels: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """``body(first channel, lanes)`` for the vectors that cover all channels."""
    whole = channels // lanes
    if whole:
        with b.loop(whole, "cv") as i:
            body(b.bind(i * lanes, "c"), lanes)
    for c, n in chunks(channels - whole * lanes, lanes):
        body(i64(whole * lanes + c), n)


def _unit_pixels(pixels: int, channels: int) -> int:
    return max(1, min(pixels, STREAM_UNIT // channels))


def stream(
    b: Body,
    pixels: int,
    channels: int,
    lanes: int,
    body: Callable[[Expr, Expr, int], None],
    sums: StreamSums | None = None,
) -> None:
    """``body(offset, channel, lanes)`` for every vector of an array [pixels, channels].

    ``sums`` takes what ``body`` adds to them; read them after that.
    """
    unit = _unit_pixels(pixels, channels)
    with b.loop(-(-pixels // unit), "unit", "parallel") as u:
        start = b.bind(u * unit, "start")
        if sums is not None:
            sums.begin(u)
        with b.loop(b.bind(at_most(pixels - start, unit), "count"), "pixel") as p:
            base = b.bind((start + p) * channels, "base")
            for_channels(b, channels, lanes, lambda c, n: body(base + c, c, n))
    if sums is not None:
        sums.finish()


class StreamSums(StreamTotals):
    """Sums over pixels in float64 beside the work of a :func:`stream`.

    Each unit of the stream has sums of its own, which are added up in order.

    Args:
        b: where the loops go.
        pixels, channels: of the stream's arrays.
        lanes: float64 lanes of a vector.
        count: number of sums a channel.
    """

    def __init__(self, b: Body, pixels: int, channels: int, lanes: int, count: int) -> None:
        self.b, self.lanes, self.size, self.channels = b, lanes, count * channels, channels
        self.units = -(-pixels // _unit_pixels(pixels, channels))
        self.buffer = b.alloc(self.units * self.size, "float64", "partial")
        self.home: Expr = i64(0)

    def begin(self, unit: Expr) -> None:
        """Start a unit's sums at zero."""
        b = self.b
        self.home = b.bind(unit * self.size, "home")

        def zero(at: Expr, n: int) -> None:
            b.store(self.buffer, splat(0.0, "float64", n), vector(self.home + at, n))

        for_channels(b, self.size, self.lanes, zero)

    def add(self, which: int, channel: Expr, lanes: int, value: Expr) -> None:
        """Add float64 values to the sums of channels ``channel …``."""
        at = vector(self.home + which * self.channels + channel, lanes)
        self.b.store(self.buffer, load(self.buffer, at) + value, at)

    def finish(self) -> None:
        """Add up the units, into the first one's place."""
        b = self.b

        def total(at: Expr, n: int) -> None:
            acc = b.alloc(n, "float64", "total", scope="local")
            b.store(acc, load(self.buffer, vector(at, n)), vector(0, n))
            with b.loop(self.units - 1, "u") as u:
                more = load(self.buffer, vector((u + 1) * self.size + at, n))
                b.store(acc, load(acc, vector(0, n)) + more, vector(0, n))
            b.store(self.buffer, load(acc, vector(0, n)), vector(at, n))

        if self.units > 1:
            for_channels(b, self.size, self.lanes, total)

    def total(self, which: int, channel: Expr) -> Expr:
        """A channel's sum over all pixels, after the stream."""
        return load(self.buffer, which * self.channels + channel)


def channel_sums(
    b: Body,
    pixels: int,
    channels: int,
    units: int,
    lanes: int,
    terms: Callable[[Expr, Expr, int], Sequence[Expr]],
    count: int,
) -> tuple[Var, int]:
    """Sums over pixels in float64: ``count`` sums a channel, each over a part of the pixels.

    Args:
        b: where the loops go.
        pixels, channels: of the arrays.
        units: parts that run in parallel.
        lanes: float64 lanes of a vector.
        terms: ``terms(offset, channel, lanes)``: the ``count`` float64 values of a vector.
        count: number of sums.

    Returns:
        The buffer [parts, count, channels] of partial sums and the number of parts; add them up
        in order.
    """
    units = min(units, pixels)
    partial = b.alloc(units * count * channels, "float64", "partial")
    wide = SUM_CHANNELS * lanes
    with b.loop(units, "unit", "parallel") as u:
        low = b.bind(u * pixels // units, "low")
        high = b.bind((u + 1) * pixels // units, "high")
        home = b.bind(u * (count * channels), "home")
        for i in range(count):

            def zero(c: Expr, n: int, i: int = i) -> None:
                b.store(partial, splat(0.0, "float64", n), vector(home + i * channels + c, n))

            for_channels(b, channels, lanes, zero)
        with b.loop((high - low + (SUM_ROWS - 1)) // SUM_ROWS, "block") as block:
            first = b.bind(low + block * SUM_ROWS, "first")
            rows = b.bind(at_most(high - first, SUM_ROWS), "rows")

            def panel(start: Expr, width: int) -> None:
                vectors = chunks(width, lanes)
                sums = [b.alloc(width, "float64", f"sum{i}", scope="local") for i in range(count)]
                for s in sums:
                    for c, n in vectors:
                        b.store(s, splat(0.0, "float64", n), vector(c, n))
                with b.loop(rows, "row") as r:
                    at = b.bind((first + r) * channels + start, "at")
                    for c, n in vectors:
                        for s, value in zip(sums, terms(at + c, start + c, n)):
                            b.store(s, load(s, vector(c, n)) + value, vector(c, n))
                for i, s in enumerate(sums):
                    for c, n in vectors:
                        where = vector(home + (i * channels) + start + c, n)
                        b.store(partial, load(partial, where) + load(s, vector(c, n)), where)

            for_channels(b, channels, wide, panel)
    return partial, units
