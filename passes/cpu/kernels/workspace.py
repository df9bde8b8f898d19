"""Workspaces of a layer's kernel: intermediate results with zeros around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.kernels.geometry import Region, chain_regions, clip, copies_input
from ttsnn.passes.cpu.kernels.masks import MASK, WORD, mask_words, spike_mask
from ttsnn.passes.cpu.kernels.register_tile import chunks
from ttsnn.passes.cpu.kernels.unit import Unit
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_channels
from ttsnn.passes.tir.body import as_vector, fold, i64, load, splat, vector

__all__ = ["Array", "copy_input", "copy_spikes", "workspaces"]


@dataclass(frozen=True)
class Array:
    """A flat buffer that holds rows of an image for several timesteps.

    ``base + ((t · time_stride) + (row · width + column) · channels + c)`` is an element; row and
    column are relative to the region, columns start at ``left`` zeros.
    """

    buffer: Var
    base: Expr
    time_stride: int | Expr
    width: int
    left: int
    channels: int

    def at(self, t: Expr | int, row: Expr | int, column: Expr | int) -> Expr:
        """Index of the first channel of a pixel."""
        pixel = (i64(row) * self.width + (column + self.left)) * self.channels
        return self.base + t * self.time_stride + pixel

    @property
    def row_stride(self) -> int:
        """Elements of a row."""
        return self.width * self.channels

    def offset(self, t: Expr, row: Expr, column: Expr) -> Expr:
        """Distance between two elements."""
        return t * self.time_stride + row * self.row_stride + column * self.channels


def workspaces(u: Unit, stages: tuple[Stage, ...]) -> list[Array]:
    """The chain's input (the operand, or a bordered copy) and intermediate results."""
    b, block = u.body, u.tiles.time_block
    regions = chain_regions(stages, u.tiles.strip_rows)
    out: list[Array] = []
    for i, region in enumerate(regions[:-1]):
        channels, dtype = stages[0].in_channels, u.config.dtype
        if i == 0 and u.tiles.events:
            channels, dtype = mask_words(channels), MASK
        elif i == 0 and not copies_input(u.config, stages[0]):
            image = region.height * region.width * channels
            base = (u.n * region.height + region.start(u.h0)) * (region.width * channels)
            base = b.bind(base, "x_at")
            stride = u.batch * image
            out.append(Array(u.flat["x"], base, stride, region.width, 0, channels))
            continue
        if i > 0:
            channels = _work_channels(u.config, stages[i - 1])
        size = region.rows * region.padded_width * channels
        buffer = b.alloc(block * size, dtype, f"work{i}")
        array = Array(buffer, i64(0), size, region.padded_width, region.left, channels)
        _zero_border(u, array, region)
        out.append(array)
    return out


def _work_channels(config: LayerConfig, stage: Stage) -> int:
    if config.packing is None:
        return stage.out_channels
    return packed_channels(stage.out_channels, config.packing[0])


def _zero_border(u: Unit, array: Array, region: Region) -> None:
    b = u.body
    low, high = clip(region, u.h0)
    sides = ((0, region.left), (region.left + region.width, region.right))
    with b.loop(u.tiles.time_block, "t") as t, b.loop(region.rows, "r") as r:
        row = array.at(t, r, -array.left)
        outside = tirx.Or(r < low, r >= high)
        if (fold(low), fold(high)) != (0, region.rows):
            with b.when(outside):
                _zero(u, array.buffer, row, region.padded_width * array.channels)
        for start, columns in sides:
            if columns:
                at = row + start * array.channels
                _zero(u, array.buffer, at, columns * array.channels)


def _zero(u: Unit, buffer: Var, base: Expr, count: int) -> None:
    dtype = str(buffer.dtype)
    lanes, zero = u.isa.lanes(dtype), tirx.const(0, dtype)
    whole = count // lanes
    if whole:
        with u.body.loop(whole, "i") as i:
            u.body.store(buffer, splat(zero, dtype, lanes), vector(base + i * lanes, lanes))
    for c, n in chunks(count - whole * lanes, lanes):
        u.body.store(buffer, splat(zero, dtype, n), vector(base + whole * lanes + c, n))


def copy_input(u: Unit, stage: Stage, to: Array, region: Region, t0: Expr) -> None:
    """Copy the input's rows of a strip, as numbers, between the zeros of a workspace."""
    b = u.body
    row_size = region.width * stage.in_channels

    def number(at: Expr, lanes: int) -> Expr:
        return load(u.flat["x"], vector(at, lanes)).astype(as_vector(u.config.dtype, lanes))

    with _rows(u, to, region, row_size, t0) as (source, target):
        whole = row_size // u.lanes
        if whole:
            with b.loop(whole, "i") as i:
                at = i * u.lanes
                b.store(to.buffer, number(source + at, u.lanes), vector(target + at, u.lanes))
        for c, n in chunks(row_size - whole * u.lanes, u.lanes):
            at = whole * u.lanes + c
            b.store(to.buffer, number(source + at, n), vector(target + at, n))


def copy_spikes(u: Unit, stage: Stage, to: Array, region: Region, t0: Expr) -> None:
    """The same as bits, :mod:`~ttsnn.passes.cpu.kernels.masks`."""
    b, channels, x = u.body, stage.in_channels, u.flat["x"]
    whole, tail = divmod(channels, WORD)
    with _rows(u, to, region, region.width * channels, t0) as (source, target):
        # whole words of neighbouring pixels are neighbours
        pixels, words = (region.width, whole) if tail else (1, region.width * whole)
        with b.loop(pixels, "column") as column:
            start = b.bind(source + column * channels, "from")
            goal = b.bind(target + column * to.channels, "to")
            if words:
                with b.loop(words, "word") as i:
                    b.store(to.buffer, spike_mask(x, start + i * WORD, WORD), goal + i)
            if tail:
                b.store(to.buffer, spike_mask(x, start + whole * WORD, tail), goal + whole)


@contextmanager
def _rows(
    u: Unit, to: Array, region: Region, row_size: int, t0: Expr
) -> Iterator[tuple[Expr, Expr]]:
    """Loops over the timesteps of a block and the input's rows of a strip; yields where a row
    of ``row_size`` elements begins in x, and in the workspace."""
    b = u.body
    low, high = clip(region, u.h0)
    with b.loop(u.tiles.time_block, "t") as t, b.loop(high - low, "r", start=low) as r:
        image = u.x_time(t0 + t) * u.batch + u.n
        source = (image * region.height + region.start(u.h0) + r) * row_size
        yield b.bind(source, "from"), b.bind(to.at(t, r, 0), "to")
