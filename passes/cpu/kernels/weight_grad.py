"""Weight gradient of a tap convolution: a matrix product that sums over the pixels of all images.

:mod:`ttsnn.passes.cpu.kernels.grad_tiles` has the sum over a strip of pixels. Units of parallel
work take either some of the images, with a partial sum each, or some of the input channels. The
partial sums are added in a fixed order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.grad_tiles import (
    STRIP_PIXELS,
    GradTiles,
    Strip,
    add_partial_sums,
)
from ttsnn.passes.cpu.kernels.workspace import Array
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.tir.body import Body, at_most, i64
from ttsnn.passes.tir.finished import finished

__all__ = ["weight_grad"]


def weight_grad(
    stage: Stage,
    images: int,
    dtype: str,
    isa: Isa,
    units: int,
    rows: int | None = None,
    x_dtype: str | None = None,
) -> PrimFunc:
    """The function (x [1, images, H, W, Cin], dy [1, images, Ho, Wo, Cout], dw [taps, rows, Cout]).

    Args:
        stage: the forward convolution.
        images: number of images, all timesteps together.
        dtype: ``"float32"`` or ``"float64"``.
        isa: vector width and registers.
        units: how many units of parallel work; a multiple of the threads is best.
        rows: only the first so many input channels; None for all.
        x_dtype: that of x, ``"uint8"`` for spikes stored as bytes; None for ``dtype``.
    """
    b, full = Body(), stage
    stage = _flattened(full)
    tiles = GradTiles(b, stage, rows or stage.in_channels, dtype, isa)
    shapes = (
        (1, images, *full.in_size, stage.in_channels),
        (1, images, *full.out_size, tiles.cout),
        (len(full.taps), tiles.cin, tiles.cout),
    )
    dtypes = (x_dtype or dtype, dtype, dtype)
    params = [
        tirx.decl_buffer([i64(s) for s in shape], d, name)
        for name, shape, d in zip(("x", "dy", "dw"), shapes, dtypes)
    ]
    x, dy, dw = (
        b.view(p, prod(shape), d, f"{p.name}_flat") for p, shape, d in zip(params, shapes, dtypes)
    )
    x_array, dy_array = (
        Array(buffer, i64(0), prod(size) * channels, size[1], 0, channels)
        for buffer, size, channels in (
            (x, stage.in_size, stage.in_channels),
            (dy, stage.out_size, tiles.cout),
        )
    )
    row_units, col_units = _split(tiles, images, units)
    out = dw if row_units == 1 else b.alloc(row_units * tiles.size, dtype, "partial")

    with b.loop(row_units * col_units, "unit", "parallel") as unit:
        row, col = unit // col_units, unit % col_units
        low = b.bind(row * images // row_units, "image_low")
        high = b.bind((row + 1) * images // row_units, "image_high")
        first = b.bind(col * tiles.tiles // col_units, "tile_low")
        end = b.bind((col + 1) * tiles.tiles // col_units, "tile_high")
        is_last = None if col_units == 1 else col == col_units - 1
        base = b.bind(row * tiles.size, "base")
        channels: Expr = (end - first) * tiles.rows
        if tiles.rest:
            rest = i64(tiles.rest)
            channels += rest if is_last is None else tirx.Select(is_last, rest, i64(0))
        tiles.zero(out, base, b.bind(first * tiles.rows, "first"), b.bind(channels, "channels"))
        blocks = (high - low + (tiles.image_block - 1)) // tiles.image_block
        with b.loop(blocks, "block") as block, b.loop(tiles.strips, "strip") as s:
            n0 = b.bind(low + block * tiles.image_block, "n0")
            n1 = b.bind(at_most(n0 + tiles.image_block, high), "n1")
            strip = Strip(n0, n1, b.bind(s * tiles.strip_rows, "h0"))
            tiles.add(out, base, x_array, dy_array, strip, (first, end), is_last)
    if row_units > 1:
        add_partial_sums(b, out, dw, row_units, tiles.size, tiles.lanes)
    macs = images * stage_macs(replace(full, in_channels=tiles.cin))
    return finished(b, params, "weight_grad", macs)


def _split(tiles: GradTiles, images: int, units: int) -> tuple[int, int]:
    """Units over images, and over input channels."""
    read = images * tiles.ho * tiles.wo * (tiles.cin + tiles.cout)
    if images > 1 and tiles.size * units <= read:
        return min(units, images), 1
    return 1, min(units, -(-tiles.cin // tiles.rows))


def _flattened(stage: Stage) -> Stage:
    """A convolution of single pixels has no rows: small images become one row."""
    pixels = stage.in_size[0] * stage.in_size[1]
    if stage.taps != ((0, 0),) or stage.strides != (1, 1) or pixels > STRIP_PIXELS[1]:
        return stage
    return replace(stage, in_size=(1, pixels), out_size=(1, pixels))
