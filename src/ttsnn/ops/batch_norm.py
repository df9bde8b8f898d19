"""``relax.snn.batch_norm_train``: batch normalisation on the statistics of the batch.

``batch_norm_train(x, gamma, beta, running_mean, running_var) -> (y, new_running_mean,
new_running_var, mean, rstd)`` with x and y [..., C, ...], C on ``axis``, all else [C]. With
n the number of values a channel has,

``mean = Σ x / n``, ``var = Σ (x - mean)² / n``, ``rstd = 1 / √(var + epsilon)``,
``y = (x - mean) · rstd · gamma + beta``,
``new_running_mean = momentum · mean + (1 - momentum) · running_mean``,
``new_running_var = momentum · var · r n / (r n - 1) + (1 - momentum) · running_var``

as ``torch.nn.BatchNorm2d`` has them in training mode: the running variance is the unbiased one.
r is the attribute ``repeats``: x stands for r copies of itself along the batch, as a static image
over T timesteps is. Mean, variance and gradients of the copies' sum are those of one.
``mean`` and ``rstd`` are what the backward needs. Sums are formed in float64.

``batch_norm_train_backward(x, gamma, mean, rstd, dy) -> (dx, dgamma, dbeta)`` with
``x̂ = (x - mean) · rstd``:
``dbeta = Σ dy``, ``dgamma = Σ dy · x̂``, ``dx = gamma · rstd · (dy - dbeta / n - x̂ · dgamma / n)``.
No gradient flows through the other four results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, te, tirx

from ttsnn.ops.registry import make_call, register_attr, register_op
from ttsnn.ops.types import (
    as_int,
    differ,
    fail,
    known_dims,
    same_dtype,
    shape_text,
    tensor_types,
)

__all__ = [
    "BATCH_NORM_TRAIN",
    "BATCH_NORM_TRAIN_BACKWARD",
    "batch_norm_train",
    "batch_norm_train_backward",
]

BATCH_NORM_TRAIN = "relax.snn.batch_norm_train"
BATCH_NORM_TRAIN_BACKWARD = "relax.snn.batch_norm_train_backward"
_OPERANDS = ("x", "gamma", "beta", "running_mean", "running_var")
_BACKWARD = ("x", "gamma", "mean", "rstd", "dy")


def batch_norm_train(
    x: relax.Expr,
    gamma: relax.Expr,
    beta: relax.Expr,
    running_mean: relax.Expr,
    running_var: relax.Expr,
    *,
    axis: int = 1,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    repeats: int = 1,
) -> tvm.ir.Call:
    """Call of ``relax.snn.batch_norm_train``.

    Args:
        x: input, float32 or float64, static shape, more than one value a channel.
        gamma, beta, running_mean, running_var: one value a channel, [C].
        axis: axis of the channels.
        epsilon: added to the variance.
        momentum: weight of the batch in the new running statistics (PyTorch's meaning).
        repeats: r, how many equal copies of x there are.

    Raises:
        PassError: for operands that do not fit.
    """
    attrs = {
        "axis": axis,
        "epsilon": float(epsilon),
        "momentum": float(momentum),
        "repeats": int(repeats),
    }
    return make_call(BATCH_NORM_TRAIN, [x, gamma, beta, running_mean, running_var], attrs)


def batch_norm_train_backward(
    x: relax.Expr,
    gamma: relax.Expr,
    mean: relax.Expr,
    rstd: relax.Expr,
    dy: relax.Expr,
    *,
    axis: int = 1,
) -> tvm.ir.Call:
    """Call of ``relax.snn.batch_norm_train_backward``; the results are (dx, dgamma, dbeta).

    Args:
        x, gamma: operands of the forward call.
        mean, rstd: its fourth and fifth results.
        dy: gradient of y.
        axis: axis of the channels.
    """
    return make_call(BATCH_NORM_TRAIN_BACKWARD, [x, gamma, mean, rstd, dy], {"axis": axis})


def _check(op: str, names: Sequence[str], call: tvm.ir.Call) -> list[relax.TensorType]:
    types = tensor_types(call, op, names)
    same_dtype(op, names, types)
    shape = known_dims(op, "x", types[0])
    axis = int(call.attrs["axis"])
    if not 0 <= axis < len(shape):
        fail(op, f"axis {axis} is no axis of x {shape_text(shape)}")
    if any(as_int(s) is None for s in shape):
        fail(op, f"x {shape_text(shape)} must have static sizes; train with a fixed batch size")
    for name, ty in zip(names[1:], types[1:]):
        want = shape if name == "dy" else [shape[axis]]
        got = known_dims(op, name, ty)
        if len(got) != len(want) or any(map(differ, got, want)):
            fail(op, f"{name} {shape_text(ty)} must have the shape {shape_text(want)}")
    # the backward reads no variance, and does not know how many copies x stands for
    if op == BATCH_NORM_TRAIN and _count(shape, axis) * int(call.attrs["repeats"]) < 2:
        fail(
            op,
            f"x {shape_text(shape)} has one value a channel, whose variance is not defined; use a "
            "larger batch, or freeze the layer's statistics",
        )
    return types


def _count(shape: Sequence[Any], axis: int) -> int:
    """Values a channel has."""
    n = 1
    for i, size in enumerate(shape):
        n *= 1 if i == axis else int(size)
    return n


def _infer(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    types = _check(BATCH_NORM_TRAIN, _OPERANDS, call)
    return relax.TupleType([types[0], types[3], types[4], types[1], types[1]])


def _infer_backward(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    types = _check(BATCH_NORM_TRAIN_BACKWARD, _BACKWARD, call)
    return relax.TupleType([types[0], types[1], types[1]])


# -- reference kernels ---------------------------------------------------------------------------

_WIDE = "float64"


def _channel_sum(name: str, shape: Sequence[int], axis: int, value: Any) -> te.Tensor:
    """Σ over all axes but ``axis`` of ``value(index)``, in float64."""
    rest = [te.reduce_axis((0, s), f"k{i}") for i, s in enumerate(shape) if i != axis]

    def element(c: Any) -> Any:
        index = [*rest[:axis], c, *rest[axis:]]
        return te.sum(value(index).astype(_WIDE), axis=rest)

    return te.compute((shape[axis],), element, name=name)


def _cast(total: te.Tensor, dtype: str) -> te.Tensor:
    return te.compute(total.shape, lambda c: total[c].astype(dtype), name=f"{total.op.name}_cast")


def _legalize(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    axis = int(call.attrs["axis"])
    epsilon, momentum = float(call.attrs["epsilon"]), float(call.attrs["momentum"])
    shape = [int(s) for s in call.args[0].ty.shape.values]
    n, repeats = _count(shape, axis), int(call.attrs["repeats"])
    dtype = str(call.args[0].ty.dtype)

    def statistics(x: te.Tensor, running_mean: te.Tensor, running_var: te.Tensor) -> list[Any]:
        total = _channel_sum("total", shape, axis, lambda i: x[tuple(i)])
        mean = te.compute(total.shape, lambda c: total[c] / float(n), name="mean")

        def square(i: list[Any]) -> Any:
            d = x[tuple(i)].astype(_WIDE) - mean[i[axis]]
            return d * d

        squares = _channel_sum("squares", shape, axis, square)

        def blend(new: Any, old: Any) -> Any:
            return (momentum * new + (1.0 - momentum) * old.astype(_WIDE)).astype(dtype)

        def unbiased(c: Any) -> Any:
            return squares[c] / ((repeats * n - 1) / repeats)

        new_mean = te.compute(
            mean.shape, lambda c: blend(mean[c], running_mean[c]), name="new_running_mean"
        )
        new_var = te.compute(
            mean.shape, lambda c: blend(unbiased(c), running_var[c]), name="new_running_var"
        )
        rstd = te.compute(
            mean.shape,
            lambda c: (1.0 / tirx.sqrt(squares[c] / float(n) + epsilon)).astype(dtype),
            name="batch_rstd",
        )
        return [new_mean, new_var, _cast(mean, dtype), rstd]

    def normalise(x: te.Tensor, g: te.Tensor, b: te.Tensor, m: te.Tensor, r: te.Tensor) -> Any:
        def element(*i: Any) -> Any:
            c = i[axis]
            return (x[i] - m[c]) * r[c] * g[c] + b[c]

        return te.compute(shape, element, name="batch_norm_train")

    x, gamma, beta, running_mean, running_var = call.args
    stats = bb.emit_te(
        statistics, x, running_mean, running_var, primfunc_name_hint="batch_norm_statistics"
    )
    parts = [bb.emit(relax.TupleGetItem(stats, i)) for i in range(4)]
    y = bb.emit_te(normalise, x, gamma, beta, *parts[2:], primfunc_name_hint="batch_norm_train")
    return relax.Tuple([y, *parts])


def _legalize_backward(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    axis = int(call.attrs["axis"])
    shape = [int(s) for s in call.args[0].ty.shape.values]
    n = float(_count(shape, axis))
    dtype = str(call.args[0].ty.dtype)

    def sums(x: te.Tensor, mean: te.Tensor, rstd: te.Tensor, dy: te.Tensor) -> list[Any]:
        def scaled(i: list[Any]) -> Any:
            c = i[axis]
            centred = x[tuple(i)].astype(_WIDE) - mean[c].astype(_WIDE)
            return dy[tuple(i)].astype(_WIDE) * centred * rstd[c].astype(_WIDE)

        dgamma = _channel_sum("dgamma", shape, axis, scaled)
        dbeta = _channel_sum("dbeta", shape, axis, lambda i: dy[tuple(i)])
        return [_cast(dgamma, dtype), _cast(dbeta, dtype)]

    def to_input(x, gamma, mean, rstd, dy, dgamma, dbeta) -> Any:
        def element(*i: Any) -> Any:
            c = i[axis]
            hat = (x[i] - mean[c]) * rstd[c]
            return gamma[c] * rstd[c] * (dy[i] - dbeta[c] / n - hat * dgamma[c] / n)

        return te.compute(shape, element, name="batch_norm_dx")

    x, gamma, mean, rstd, dy = call.args
    both = bb.emit_te(sums, x, mean, rstd, dy, primfunc_name_hint="batch_norm_sums")
    dgamma, dbeta = (bb.emit(relax.TupleGetItem(both, i)) for i in range(2))
    dx = bb.emit_te(
        to_input, x, gamma, mean, rstd, dy, dgamma, dbeta, primfunc_name_hint="batch_norm_dx"
    )
    return relax.Tuple([dx, dgamma, dbeta])


def _gradient(
    var: relax.Var, call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder
) -> list[relax.Expr]:
    x, gamma, _, running_mean, running_var = call.args
    mean, rstd = (bb.emit(relax.TupleGetItem(var, i)) for i in (3, 4))
    dy = bb.emit(relax.TupleGetItem(grad, 0))
    axis = int(call.attrs["axis"])
    out = bb.emit(batch_norm_train_backward(x, gamma, mean, rstd, dy, axis=axis))
    grads = [relax.TupleGetItem(out, i) for i in range(3)]
    return [*grads, relax.op.grad.no_grad(running_mean), relax.op.grad.no_grad(running_var)]


register_op(
    BATCH_NORM_TRAIN, _infer, _OPERANDS, "Batch normalisation on the statistics of the batch."
)
register_op(
    BATCH_NORM_TRAIN_BACKWARD,
    _infer_backward,
    _BACKWARD,
    "Gradient of relax.snn.batch_norm_train.",
)
register_attr(BATCH_NORM_TRAIN, "FLegalize", _legalize)
register_attr(BATCH_NORM_TRAIN_BACKWARD, "FLegalize", _legalize_backward)
register_attr(BATCH_NORM_TRAIN, "FPrimalGradient", _gradient)
