"""Gradient of a convolution to its weight: a product over all pixels, in two launches.

``dw[k, ci, co] = Σ x[n, h·sh + dy_k, w·sw + dx_k, ci] · dy[n, h, w, co]``, a matrix
[taps · Cin, Cout]. A block has a tile of it (:class:`GradTile`), of several taps at once where
there are few channels, and a part of the pixels; the parts are then added up in order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.cuda.gpu import Gpu
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_load import Rows, table, width_of
from ttsnn.passes.cuda.kernels.grad_load import Operand
from ttsnn.passes.cuda.kernels.grad_parts import sum_parts
from ttsnn.passes.cuda.kernels.grad_sums import Fma, Mma, Sums
from ttsnn.passes.cuda.kernels.grad_tile import GradTile, default_grad_tile
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.tir.body import i64, load, vector
from ttsnn.passes.tir.finished import finished

__all__ = ["weight_grad"]


def weight_grad(
    stage: Stage,
    images: int,
    dtype: str,
    gpu: Gpu,
    x_dtype: str | None = None,
    precision: str = "fp32",
    tile: GradTile | None = None,
) -> PrimFunc:
    """The function (x [1, R, H, W, Cin], dy [1, R, Ho, Wo, Cout], dw [taps, Cin, Cout]).

    Args:
        stage: the convolution.
        images: R.
        dtype: of dy and dw.
        gpu: for which GPU.
        x_dtype: that of x where it differs: ``"uint8"`` for spikes.
        precision: how x and dy are rounded, see ``mma.py``; sums are float32.
        tile: how, ``default_grad_tile`` where none is given.
    """
    x_dtype = x_dtype or dtype
    tile = tile or default_grad_tile(stage, images, dtype, x_dtype, precision, gpu)
    tile = replace(tile, parts=min(tile.parts, ceil(images * prod(stage.out_size) / tile.step)))
    x_shape = (1, images, *stage.in_size, stage.in_channels)
    dy_shape = (1, images, *stage.out_size, stage.out_channels)
    dw_shape = (len(stage.taps), stage.in_channels, stage.out_channels)
    size = prod(dw_shape)
    b = CudaBody(max(prod(x_shape), prod(dy_shape), tile.parts * size))
    params = [
        tirx.decl_buffer([i64(s) for s in shape], kind, name)
        for name, shape, kind in (
            ("x", x_shape, x_dtype),
            ("dy", dy_shape, dtype),
            ("dw", dw_shape, dtype),
        )
    ]
    x, dy, dw = (b.view(p, prod(p.shape), str(p.dtype), f"{p.name}_flat") for p in params)
    lanes = gpu.vector(dtype)
    out = b.alloc(tile.parts * size, dtype, "partial") if tile.parts > 1 else dw
    down = ceil(stage.in_channels / tile.rows)
    across = ceil(stage.out_channels / tile.columns)
    with (
        b.bound(len(stage.taps) // tile.taps * down * across, "blockIdx.x") as block,
        b.bound(tile.parts, "blockIdx.y") as part,
        b.bound(tile.threads, "threadIdx.x") as thread,
    ):
        place = block // across // down, block // across % down, block % across
        _Block(b, stage, images, tile, lanes, dtype, precision, thread, part, *place).run(
            x, dy, out
        )
    if tile.parts > 1:
        sum_parts(b, tile.parts, size, out, dw, dtype, lanes)
    return finished(b, params, "weight_grad", images * stage_macs(stage))


@dataclass
class _Block:
    """What one block does."""

    b: CudaBody
    stage: Stage
    images: int
    tile: GradTile
    lanes: int
    dtype: str
    precision: str
    thread: Expr
    part: Expr
    tap: Expr
    down: Expr
    across: Expr

    def run(self, x_flat: Var, dy_flat: Var, out: Var) -> None:
        """The sums of the block's pixels, stored as a part of ``out``."""
        b, s, tile = self.b, self.stage, self.tile
        self.tap = b.bind(self.tap * tile.taps, "first_tap")
        self.row = b.bind(self.down * tile.rows, "first_row")
        self.column = b.bind(self.across * tile.columns, "first_column")
        shared = b.alloc(tile.shared_elements(), self.dtype, "shared", "shared")
        x_stride, dy_stride = tile.strides
        x_rows = Rows(shared, b.at(0), x_stride)
        dy_rows = Rows(shared, b.at(tile.lines * x_stride), dy_stride)
        common = (self.thread, self.lanes, self.dtype, self.precision)
        result = Stage(((0, 0),), s.out_size, s.out_size, s.out_channels, s.out_channels)
        x = Operand(
            b, s, self._taps(), tile, tile.rows, x_flat, x_rows, self.images, self.row, *common
        )
        dy = Operand(
            b,
            result,
            [(0, 0)],
            tile,
            tile.columns,
            dy_flat,
            dy_rows,
            self.images,
            self.column,
            *common,
        )
        sums = self._sums()
        total = ceil(self.images * prod(s.out_size) / tile.step)
        begin = b.bind(self.part * total // tile.parts, "begin")
        end = b.bind((self.part + 1) * total // tile.parts, "end")
        first = b.bind(begin * tile.step, "first")
        x.locate(first)
        x.fetch(first)
        dy.fetch(first)
        with b.loop(end - begin, "step") as step:
            x.put()
            dy.put()
            with b.when(step + 1 < end - begin):
                x.advance()
                ahead = b.bind(first + (step + 1) * tile.step, "ahead")
                x.fetch(ahead)
                dy.fetch(ahead)
            sums.multiply(x_rows, dy_rows)
        sums.add_up(shared)
        self._store(sums, out)

    def _taps(self) -> list[tuple[int | Expr, int | Expr]]:
        """Those of the block: numbers where it has all."""
        b, taps = self.b, self.stage.taps
        if self.tile.taps == len(taps):
            return list(taps)
        picked = []
        for i in range(self.tile.taps):
            of = [[t[axis] for t in taps[i :: self.tile.taps]] for axis in (0, 1)]
            group = self.tap // self.tile.taps
            dy, dx = (table(group, values) for values in of)
            picked.append((b.bind(dy, "dy"), b.bind(dx, "dx")))
        return picked

    def _sums(self) -> Sums:
        args = (self.b, self.tile, self.thread, self.dtype, self.lanes)
        return Mma(*args, self.precision) if self.tile.pack else Fma(*args)

    def _store(self, sums: Sums, out: Var) -> None:
        """The first group's sums, those of them that the gradient has."""
        b, s, tile = self.b, self.stage, self.tile
        vec = width_of(s.out_channels, 2 if tile.pack else self.lanes)
        size = len(s.taps) * s.in_channels * s.out_channels
        base = b.bind(self.part * size + self.tap * (s.in_channels * s.out_channels), "base")
        with (
            b.when(sums.part < 1),
            b.loop(tile.own_rows, "r", "unrolled") as r,
            b.loop(tile.own_columns // vec, "c", "unrolled") as c,
        ):
            row, column = b.bind(sums.row(r), "row"), b.bind(sums.column(c * vec), "column")
            channel = b.bind(self.row + row % tile.rows, "ci")
            to = b.bind(self.column + column, "co")
            inside = [row < tile.height, channel < s.in_channels]
            inside += [column < tile.columns, to < s.out_channels]
            at = base + (row // tile.rows * s.in_channels + channel) * s.out_channels + to
            with b.when(tirx.all(*inside)):
                value = load(sums.held, vector(sums.at(r, c * vec), vec))
                b.store(out, value, vector(at, vec))
