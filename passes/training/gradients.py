"""Gradients that Relax's operators lack, or have wrong.

Importing this module registers them. ``nn.conv2d`` gets the dialect's backward operators, which
are right for dilation too; the others are written in Relax's own operators, for static shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tvm
from tvm import relax
from tvm.relax.op._op_gradient import matmul_grad

from ttsnn.errors import PassError
from ttsnn.ops import conv2d_backward_data, conv2d_backward_weight
from ttsnn.ops.types import shape_text

__all__: list[str] = []

_Rule = Callable[[tvm.ir.Call, relax.Expr, relax.BlockBuilder], list[relax.Expr]]
_OURS = 11  # above TVM's own, which are at level 10


def _register(*names: str) -> Callable[[_Rule], _Rule]:
    """Register ``rule(call, gradient of the result, block builder) → the operands'``."""

    def decorate(rule: _Rule) -> _Rule:
        def gradient(
            var: relax.Var, call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder
        ) -> list[relax.Expr]:
            return rule(call, grad, bb)

        for name in names:
            tvm.ir.register_op_attr(f"relax.{name}", "FPrimalGradient", gradient, level=_OURS)
        return rule

    return decorate


def _shape(expr: relax.Expr) -> list[int]:
    return [int(s) for s in expr.ty.shape.values]


def _const(like: relax.Expr, value: float) -> relax.Expr:
    return relax.const(value, str(like.ty.dtype))


def _stop(expr: relax.Expr) -> relax.Expr:
    return relax.op.grad.no_grad(expr)


