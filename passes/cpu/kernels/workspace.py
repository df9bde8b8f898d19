"""Workspaces of a layer's kernel: intermediate results with zeros around them."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.kernels.geometry import Region, chain_regions, clip, copies_input
from ttsnn.passes.cpu.kernels.register_tile import chunks
from ttsnn.passes.cpu.kernels.unit import Unit
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_channels
from ttsnn.passes.tir.body import as_vector, fold, i64, load, splat, vector

__all__ = ["Array", "copy_input", "workspaces"]


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
        channels = stages[0].in_channels
        if i == 0 and not copies_input(u.config, stages[0]):
            image = region.height * region.width * channels
            base = (u.n * region.height + region.start(u.h0)) * (region.width * channels)
            base = b.bind(base, "x_at")
            stride = u.batch * image
            out.append(Array(u.flat["x"], base, stride, region.width, 0, channels))
            continue
        if i > 0:
            channels = _work_channels(u.config, stages[i - 1])
        size = region.rows * region.padded_width * channels
        buffer = b.alloc(block * size, u.config.dtype, f"work{i}")
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
    whole = count // u.lanes
    with u.body.loop(whole, "i") as i:
        value = splat(0.0, u.config.dtype, u.lanes)
        if whole:
            u.body.store(buffer, value, vector(base + i * u.lanes, u.lanes))
    for c, n in chunks(count - whole * u.lanes, u.lanes):
        at = vector(base + whole * u.lanes + c, n)
        u.body.store(buffer, splat(0.0, u.config.dtype, n), at)


def copy_input(u: Unit, stage: Stage, to: Array, region: Region, t0: Expr) -> None:
    """Copy the input's rows of a strip, as numbers, between the zeros of a workspace."""
    b = u.body
    low, high = clip(region, u.h0)
    row_size = region.width * stage.in_channels

    def number(at: Expr, lanes: int) -> Expr:
        return load(u.flat["x"], vector(at, lanes)).astype(as_vector(u.config.dtype, lanes))

    with b.loop(u.tiles.time_block, "t") as t, b.loop(high - low, "r", start=low) as r:
        image = u.x_time(t0 + t) * u.batch + u.n
        source = (image * region.height + region.start(u.h0) + r) * row_size
        source, target = b.bind(source, "from"), b.bind(to.at(t, r, 0), "to")
        whole = row_size // u.lanes
        if whole:
            with b.loop(whole, "i") as i:
                at = i * u.lanes
                b.store(to.buffer, number(source + at, u.lanes), vector(target + at, u.lanes))
        for c, n in chunks(row_size - whole * u.lanes, u.lanes):
            at = whole * u.lanes + c
            b.store(to.buffer, number(source + at, n), vector(target + at, n))
