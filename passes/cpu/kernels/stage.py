"""One stage of a layer's kernel: loops over register tiles, and where its sums go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm.ir import Expr

from ttsnn.passes.cpu.kernels.events import add_events, wide_panels
from ttsnn.passes.cpu.kernels.geometry import Region, clip
from ttsnn.passes.cpu.kernels.register_tile import Pixels, RegisterTile, chunks
from ttsnn.passes.cpu.kernels.tiles import StageTile, layer_panels
from ttsnn.passes.cpu.kernels.unit import Unit
from ttsnn.passes.cpu.kernels.workspace import Array
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.tir.body import (
    Body,
    as_vector,
    at_most,
    flat_index,
    fold,
    i64,
    load,
    vector,
)

__all__ = ["StageCall", "accumulate", "inner_stage", "panel_loops"]

EmitTile = Callable[[tuple[int, int], Expr, Expr, Expr], None]
"""Writes one register tile: (first panel of a group, index in the group, row, column)."""


@dataclass(frozen=True)
class StageCall:
    """One stage with everything that it reads, and the region of its output.

    With ``events`` its source holds spikes as bits, and its tile is one pixel.
    """

    stage: Stage
    tile: StageTile
    weight: str
    source: Array
    region: Region
    adds_bias: bool
    events: bool = False


def panel_loops(
    u: Unit, call: StageCall, low: Expr, high: Expr, emit: EmitTile, *, exact: bool = False
) -> None:
    """Loops over pixel tiles and panels, in the order that the tile asks for.

    Args:
        low, high: rows of the output.
        emit: writes a tile.
        exact: whether a last panel with filled-up channels is written by code of its own.
    """
    groups: list[list[tuple[int, int]]] = []
    found = layer_panels(u.config, call.stage, u.isa)
    if call.events:
        # half of the registers; of those half are the neuron's where there is one
        most = u.isa.registers // (4 if exact and u.config.lif is not None else 2)
        found = wide_panels(found, most * u.lanes)
    for panel in found:
        whole = not exact or sum(panel) <= call.stage.out_channels
        whole = whole and not call.events
        if whole and groups and groups[-1][0][1] == panel[1]:
            groups[-1].append(panel)
        else:
            groups.append([panel])
    pixels = _TileLoops(u.body, call.tile, low, high, call.region.width)
    if not call.tile.panels_outer:
        with pixels as (row, column):
            for group in groups:
                with u.body.loop(len(group), "panel") as i:
                    emit(group[0], i, row, column)
    else:
        for group in groups:
            with u.body.loop(len(group), "panel") as i, pixels as (row, column):
                emit(group[0], i, row, column)


def accumulate(
    u: Unit,
    call: StageCall,
    panel: tuple[int, int],
    index: Expr,
    t: Expr | int,
    row: Expr,
    column: Expr,
    vectors: list[tuple[int, int]],
) -> RegisterTile:
    """A register tile with the sums of one panel, from pixel (row, column) on."""
    stage, tile, source = call.stage, call.tile, call.source
    start, width = panel
    sh, sw = stage.strides
    top = min(tap[0] for tap in stage.taps)
    taps = [(dh - top) * source.row_stride + dw * source.channels for dh, dw in stage.taps]
    shape = (tile.time, tile.height, tile.width)
    acc = RegisterTile(u.body, u.config.dtype, shape, vectors)
    channel = start + index * width
    acc.start(u.flat["bias"] if call.adds_bias else None, channel)
    at = u.body.bind(source.at(t, row * sh, column * sw), "in_at")
    inputs = Pixels(source.buffer, at, lambda dt, dy, dx: source.offset(dt, dy * sh, dx * sw))
    if call.events:
        places = [_row_place(u, stage, start + c) for c, _ in vectors]
        weight = u.flat[call.weight]
        add_events(acc, inputs, taps, stage.in_channels, weight, places)
        return acc
    taps_channels = len(stage.taps) * stage.in_channels
    if u.config.packing is None:
        weight_base, stride = channel, stage.out_channels
    else:
        weight_base, stride = taps_channels * channel, width
    if str(source.buffer.dtype) != u.config.dtype:
        inputs = _as_numbers(acc, inputs, stage.in_channels, u.lanes)
    acc.accumulate(
        inputs,
        taps,
        stage.in_channels,
        u.flat[call.weight],
        u.body.bind(i64(weight_base), "weight_at"),
        stride,
        tile.k_unroll,
    )
    return acc


def _row_place(u: Unit, stage: Stage, channel: int) -> tuple[int, int]:
    """Where output channel ``channel`` of the first row of weights is, and the distance of rows."""
    if u.config.packing is None:
        return channel, stage.out_channels
    panels = layer_panels(u.config, stage, u.isa)
    start, width = next(p for p in reversed(panels) if p[0] <= channel)
    return len(stage.taps) * stage.in_channels * start + channel - start, width


def _as_numbers(tile: RegisterTile, x: Pixels, channels: int, lanes: int) -> Pixels:
    """A copy of a tile's inputs in the tile's dtype, on the stack: small enough for L1."""
    b, shape = tile.body, (*tile.shape, channels)
    copy = b.alloc(math.prod(shape), tile.dtype, "numbers", scope="local")

    def offset(dt: Expr, dy: Expr, dx: Expr) -> Expr:
        return flat_index((dt, dy, dx, 0), shape)

    whole, tail = channels // lanes, channels % lanes
    with tile.pixels() as pixel:
        source, target = x.base + x.offset(*pixel), offset(*pixel)

        def convert(c: Expr | int, n: int) -> None:
            value = load(x.buffer, vector(source + c, n)).astype(as_vector(tile.dtype, n))
            b.store(copy, value, vector(target + c, n))

        if whole:
            with b.loop(whole, "c") as c:
                convert(c * lanes, lanes)
        for c, n in chunks(tail, lanes):
            convert(whole * lanes + c, n)
    return Pixels(copy, i64(0), offset)


def inner_stage(u: Unit, call: StageCall, to: Array) -> None:
    """A stage whose sums go to the next workspace."""
    b, tile = u.body, call.tile
    low, high = clip(call.region, u.h0)

    def emit(panel: tuple[int, int], index: Expr, row: Expr, column: Expr) -> None:
        with b.loop(u.tiles.time_block // tile.time, "t") as t:
            vectors = chunks(panel[1], u.lanes)
            acc = accumulate(u, call, panel, index, t * tile.time, row, column, vectors)
            base = to.at(t * tile.time, row, column) + panel[0] + index * panel[1]
            base = b.bind(base, "out_at")
            with acc.pixels() as pixel:
                for c, n in vectors:
                    target = vector(base + to.offset(*pixel) + c, n)
                    b.store(to.buffer, acc.get(pixel, c, n), target)

    panel_loops(u, call, low, high, emit)


class _TileLoops:
    """Loops over the register tiles of a region; the last of a row is shifted to end inside."""

    def __init__(self, body: Body, tile: StageTile, low: Expr, high: Expr, width: int) -> None:
        self.body, self.tile, self.low, self.high, self.width = body, tile, low, high, width

    def __enter__(self) -> tuple[Expr, Expr]:
        b, tile = self.body, self.tile
        rows = fold(self.high - self.low)
        count = (rows + tile.height - 1) // tile.height
        self.loops = [
            b.loop(fold(count), "y"),
            b.loop(-(-self.width // tile.width), "x"),
        ]
        i, j = (loop.__enter__() for loop in self.loops)
        row, column = i * tile.height, j * tile.width
        if self.width % tile.width:
            column = at_most(column, self.width - tile.width)
        if not isinstance(rows, int) or rows % tile.height:
            row = at_most(row, rows - tile.height)
        return b.bind(fold(self.low + row), "row"), b.bind(column, "column")

    def __exit__(self, *exc: object) -> None:
        for loop in reversed(self.loops):
            loop.__exit__(*exc)