@_register("nn.conv2d")
def _conv2d(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    attrs = call.attrs
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    if layouts != ("NCHW", "OIHW", "NCHW"):
        raise PassError(
            f"nn.conv2d of {shape_text(call.args[0].ty)}: training needs the layouts NCHW and "
            f"OIHW, got {', '.join(layouts)}; differentiate before layouts are changed"
        )
    x, w = call.args
    geometry = {
        "strides": [int(v) for v in attrs.strides],
        "padding": [int(v) for v in attrs.padding],
        "dilation": [int(v) for v in attrs.dilation],
        "groups": int(attrs.groups),
    }
    return [
        conv2d_backward_data(w, grad, _shape(x)[2:], **geometry),
        conv2d_backward_weight(x, grad, _shape(w)[2:], **geometry),
    ]


@_register("matmul")
def _matmul(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    """Of [..., k] times a matrix: two products of matrices; TVM's own gradient for the rest.

    TVM would sum a product for each of the leading axes.
    """
    a, b = call.args
    if a.ty.ndim < 3 or b.ty.ndim != 2:
        return matmul_grad(None, call, grad, bb)

    def matrix(x: relax.Expr) -> relax.Expr:
        shape = _shape(x)
        return bb.emit(relax.op.reshape(x, [math.prod(shape[:-1]), shape[-1]]))

    flat = matrix(grad)
    da = relax.op.matmul(flat, bb.emit(relax.op.permute_dims(b, [1, 0])))
    db = relax.op.matmul(bb.emit(relax.op.permute_dims(matrix(a), [1, 0])), flat)
    return [relax.op.reshape(bb.emit(da), a.ty.shape), db]


@_register("grad.no_grad")
def _no_grad(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    return [_stop(call.args[0])]  # Gradient adds nothing to an operand for this result


# -- moving numbers ------------------------------------------------------------------------------


def _pad(bb: relax.BlockBuilder, x: relax.Expr, axis: int, before: int, after: int) -> relax.Expr:
    """``x`` with zeros around it along an axis."""
    if not before and not after:
        return x
    width = [0] * (2 * x.ty.ndim)
    width[2 * axis : 2 * axis + 2] = [before, after]
    return bb.emit(relax.op.nn.pad(x, width))


def _slice(bb: relax.BlockBuilder, x: relax.Expr, axis: int, begin: int, end: int) -> relax.Expr:
    if (begin, end) == (0, _shape(x)[axis]):
        return x
    return bb.emit(relax.op.strided_slice(x, [axis], [begin], [end]))


@_register("strided_slice")
def _strided_slice(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    """The gradient put back where its elements were, zeros between and around them."""
    x, *rest = call.args
    axes, begins, _, *strides = ([int(v) for v in arg.fields] for arg in rest)
    steps = strides[0] if strides else [1] * len(axes)
    for axis, begin, step in zip(axes, begins, steps):
        axis %= x.ty.ndim
        size, count = _shape(x)[axis], _shape(grad)[axis]
        if count == 0:
            return [relax.op.zeros(x.ty.shape, str(x.ty.dtype)), *map(_stop, rest)]
        begin += size if begin < 0 else 0
        first = min(max(begin, 0), size - 1)
        if step < 0:
            grad = bb.emit(relax.op.flip(grad, axis))
            first, step = first + (count - 1) * step, -step
        if step > 1:
            shape = _shape(grad)
            wide = _pad(bb, bb.emit(relax.op.expand_dims(grad, axis + 1)), axis + 1, 0, step - 1)
            shape[axis] = count * step
            grad = _slice(
                bb, bb.emit(relax.op.reshape(wide, shape)), axis, 0, (count - 1) * step + 1
            )
        grad = _pad(bb, grad, axis, first, size - first - _shape(grad)[axis])
    return [grad, *map(_stop, rest)]


@_register("nn.pad")
def _pad_gradient(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    x, attrs = call.args[0], call.attrs
    if str(attrs.pad_mode) != "constant":
        raise PassError(
            f"nn.pad of {shape_text(x.ty)}: mode {str(attrs.pad_mode)!r} has no gradient; pad "
            "with a constant"
        )
    before = [int(v) for v in attrs.pad_width][::2]
    for axis, (low, size) in enumerate(zip(before, _shape(x))):
        grad = _slice(bb, grad, axis, low, low + size)
    return [grad]


@_register("squeeze", "flatten")
def _reshaped(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    return [relax.op.reshape(grad, call.args[0].ty.shape)]


@_register("flip")
def _flip(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    return [relax.op.flip(grad, int(call.attrs.axis))]


@_register("stack")
def _stack(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    parts, axis = call.args[0].ty.fields, int(call.attrs.axis) % grad.ty.ndim
    pieces = [_slice(bb, grad, axis, i, i + 1) for i in range(len(parts))]
    return [relax.Tuple([bb.emit(relax.op.squeeze(p, [axis])) for p in pieces])]


@_register("repeat")
def _repeat(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    x, repeats, axis = call.args[0], int(call.attrs.repeats), call.attrs.axis
    shape = _shape(x)
    if axis is None:
        summed = bb.emit(relax.op.sum(bb.emit(relax.op.reshape(grad, [-1, repeats])), [1]))
        return [relax.op.reshape(summed, shape)]
    axis = int(axis) % len(shape)
    apart = bb.emit(relax.op.reshape(grad, [*shape[: axis + 1], repeats, *shape[axis + 1 :]]))
    return [relax.op.sum(apart, [axis + 1])]


@_register("tile")
def _tile(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    x = call.args[0]
    repeats, shape = [int(v) for v in call.attrs.repeats], _shape(x)
    rank = max(len(repeats), len(shape))
    repeats = [1] * (rank - len(repeats)) + repeats
    sizes = [1] * (rank - len(shape)) + shape
    apart = [s for pair in zip(repeats, sizes) for s in pair]
    summed = relax.op.sum(bb.emit(relax.op.reshape(grad, apart)), list(range(0, 2 * rank, 2)))
    return [relax.op.reshape(bb.emit(summed), shape)]


@_register("take")
def _take(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    """TVM's own kernel takes a line of indices only."""
    x, index = call.args
    size, rank = _shape(x), index.ty.ndim
    if call.attrs.axis is None:
        axis, size = 0, [math.prod(size)]
    else:
        axis = int(call.attrs.axis) % len(size)
    if rank == 0 and isinstance(index, tvm.ir.GenericConst):
        at = min(max(int(index.value.numpy()), 0), size[axis] - 1)
        grad = bb.emit(relax.op.expand_dims(grad, axis))
        grad = _pad(bb, grad, axis, at, size[axis] - 1 - at)
    else:
        line = bb.emit(relax.op.reshape(index, [-1]))
        count = math.prod(_shape(index))
        shape = [*size[:axis], count, *size[axis + 1 :]]
        grad = bb.emit(relax.op.reshape(grad, shape))
        like = bb.emit(relax.op.reshape(x, size))
        grad = bb.emit(relax.op.grad.take_backward(grad, like, line, axis))
    return [relax.op.reshape(grad, x.ty.shape), _stop(index)]


# -- functions of one number ---------------------------------------------------------------------

_Derivative = Callable[[relax.Expr], relax.Expr]


def _elementwise(name: str, derivative: _Derivative) -> None:
    """Register ``grad · derivative(x)``."""

    def rule(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
        return [relax.op.multiply(grad, derivative(call.args[0]))]

    _register(name)(rule)


def _square(x: relax.Expr) -> relax.Expr:
    return relax.op.multiply(x, x)


def _minus(value: float, x: relax.Expr, like: relax.Expr) -> relax.Expr:
    return relax.op.subtract(_const(like, value), x)


def _scaled(x: relax.Expr, value: float, like: relax.Expr) -> relax.Expr:
    return relax.op.multiply(x, _const(like, value))


def _one_over(x: relax.Expr, like: relax.Expr) -> relax.Expr:
    return relax.op.divide(_const(like, 1.0), x)


def _rsqrt(x: relax.Expr) -> relax.Expr:
    return _scaled(relax.op.divide(relax.op.rsqrt(x), x), -0.5, x)


def _bell(x: relax.Expr, rate: float) -> relax.Expr:
    """``exp(-rate · x²)``."""
    return relax.op.exp(_scaled(_square(x), -rate, x))


def _gelu(x: relax.Expr) -> relax.Expr:
    """Φ(x) + x φ(x)."""
    half = _scaled(relax.op.erf(_scaled(x, math.sqrt(0.5), x)), 0.5, x)
    density = _scaled(_bell(x, 0.5), 1.0 / math.sqrt(2.0 * math.pi), x)
    return relax.op.add(relax.op.add(half, _const(x, 0.5)), relax.op.multiply(x, density))


def _gelu_tanh(x: relax.Expr) -> relax.Expr:
    """Of ``x/2 · (1 + tanh u)``, ``u = √(2/π) (x + 0.044715 x³)``."""
    k, c = math.sqrt(2.0 / math.pi), 0.044715
    cube = relax.op.multiply(_square(x), x)
    t = relax.op.tanh(_scaled(relax.op.add(x, _scaled(cube, c, x)), k, x))
    slope = relax.op.add(_const(x, k), _scaled(_square(x), 3.0 * c * k, x))
    inner = relax.op.multiply(relax.op.multiply(x, _minus(1.0, _square(t), x)), slope)
    outer = relax.op.add(t, _const(x, 1.0))
    return _scaled(relax.op.add(outer, inner), 0.5, x)


_elementwise("square", lambda x: _scaled(x, 2.0, x))
_elementwise("rsqrt", _rsqrt)
_elementwise("erf", lambda x: _scaled(_bell(x, 1.0), 2.0 / math.sqrt(math.pi), x))
_elementwise("tan", lambda x: relax.op.add(_square(relax.op.tan(x)), _const(x, 1.0)))
_elementwise("sinh", relax.op.cosh)
_elementwise("cosh", relax.op.sinh)
_elementwise("atan", lambda x: _one_over(relax.op.add(_square(x), _const(x, 1.0)), x))
_elementwise("asin", lambda x: _one_over(relax.op.sqrt(_minus(1.0, _square(x), x)), x))
_elementwise(
    "acos", lambda x: _one_over(relax.op.negative(relax.op.sqrt(_minus(1.0, _square(x), x))), x)
)
_elementwise("nn.gelu", _gelu)
_elementwise("nn.gelu_tanh", _gelu_tanh)


@_register("clip")
def _clip(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    """As PyTorch's clamp: 1 on the bounds too."""
    x, low, high = call.args
    inside = relax.op.logical_and(
        relax.op.greater_equal(x, _const(x, float(low.value))),
        relax.op.less_equal(x, _const(x, float(high.value))),
    )
    return [relax.op.where(inside, grad, _const(x, 0.0)), _stop(low), _stop(high)]
