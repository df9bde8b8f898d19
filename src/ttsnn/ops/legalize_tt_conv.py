"""Reference kernels of ``relax.tt.conv2d`` and its backward: one plain loop nest a core.

Each core is a convolution along one direction (or none), written with its bounds check, so that
any stride, padding and dilation is right by its definition. Time and batch are leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, te, tirx, topi

from ttsnn.ops.registry import register_attr
from ttsnn.ops.tt_conv import TT_CONV2D, TT_CONV2D_BACKWARD, TTConvAttrs, tt_conv_attrs_of
from ttsnn.ops.types import known_dims

__all__: list[str] = []


@dataclass(frozen=True)
class _Tap:
    """A core as a convolution over x [..., Cin, H, W].

    ``y[..., co, h, w] = Σ x[..., ci, h·strides[0] - offset[0] + a, w·strides[1] - offset[1] + b]
    · g[co, ci(, k)]``, where a (or b, by ``axis``) is ``k · dilation`` and the other is 0; x is
    zero outside its bounds. A core without kernel axis has ``axis`` None.
    """

    axis: int | None = None
    dilation: int = 1
    strides: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)

    def _shift(self, k: Any) -> list[Any]:
        at = [-o for o in self.offset]
        if self.axis is not None:
            at[self.axis] = k * self.dilation - self.offset[self.axis]
        return at

    def _taps(self, g: te.Tensor) -> tuple[list[Any], Any]:
        """Reduction axis over the kernel where there is one, and its index."""
        if self.axis is None:
            return [], 0
        k = te.reduce_axis((0, g.shape[2]), "k")
        return [k], k

    def _read(self, x: te.Tensor, lead: Any, ci: Any, h: Any, w: Any, k: Any) -> Any:
        """The input under tap k of output pixel (h, w), zero outside the image."""
        shift = self._shift(k)
        rows = h * self.strides[0] + shift[0]
        cols = w * self.strides[1] + shift[1]
        return _guarded(x, lead, ci, rows, cols)

    def forward(self, x: te.Tensor, g: te.Tensor, out: tuple[Any, Any]) -> te.Tensor:
        ci = te.reduce_axis((0, g.shape[1]), "ci")
        taps, k = self._taps(g)

        def element(*i: Any) -> Any:
            *lead, co, h, w = i
            core = g[(co, ci, *taps)]
            return te.sum(self._read(x, lead, ci, h, w, k) * core, axis=[ci, *taps])

        return te.compute((*x.shape[:-3], g.shape[0], *out), element, name="tt_core")

    def to_input(self, dy: te.Tensor, g: te.Tensor, size: tuple[Any, Any]) -> te.Tensor:
        """Gradient to x: every output pixel that read (h, w) under some tap."""
        co = te.reduce_axis((0, g.shape[0]), "co")
        taps, k = self._taps(g)

        def element(*i: Any) -> Any:
            *lead, ci, h, w = i
            shift = self._shift(k)
            rows, cols = h - shift[0], w - shift[1]
            sh, sw = self.strides
            value = _guarded(dy, lead, co, tirx.floordiv(rows, sh), tirx.floordiv(cols, sw))
            on_grid = tirx.all(tirx.floormod(rows, sh) == 0, tirx.floormod(cols, sw) == 0)
            read = tirx.if_then_else(on_grid, value, tirx.const(0.0, dy.dtype))
            return te.sum(read * g[(co, ci, *taps)], axis=[co, *taps])

        return te.compute((*dy.shape[:-3], g.shape[1], *size), element, name="tt_core_dx")

    def to_core(self, x: te.Tensor, dy: te.Tensor, shape: list[int]) -> te.Tensor:
        """Gradient to the core: sum over time, batch and all output pixels."""
        lead = [te.reduce_axis((0, s), f"n{i}") for i, s in enumerate(dy.shape[:-3])]
        h = te.reduce_axis((0, dy.shape[-2]), "h")
        w = te.reduce_axis((0, dy.shape[-1]), "w")

        def element(*i: Any) -> Any:
            co, ci, *k = i
            read = self._read(x, lead, ci, h, w, k[0] if k else 0)
            return te.sum(read * dy[(*lead, co, h, w)], axis=[*lead, h, w])

        return te.compute(shape, element, name="tt_core_dg")


def _guarded(x: te.Tensor, lead: Any, c: Any, row: Any, col: Any) -> Any:
    inside = tirx.all(row >= 0, row < x.shape[-2], col >= 0, col < x.shape[-1])
    return tirx.if_then_else(inside, x[(*lead, c, row, col)], tirx.const(0.0, x.dtype))


class _Chain:
    """The cores of one call as taps, emitting kernels through a block builder."""

    def __init__(self, bb: relax.BlockBuilder, call: tvm.ir.Call, full: bool) -> None:
        attrs = tt_conv_attrs_of(call)
        self.bb = bb
        self.cores = list(call.args[1:5])
        self.full = full
        self.parallel = attrs.mode != "stt"
        shapes = [known_dims(call.op.name, "core", g.ty) for g in self.cores]
        kernel = (shapes[1][2], shapes[2][2])
        top, left = attrs.padding[:2]
        (sh, sw), (dh, dw) = attrs.strides, attrs.dilation
        # what a tap sees that has no extent in a direction: the centre of the kernel there
        centre = (top - dh * (kernel[0] // 2), left - dw * (kernel[1] // 2))
        if self.parallel:
            self.vertical = _Tap(0, dh, (sh, sw), (top, centre[1]))
            self.horizontal = _Tap(1, dw, (sh, sw), (centre[0], left))
        else:
            self.vertical = _Tap(0, dh, (sh, 1), (top, 0))
            self.horizontal = _Tap(1, dw, (1, sw), (0, left))
        self.point = _Tap()
        self.last = self.point if full else _Tap(None, 1, (sh, sw), centre)
        self.size = tuple(known_dims(call.op.name, "x", call.args[0].ty)[-2:])
        self.out = attrs.out_size(self.size, kernel)
        self.middle = self.out if self.parallel else (self.out[0], self.size[1])

    def forward(self, x: relax.Expr) -> tuple[relax.Expr, list[relax.Expr]]:
        """The output, and the inputs of the cores that run (g1, g2, g3, g4; or g1, g4)."""
        g1, g2, g3, g4 = self.cores
        h1 = self._run(self.point, x, g1, self.size)
        if not self.full:
            return self._run(self.last, h1, g4, self.out), [x, h1]
        h2 = self._run(self.vertical, h1, g2, self.middle)
        if self.parallel:
            branch = self._run(self.horizontal, h1, g3, self.out)
            h3 = self.bb.emit_te(_mean, h2, branch)
            return self._run(self.point, h3, g4, self.out), [x, h1, h1, h3]
        h3 = self._run(self.horizontal, h2, g3, self.out)
        return self._run(self.point, h3, g4, self.out), [x, h1, h2, h3]

    def backward(self, x: relax.Expr, dy: relax.Expr) -> list[relax.Expr | None]:
        """Gradients to x and the four cores; None for a core that does not run."""
        g1, g2, g3, g4 = self.cores
        _, ins = self.forward(x)
        dg4 = self._core(self.last, ins[-1], dy, g4)
        if not self.full:
            dh1 = self._input(self.last, dy, g4, self.size)
            dg1 = self._core(self.point, x, dh1, g1)
            return [self._input(self.point, dh1, g1, self.size), dg1, None, None, dg4]
        dh3 = self._input(self.last, dy, g4, self.out)
        if self.parallel:
            dh3 = self.bb.emit_te(_half, dh3)
        dg3 = self._core(self.horizontal, ins[2], dh3, g3)
        dh2 = self._input(self.horizontal, dh3, g3, self.size if self.parallel else self.middle)
        if self.parallel:
            dg2 = self._core(self.vertical, ins[1], dh3, g2)
            dh1 = self.bb.emit_te(topi.add, dh2, self._input(self.vertical, dh3, g2, self.size))
        else:
            dg2 = self._core(self.vertical, ins[1], dh2, g2)
            dh1 = self._input(self.vertical, dh2, g2, self.size)
        dg1 = self._core(self.point, x, dh1, g1)
        return [self._input(self.point, dh1, g1, self.size), dg1, dg2, dg3, dg4]

    def _run(self, tap: _Tap, x: relax.Expr, g: relax.Expr, out: tuple) -> relax.Var:
        return self.bb.emit_te(lambda a, b: tap.forward(a, b, out), x, g, **_NAME)

    def _input(self, tap: _Tap, dy: relax.Expr, g: relax.Expr, size: tuple) -> relax.Var:
        return self.bb.emit_te(lambda a, b: tap.to_input(a, b, size), dy, g, **_NAME_DX)

    def _core(self, tap: _Tap, x: relax.Expr, dy: relax.Expr, g: relax.Expr) -> relax.Var:
        shape = known_dims(TT_CONV2D, "core", g.ty)
        return self.bb.emit_te(lambda a, b: tap.to_core(a, b, shape), x, dy, **_NAME_DG)


_NAME = {"primfunc_name_hint": "tt_core"}
_NAME_DX = {"primfunc_name_hint": "tt_core_dx"}
_NAME_DG = {"primfunc_name_hint": "tt_core_dg"}


def _mean(a: te.Tensor, b: te.Tensor) -> te.Tensor:
    return te.compute(a.shape, lambda *i: (a(*i) + b(*i)) * 0.5, name="branch_mean")


def _concat_time(a: te.Tensor, b: te.Tensor) -> te.Tensor:
    return topi.concatenate([a, b], axis=0)


def _half(a: te.Tensor) -> te.Tensor:
    return te.compute(a.shape, lambda *i: a(*i) * 0.5, name="half")


def _steps(bb: relax.BlockBuilder, x: relax.Expr, begin: int, end: int) -> relax.Expr:
    """Timesteps begin ≤ t < end."""

    def take(a: te.Tensor) -> te.Tensor:
        shape = (end - begin, *a.shape[1:])
        return te.compute(shape, lambda t, *i: a[(t + begin, *i)], name="steps")

    return bb.emit_te(take, x, primfunc_name_hint="steps")


def _parts(call: tvm.ir.Call) -> list[tuple[int, int, bool]]:
    """Ranges of timesteps and whether they run the full chain; one range where all do the same."""
    attrs: TTConvAttrs = tt_conv_attrs_of(call)
    shape = known_dims(call.op.name, "x", call.args[0].ty)
    if attrs.mode != "htt":
        return [(0, -1, True)]
    steps = int(shape[0])
    full = steps if attrs.timesteps < 0 else attrs.timesteps
    return [p for p in ((0, full, True), (full, steps, False)) if p[0] < p[1]]


def _legalize(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    x, parts, outs = call.args[0], _parts(call), []
    for begin, end, full in parts:
        part = x if len(parts) == 1 else _steps(bb, x, begin, end)
        outs.append(_Chain(bb, call, full).forward(part)[0])
    if len(outs) == 1:
        return outs[0]
    return bb.call_te(_concat_time, *outs)


def _legalize_backward(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    x, dy, parts, outs = call.args[0], call.args[5], _parts(call), []
    for begin, end, full in parts:
        whole = len(parts) == 1
        x_part = x if whole else _steps(bb, x, begin, end)
        dy_part = dy if whole else _steps(bb, dy, begin, end)
        outs.append(_Chain(bb, call, full).backward(x_part, dy_part))
    dx, *grads = outs[0]
    if len(outs) == 2:
        dx = bb.emit_te(_concat_time, dx, outs[1][0])
        grads = [_add(bb, a, b) for a, b in zip(grads, outs[1][1:])]
    cores = call.args[1:5]
    zeros = [relax.op.zeros(c.ty.shape, c.ty.dtype) for c in cores]
    return relax.Tuple([dx, *(bb.emit(z) if g is None else g for g, z in zip(grads, zeros))])


def _add(bb: relax.BlockBuilder, a: relax.Expr | None, b: relax.Expr | None) -> relax.Expr | None:
    if a is None or b is None:
        return b if a is None else a
    return bb.emit_te(topi.add, a, b)


register_attr(TT_CONV2D, "FLegalize", _legalize)
register_attr(TT_CONV2D_BACKWARD, "FLegalize", _legalize_backward)
