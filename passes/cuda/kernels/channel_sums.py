"""Sums over pixels for each channel, and the statistics of a batch norm made of them.

Two launches: blocks sum parts of the pixels, then a thread for each channel adds the parts up in
order, so that results do not depend on which block ends first. Sums are in float64;
:mod:`ttsnn.ops.batch_norm` has the equations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.cuda.gpu import Gpu
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.tir.body import i64, load
from ttsnn.passes.tir.finished import finished

__all__ = ["batch_norm_stats", "batch_norm_sums"]

WIDE = "float64"
CHANNELS, ROWS = 32, 8
"""Channels and rows of pixels of a block's threads."""


class _Sums:
    """A kernel over images [.., C]: its arguments, and ``count`` sums for each channel."""

    def __init__(self, shape: Sequence[int], dtype: str, gpu: Gpu) -> None:
        self.b = CudaBody(prod(shape))
        self.shape, self.dtype = tuple(shape), dtype
        self.channels, self.pixels = shape[-1], prod(shape[:-1])
        columns = ceil(self.channels / CHANNELS)
        # enough blocks for all multiprocessors, but none with less than a few pixels a thread
        wanted = ceil(2 * gpu.multiprocessors / columns)
        self.parts = max(1, min(wanted, self.pixels // (4 * ROWS)))
        self.columns = columns
        self.params: list[Var] = []

    def image(self, name: str) -> Var:
        """An argument of the images' shape, flat."""
        self.params.append(tirx.decl_buffer([i64(s) for s in self.shape], self.dtype, name))
        return self.b.view(self.params[-1], prod(self.shape), self.dtype, f"{name}_flat")

    def channel(self, name: str) -> Var:
        """An argument [C]."""
        self.params.append(tirx.decl_buffer((i64(self.channels),), self.dtype, name))
        return self.params[-1]

    def totals(self, terms: Callable[[Expr, Expr], Sequence[Expr]], count: int) -> _Totals:
        """Emit the first launch; ``terms(offset, channel)`` are what a pixel adds."""
        b = self.b
        partial = b.alloc(self.parts * count * self.channels, WIDE, "partial")
        with (
            b.bound(self.parts, "blockIdx.x") as part,
            b.bound(self.columns, "blockIdx.y") as column,
            b.bound(CHANNELS * ROWS, "threadIdx.x") as thread,
        ):
            held = b.alloc(count * ROWS * CHANNELS, WIDE, "held", "shared")
            sums = b.alloc(count, WIDE, "sums", "local")
            lane, row = b.bind(thread % CHANNELS, "lane"), b.bind(thread // CHANNELS, "row")
            c = b.bind(column * CHANNELS + lane, "c")
            for i in range(count):
                b.store(sums, tirx.const(0.0, WIDE), b.at(i))
            low = b.bind(part * self.pixels // self.parts, "low")
            high = b.bind((part + 1) * self.pixels // self.parts, "high")
            with b.loop((high - low + (ROWS - 1)) // ROWS, "step") as step:
                pixel = b.bind(low + step * ROWS + row, "pixel")
                with b.when(tirx.all(pixel < high, c < self.channels)):
                    for i, term in enumerate(terms(pixel * self.channels + c, c)):
                        b.store(sums, load(sums, b.at(i)) + term, b.at(i))
            for i in range(count):
                b.store(held, load(sums, b.at(i)), (row + i * ROWS) * CHANNELS + lane)
            with b.when(tirx.all(row < 1, c < self.channels)):
                for i in range(count):
                    total = load(held, i * ROWS * CHANNELS + lane)
                    for r in range(1, ROWS):
                        total = total + load(held, (i * ROWS + r) * CHANNELS + lane)
                    b.store(partial, total, (part * count + i) * self.channels + c)
        return _Totals(self, partial, count)


class _Totals:
    """The parts' sums, to be added up in the second launch."""

    def __init__(self, sums: _Sums, partial: Var, count: int) -> None:
        self.sums, self.partial, self.count = sums, partial, count

    def of(self, c: Expr) -> list[Expr]:
        """All sums of a channel."""
        s, b = self.sums, self.sums.b
        total = b.alloc(self.count, WIDE, "total", "local")
        for i in range(self.count):
            b.store(total, tirx.const(0.0, WIDE), b.at(i))
        with b.loop(s.parts, "part") as part:
            for i in range(self.count):
                at = (part * self.count + i) * s.channels + c
                b.store(total, load(total, b.at(i)) + load(self.partial, at), b.at(i))
        return [b.bind(load(total, b.at(i)), f"total{i}") for i in range(self.count)]


def batch_norm_stats(
    shape: Sequence[int],
    dtype: str,
    gpu: Gpu,
    epsilon: float,
    momentum: float,
    repeats: int = 1,
) -> PrimFunc:
    """The function (x, running_mean, running_var, new_mean, new_var, mean, rstd).

    Sums are of ``x - s`` and ``(x - s)²``, s being the channel's first value, so that a mean far
    from zero cancels nothing. x may stand for ``repeats`` copies of itself: the unbiased variance
    counts them all.
    """
    k = _Sums(shape, dtype, gpu)
    b, n = k.b, float(k.pixels)
    x = k.image("x")
    old_mean, old_var = k.channel("running_mean"), k.channel("running_var")
    outs = [k.channel(name) for name in ("new_mean", "new_var", "mean", "rstd")]

    def terms(at: Expr, c: Expr) -> list[Expr]:
        d = b.bind(load(x, at).astype(WIDE) - load(x, c).astype(WIDE), "d")
        return [d, d * d]

    totals = k.totals(terms, 2)
    with b.each(k.channels, 64) as c:
        total, squares = totals.of(c)
        moved = b.bind(total / n, "moved")
        squares = b.bind(tirx.max(squares - moved * moved * n, tirx.const(0.0, WIDE)), "squares")
        mean = b.bind(load(x, c).astype(WIDE) + moved, "m")
        values = [
            momentum * mean + (1.0 - momentum) * load(old_mean, c).astype(WIDE),
            momentum * (squares / ((repeats * n - 1.0) / repeats))
            + (1.0 - momentum) * load(old_var, c).astype(WIDE),
            mean,
            1.0 / tirx.sqrt(squares / n + epsilon),
        ]
        for out, value in zip(outs, values, strict=True):
            b.store(out, value.astype(dtype), c)
    return finished(b, k.params, "batch_norm_stats")


def batch_norm_sums(shape: Sequence[int], dtype: str, gpu: Gpu) -> PrimFunc:
    """The function (x, mean, rstd, dy, dgamma, dbeta)."""
    k = _Sums(shape, dtype, gpu)
    b = k.b
    x, mean, rstd, dy = k.image("x"), k.channel("mean"), k.channel("rstd"), k.image("dy")
    dgamma, dbeta = k.channel("dgamma"), k.channel("dbeta")

    def terms(at: Expr, c: Expr) -> list[Expr]:
        g = b.bind(load(dy, at).astype(WIDE), "g")
        return [g * (load(x, at).astype(WIDE) - load(mean, c).astype(WIDE)), g]

    totals = k.totals(terms, 2)
    with b.each(k.channels, 64) as c:
        to_gamma, to_beta = totals.of(c)
        b.store(dgamma, (to_gamma * load(rstd, c).astype(WIDE)).astype(dtype), c)
        b.store(dbeta, to_beta.astype(dtype), c)
    return finished(b, k.params, "batch_norm_sums")
