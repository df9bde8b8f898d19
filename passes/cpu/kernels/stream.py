"""Kernels that pass once over arrays [T, pixels, channels], channels innermost.

Everything between two convolutions is of this kind: normalisation, neurons, sums of gradients
over pixels. :func:`stream` walks over the elements of all timesteps in parallel;
:func:`channel_sums` adds up over pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.kernels.register_tile import chunks
from ttsnn.passes.cpu.kernels.tir import Body, at_most, i64, load, splat, vector

__all__ = ["channel_sums", "for_channels", "stream"]

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


def stream(
    b: Body, pixels: int, channels: int, lanes: int, body: Callable[[Expr, Expr, int], None]
) -> None:
    """``body(offset, channel, lanes)`` for every vector of an array [pixels, channels]."""
    unit = max(1, min(pixels, STREAM_UNIT // channels))
    with b.loop(-(-pixels // unit), "unit", "parallel") as u:
        start = b.bind(u * unit, "start")
        with b.loop(b.bind(at_most(pixels - start, unit), "count"), "pixel") as p:
            base = b.bind((start + p) * channels, "base")
            for_channels(b, channels, lanes, lambda c, n: body(base + c, c, n))


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
