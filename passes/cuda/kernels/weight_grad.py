"""Gradient of a convolution to its weight: a product over all pixels, in two launches.

``dw[k, ci, co] = Σ x[n, h·sh + dy_k, w·sw + dx_k, ci] · dy[n, h, w, co]``. A block has a tile of
input × output channels of one tap and a part of the pixels; the parts are then added up in order.
On tensor cores x is the transposed operand: the terms of a sum are pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.cpu.kernels.register_tile import pick
from ttsnn.passes.cuda.gpu import Gpu
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_load import width_of
from ttsnn.passes.cuda.kernels.conv_sums import MMA, Place
from ttsnn.passes.cuda.kernels.conv_tile import ConvTile
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.tir.body import as_vector, i64, load, splat, vector
from ttsnn.passes.tir.finished import finished

__all__ = ["weight_grad"]

TILE = 4
"""Input and output channels of a thread."""

DEPTH = 16
"""Pixels that are in shared memory at once."""


def weight_grad(
    stage: Stage,
    images: int,
    dtype: str,
    gpu: Gpu,
    x_dtype: str | None = None,
    precision: str = "fp32",
) -> PrimFunc:
    """The function (x [1, R, H, W, Cin], dy [1, R, Ho, Wo, Cout], dw [taps, Cin, Cout]).

    ``x_dtype`` is that of x where it differs: ``"uint8"`` for spikes; ``precision`` as in
    :class:`ConvSpec`.
    """
    x_shape = (1, images, *stage.in_size, stage.in_channels)
    dy_shape = (1, images, *stage.out_size, stage.out_channels)
    dw_shape = (len(stage.taps), stage.in_channels, stage.out_channels)
    b = CudaBody(max(prod(x_shape), prod(dy_shape)))
    params = [
        tirx.decl_buffer([i64(s) for s in shape], kind, name)
        for name, shape, kind in (
            ("x", x_shape, x_dtype or dtype),
            ("dy", dy_shape, dtype),
            ("dw", dw_shape, dtype),
        )
    ]
    x, dy, dw = (b.view(p, prod(p.shape), str(p.dtype), f"{p.name}_flat") for p in params)
    k = _Kernel(
        b, stage, images * prod(stage.out_size), gpu.vector(dtype), dtype, x, dy, dw, gpu, precision
    )
    k.run()
    return finished(b, params, "weight_grad", images * stage_macs(stage))


def _side(channels: int) -> int:
    """Channels of a block."""
    return next((s for s in (16, 32) if channels <= s), 64)


@dataclass
class _Kernel:
    b: CudaBody
    stage: Stage
    pixels: int
    lanes: int
    dtype: str
    x: Var
    dy: Var
    dw: Var
    gpu: Gpu
    precision: str

    def run(self) -> None:
        """Both launches."""
        b, s = self.b, self.stage
        self.rows, self.columns = _side(s.in_channels), _side(s.out_channels)
        self.threads = (self.rows // TILE) * (self.columns // TILE)
        self.mma = None
        if self.precision != "fp32":
            own = (2 if self.rows == 16 else 4, 4 if self.columns == 16 else 8)
            self.mma = ConvTile(1, self.rows, self.columns, DEPTH, *own)
            self.threads = self.mma.threads
        # rows apart, so that a warp's lanes read different banks
        self.pad = 0 if self.mma is None else 8
        down, across = ceil(s.in_channels / self.rows), ceil(s.out_channels / self.columns)
        tiles = len(s.taps) * down * across
        wanted = ceil(4 * self.gpu.multiprocessors / tiles)
        parts = max(1, min(wanted, self.pixels // (8 * DEPTH)))
        size = len(s.taps) * s.in_channels * s.out_channels
        out = b.alloc(parts * size, self.dtype, "partial") if parts > 1 else self.dw
        with (
            b.bound(tiles, "blockIdx.x") as tile,
            b.bound(parts, "blockIdx.y") as part,
            b.bound(self.threads, "threadIdx.x") as thread,
        ):
            self._block(
                tile // across // down,
                tile // across % down,
                tile % across,
                part,
                parts,
                thread,
                out,
                size,
            )
        if parts > 1:
            with b.each(size) as at:
                total = b.alloc(1, self.dtype, "total", "local")
                b.store(total, splat(0.0, self.dtype, 1), b.at(0))
                with b.loop(parts, "part") as p:
                    value = load(total, b.at(0)) + load(out, p * size + at)
                    b.store(total, value, b.at(0))
                b.store(self.dw, load(total, b.at(0)), at)

    def _block(
        self,
        tap: Expr,
        down: Expr,
        across: Expr,
        part: Expr,
        parts: int,
        thread: Expr,
        out: Var,
        size: int,
    ) -> None:
        b, s = self.b, self.stage
        strides = self.rows + self.pad, self.columns + self.pad
        x_shared = b.alloc(DEPTH * strides[0], self.dtype, "x_shared", "shared")
        g_shared = b.alloc(DEPTH * strides[1], self.dtype, "g_shared", "shared")
        tap = b.bind(tap, "tap")
        ci0, co0 = b.bind(down * self.rows, "ci0"), b.bind(across * self.columns, "co0")
        dy = b.bind(pick(tap, [t[0] for t in s.taps]), "dy")
        dx = b.bind(pick(tap, [t[1] for t in s.taps]), "dx")
        low = b.bind(part * (self.pixels // parts), "low")
        high = b.bind(
            tirx.Select(part == parts - 1, b.at(self.pixels), low + self.pixels // parts), "high"
        )
        place = self._place(thread, ci0, co0)
        with b.loop((high - low + (DEPTH - 1)) // DEPTH, "step") as step:
            first = b.bind(low + step * DEPTH, "first")
            self._fill(x_shared, self.rows, thread, first, high, s.in_channels, ci0, (dy, dx))
            self._fill(g_shared, self.columns, thread, first, high, s.out_channels, co0, None)
            place.multiply(x_shared, 1, g_shared, strides[1], strides[0])
        base = b.bind(part * size + tap * (s.in_channels * s.out_channels), "base")
        with (
            b.loop(place.tile.rows, "i", "unrolled") as i,
            b.loop(place.tile.columns, "j", "unrolled") as j,
        ):
            ci, co = b.bind(place.pixel(i), "ci"), b.bind(place.channel(j), "co")
            with b.when(tirx.all(ci < s.in_channels, co < s.out_channels)):
                value = load(place.sums, place.sum(b.at(0), i, j))
                b.store(out, value, base + ci * s.out_channels + co)

    def _place(self, thread: Expr, ci0: Expr, co0: Expr) -> Place:
        """The thread's part of the tile, input channels counting as pixels; its sums are zero."""
        b = self.b
        kind: type[Place] = _Outer if self.mma is None else MMA[self.precision]
        tile = self.mma or ConvTile(1, self.rows, self.columns, DEPTH, TILE, TILE)
        place = kind(b, tile, thread, ci0, co0, self.dtype, self.lanes, 1)
        with b.loop(tile.rows * tile.columns, "i", "unrolled") as i:
            b.store(place.sums, splat(0.0, self.dtype, 1), i)
        return place

    def _fill(
        self,
        shared: Var,
        width: int,
        thread: Expr,
        first: Expr,
        high: Expr,
        channels: int,
        c0: Expr,
        tap: tuple[Expr, Expr] | None,
    ) -> None:
        """Shared memory ← [DEPTH, width] of x under a tap, or of dy; zeros outside."""
        b, s = self.b, self.stage
        vec = width_of(channels, self.lanes)
        per_row = width // vec
        with b.loop(ceil(DEPTH * per_row / self.threads), "i", "unrolled") as i:
            item = b.bind(thread + i * self.threads, "item")
            k, c = b.bind(item // per_row, "k"), b.bind(item % per_row * vec, "c")
            pixel = b.bind(first + k, "pixel")
            inside = [pixel < high, c0 + c < channels]
            if tap is None:
                at = pixel
            else:
                rest = b.bind(pixel % prod(s.out_size), "rest")
                y = b.bind(rest // s.out_size[1] * s.strides[0] + tap[0], "y")
                x = b.bind(rest % s.out_size[1] * s.strides[1] + tap[1], "x")
                inside += [y >= 0, y < s.in_size[0], x >= 0, x < s.in_size[1]]
                image = pixel // prod(s.out_size)
                at = b.bind((image * s.in_size[0] + y) * s.in_size[1] + x, "at")
            source = self.dy if tap is None else self.x
            value = load(source, vector(at * channels + c0 + c, vec))
            zero = splat(tirx.const(0, str(source.dtype)), str(source.dtype), vec)
            value = tirx.if_then_else(tirx.all(*inside), value, zero)
            if str(source.dtype) != self.dtype:
                value = value.astype(as_vector(self.dtype, vec))
            to = vector(k * (width + self.pad) + c, vec)
            if DEPTH * per_row % self.threads:
                with b.when(k < DEPTH):
                    b.store(shared, value, to)
            else:
                b.store(shared, value, to)


class _Outer(Place):
    """Multiply-adds of a thread: neighbouring input channels × neighbouring output channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = self.tile.channels // TILE
        self.i0 = self.b.bind(self.thread // groups * TILE, "i0")
        self.j0 = self.b.bind(self.thread % groups * TILE, "j0")

    def pixel(self, row: Expr) -> Expr:
        return self.first + self.i0 + row

    def channel(self, column: Expr) -> Expr:
        return self.first_channel + self.j0 + column

    def sum(self, dt: Expr, row: Expr, column: Expr) -> Expr:
        return row * TILE + column

    def multiply(self, a: Var, a_stride: int, w: Var, w_stride: int, a_step: int = 1) -> None:
        """As there, of ``a`` with neighbouring rows: ``a_stride`` is 1."""
        b = self.b
        with b.loop(DEPTH, "k", "unrolled") as k:
            held = []
            for name, shared, step, at in (("a", a, a_step, self.i0), ("g", w, w_stride, self.j0)):
                held.append(b.alloc(TILE, self.dtype, name, "local"))
                with b.loop(TILE // self.lanes, "v", "unrolled") as v:
                    value = load(shared, vector(k * step + at + v * self.lanes, self.lanes))
                    b.store(held[-1], value, vector(v * self.lanes, self.lanes))
            with b.loop(TILE, "i", "unrolled") as i, b.loop(TILE, "j", "unrolled") as j:
                value = load(self.sums, i * TILE + j) + load(held[0], i) * load(held[1], j)
                b.store(self.sums, value, i * TILE + j)
