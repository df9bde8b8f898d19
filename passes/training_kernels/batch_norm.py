"""Batch norm on batch statistics, channels last: :mod:`ttsnn.ops.batch_norm` has the equations.

Statistics are one pass over x: sums of ``x - s`` and ``(x - s)²`` in float64, where the shift s
is the channel's first value, so that a mean far from zero cancels nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.tir.body import as_vector, load, splat, vector
from ttsnn.passes.training_kernels.arrays import WIDE, Arrays

__all__ = [
    "InputGrad",
    "Normaliser",
    "batch_norm_apply",
    "batch_norm_dx",
    "batch_norm_stats",
    "batch_norm_sums",
    "input_grad",
]


class Normaliser:
    """``y = (x - mean) · (rstd · gamma) + beta`` as an expression."""

    def __init__(self, a: Arrays) -> None:
        self.a = a
        self.gamma, self.beta = a.channel("gamma"), a.channel("beta")
        self.mean, self.rstd = a.channel("mean"), a.channel("rstd")

    def __call__(self, x: Expr, c: Expr, lanes: int) -> Expr:
        """The normalised value of ``lanes`` channels from ``c`` on."""
        gamma, beta, mean, rstd = (
            load(v, vector(c, lanes)) for v in (self.gamma, self.beta, self.mean, self.rstd)
        )
        return (x - mean) * rstd * gamma + beta


def _wide(value: Expr, lanes: int) -> Expr:
    return value.astype(as_vector(WIDE, lanes))


def batch_norm_stats(a: Arrays, epsilon: float, momentum: float, repeats: int = 1) -> PrimFunc:
    """The function (x, running_mean, running_var, new_mean, new_var, mean, rstd).

    Args:
        a: arrays of x's shape.
        epsilon, momentum, repeats: of the batch norm.
    """
    b, n = a.b, a.pixels
    x = a.image("x")
    old_mean, old_var = a.channel("running_mean"), a.channel("running_var")
    outs = [a.channel(name) for name in ("new_mean", "new_var", "mean", "rstd")]

    def terms(at: Expr, c: Expr, lanes: int) -> list[Expr]:
        shift = _wide(load(x, vector(c, lanes)), lanes)
        d = b.bind(_wide(load(x, vector(at, lanes)), lanes) - shift, "d")
        return [d, d * d]

    sums = a.channel_sums(terms, 2)
    with a.each_channel(sums) as c:
        moved = b.bind(sums.total(0, c) / splat(float(n), WIDE, 1), "moved")
        squares = sums.total(1, c) - moved * moved * splat(float(n), WIDE, 1)
        # not max(…, 0), which would turn the NaN of an overflow into 0
        zero = splat(0.0, WIDE, 1)
        squares = b.bind(tirx.Select(squares < zero, zero, squares), "squares")
        mean = b.bind(load(x, c).astype(WIDE) + moved, "mean")
        var = squares / splat(float(n), WIDE, 1)
        unbiased = squares / splat((repeats * n - 1) / repeats, WIDE, 1)
        new, keep = splat(momentum, WIDE, 1), splat(1.0 - momentum, WIDE, 1)
        values = [
            new * mean + keep * load(old_mean, c).astype(WIDE),
            new * unbiased + keep * load(old_var, c).astype(WIDE),
            mean,
            splat(1.0, WIDE, 1) / tirx.sqrt(var + splat(epsilon, WIDE, 1)),
        ]
        for out, value in zip(outs, values):
            b.store(out, value.astype(a.dtype), c)
    return a.finish("batch_norm_stats")


def batch_norm_apply(a: Arrays, residual: bool) -> PrimFunc:
    """The function (x, gamma, beta, mean, rstd[, residual], y)."""
    x, norm = a.image("x"), Normaliser(a)
    side = a.image("side") if residual else None
    y = a.image("y")

    def element(at: Expr, c: Expr, lanes: int) -> None:
        value = norm(a.read(x, at, lanes), c, lanes)
        if side is not None:
            value = value + load(side, vector(at, lanes))
        a.b.store(y, value, vector(at, lanes))

    a.stream(element)
    return a.finish("batch_norm_apply")


def batch_norm_sums(a: Arrays) -> PrimFunc:
    """The function (x, mean, rstd, dy, dgamma, dbeta)."""
    b = a.b
    x, mean, rstd, dy = a.image("x"), a.channel("mean"), a.channel("rstd"), a.image("dy")
    dgamma, dbeta = a.channel("dgamma"), a.channel("dbeta")

    def terms(at: Expr, c: Expr, lanes: int) -> list[Expr]:
        centre = _wide(load(mean, vector(c, lanes)), lanes)
        g = b.bind(_wide(load(dy, vector(at, lanes)), lanes), "g")
        return [g * (_wide(load(x, vector(at, lanes)), lanes) - centre), g]

    sums = a.channel_sums(terms, 2)
    with a.each_channel(sums) as c:
        to_gamma = sums.total(0, c) * load(rstd, c).astype(WIDE)
        b.store(dgamma, to_gamma.astype(a.dtype), c)
        b.store(dbeta, sums.total(1, c).astype(a.dtype), c)
    return a.finish("batch_norm_sums")


class InputGrad:
    """The gradient to a batch norm's input, as an expression over arguments that it declares.

    They are (x, gamma, mean, rstd, dy, dgamma, dbeta).
    """

    def __init__(self, a: Arrays) -> None:
        self.a = a
        self.x, self.channels = a.image("x"), [a.channel(s) for s in ("gamma", "mean", "rstd")]
        self.dy = a.image("dy")
        self.channels += [a.channel(name) for name in ("dgamma", "dbeta")]

    def __call__(self, at: Expr, c: Expr, lanes: int) -> Expr:
        """For ``lanes`` elements from ``at`` on, which belong to channels ``c …``."""
        x, dy = load(self.x, vector(at, lanes)), load(self.dy, vector(at, lanes))
        return input_grad(self.a, x, dy, self.channels, c, lanes)


def input_grad(a: Arrays, x: Expr, dy: Expr, channels: Sequence[Var], c: Expr, lanes: int) -> Expr:
    """The gradient to a batch norm's input.

    Args:
        a: arrays of all timesteps that the batch norm took its statistics of.
        x, dy: input, and gradient of the result, of ``lanes`` elements.
        channels: (gamma, mean, rstd, dgamma, dbeta).
        c: channel of the first element.
        lanes: how many.
    """
    per = splat(1.0 / (a.steps * a.pixels), a.dtype, lanes)
    g, m, r, to_g, to_b = (load(v, vector(c, lanes)) for v in channels)
    r = a.b.bind(r, "r")
    hat = (x - m) * r
    return g * r * (dy - to_b * per - hat * (to_g * per))


def batch_norm_dx(a: Arrays) -> PrimFunc:
    """The function (x, gamma, mean, rstd, dy, dgamma, dbeta, dx)."""
    grad, dx = InputGrad(a), a.image("dx")

    def element(at: Expr, c: Expr, lanes: int) -> None:
        a.b.store(dx, grad(at, c, lanes), vector(at, lanes))

    a.stream(element)
    return a.finish("batch_norm_dx")
