"""Gradient of a convolution to its weight: a product over all pixels, in two launches.

``dw[k, ci, co] = Σ x[n, h·sh + dy_k, w·sw + dx_k, ci] · dy[n, h, w, co]``. A block has a tile of
input × output channels of one tap and a part of the pixels; the parts are then added up in order.
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
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.tir.body import as_vector, i64, load, splat, vector
from ttsnn.passes.tir.finished import finished

__all__ = ["weight_grad"]

TILE = 4
"""Input and output channels of a thread."""

DEPTH = 16
"""Pixels that are in shared memory at once."""


def weight_grad(
    stage: Stage, images: int, dtype: str, gpu: Gpu, x_dtype: str | None = None
) -> PrimFunc:
    """The function (x [1, R, H, W, Cin], dy [1, R, Ho, Wo, Cout], dw [taps, Cin, Cout]).

    ``x_dtype`` is that of x where it differs: ``"uint8"`` for spikes.
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
    k = _Kernel(b, stage, images * prod(stage.out_size), gpu.vector(dtype), dtype, x, dy, dw, gpu)
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

    def run(self) -> None:
        """Both launches."""
        b, s = self.b, self.stage
        self.rows, self.columns = _side(s.in_channels), _side(s.out_channels)
        self.threads = (self.rows // TILE) * (self.columns // TILE)
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
        x_shared = b.alloc(DEPTH * self.rows, self.dtype, "x_shared", "shared")
        g_shared = b.alloc(DEPTH * self.columns, self.dtype, "g_shared", "shared")
        sums = b.alloc(TILE * TILE, self.dtype, "sums", "local")
        tap = b.bind(tap, "tap")
        ci0, co0 = b.bind(down * self.rows, "ci0"), b.bind(across * self.columns, "co0")
        dy = b.bind(pick(tap, [t[0] for t in s.taps]), "dy")
        dx = b.bind(pick(tap, [t[1] for t in s.taps]), "dx")
        low = b.bind(part * (self.pixels // parts), "low")
        high = b.bind(
            tirx.Select(part == parts - 1, b.at(self.pixels), low + self.pixels // parts), "high"
        )
        groups = self.columns // TILE
        i0, j0 = b.bind(thread // groups * TILE, "i0"), b.bind(thread % groups * TILE, "j0")
        with b.loop(TILE * TILE, "i", "unrolled") as i:
            b.store(sums, splat(0.0, self.dtype, 1), i)
        with b.loop((high - low + (DEPTH - 1)) // DEPTH, "step") as step:
            first = b.bind(low + step * DEPTH, "first")
            self._fill(x_shared, self.rows, thread, first, high, s.in_channels, ci0, (dy, dx))
            self._fill(g_shared, self.columns, thread, first, high, s.out_channels, co0, None)
            with b.loop(DEPTH, "k", "unrolled") as k:
                a = b.alloc(TILE, self.dtype, "a", "local")
                g = b.alloc(TILE, self.dtype, "g", "local")
                for held, shared, width, at in (
                    (a, x_shared, self.rows, i0),
                    (g, g_shared, self.columns, j0),
                ):
                    with b.loop(TILE // self.lanes, "v", "unrolled") as v:
                        value = load(shared, vector(k * width + at + v * self.lanes, self.lanes))
                        b.store(held, value, vector(v * self.lanes, self.lanes))
                with b.loop(TILE, "i", "unrolled") as i, b.loop(TILE, "j", "unrolled") as j:
                    value = load(sums, i * TILE + j) + load(a, i) * load(g, j)
                    b.store(sums, value, i * TILE + j)
        base = b.bind(part * size + tap * (s.in_channels * s.out_channels), "base")
        with b.loop(TILE, "i", "unrolled") as i, b.loop(TILE, "j", "unrolled") as j:
            ci, co = b.bind(ci0 + i0 + i, "ci"), b.bind(co0 + j0 + j, "co")
            with b.when(tirx.all(ci < s.in_channels, co < s.out_channels)):
                b.store(out, load(sums, i * TILE + j), base + ci * s.out_channels + co)

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
            to = vector(k * width + c, vec)
            if DEPTH * per_row % self.threads:
                with b.when(k < DEPTH):
                    b.store(shared, value, to)
            else:
                b.store(shared, value, to)
