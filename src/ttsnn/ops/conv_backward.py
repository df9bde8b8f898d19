"""Gradients of a dense convolution as two operators, right for any stride, padding and dilation.

``dense.conv2d_backward_data(w, dy) -> dx`` [N, Cin, H, W] and
``dense.conv2d_backward_weight(x, dy) -> dw`` [Cout, Cin / groups, Kh, Kw] of
``y = nn.conv2d(x, w)``, NCHW and OIHW, dy [N, Cout, Ho, Wo]:

``dx[n, i, r, c] = Σ dy[n, o, h, w] · w[o, i, a, b]`` over all o, h, w, a, b with
``h · sh - top + a · dh = r`` and ``w · sw - left + b · dw = c``;
``dw[o, i, a, b] = Σ dy[n, o, h, w] · x[n, i, h · sh - top + a · dh, w · sw - left + b · dw]``.

They are separate because the first layer of a network needs the second alone. They replace
TVM's own formula, which is wrong for a dilation above 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax, te, tirx

from ttsnn.ops.registry import make_call, register_attr, register_op
from ttsnn.ops.types import fail, known_dims, same_dtype, shape_text, tensor_types

__all__ = [
    "CONV2D_BACKWARD_DATA",
    "CONV2D_BACKWARD_WEIGHT",
    "conv2d_backward_data",
    "conv2d_backward_weight",
]

CONV2D_BACKWARD_DATA = "relax.dense.conv2d_backward_data"
CONV2D_BACKWARD_WEIGHT = "relax.dense.conv2d_backward_weight"


def conv2d_backward_data(
    w: relax.Expr, dy: relax.Expr, size: Sequence[int], **geometry: Any
) -> tvm.ir.Call:
    """Gradient of a convolution to its input.

    Args:
        w: weight [Cout, Cin / groups, Kh, Kw].
        dy: gradient of the output [N, Cout, Ho, Wo].
        size: (H, W) of the input.
        geometry: ``strides`` [2], ``padding`` [4] (top, left, bottom, right), ``dilation`` [2]
            and ``groups`` of the convolution.
    """
    return make_call(CONV2D_BACKWARD_DATA, [w, dy], {"size": _ints(size), **geometry})


def conv2d_backward_weight(
    x: relax.Expr, dy: relax.Expr, kernel: Sequence[int], **geometry: Any
) -> tvm.ir.Call:
    """Gradient of a convolution to its weight; ``kernel`` is (Kh, Kw), the rest as above.

    Args:
        x: input [N, Cin, H, W].
        dy: gradient of the output [N, Cout, Ho, Wo].
        kernel: (Kh, Kw).
        geometry: as in :func:`conv2d_backward_data`.
    """
    return make_call(CONV2D_BACKWARD_WEIGHT, [x, dy], {"kernel": _ints(kernel), **geometry})


def _ints(values: Any) -> list[int]:
    return [int(v) for v in values]


def _four_axes(op: str, names: Sequence[str], call: tvm.ir.Call) -> list[list[Any]]:
    types = tensor_types(call, op, names)
    same_dtype(op, names, types)
    for name, ty in zip(names, types):
        if ty.ndim != 4:
            fail(op, f"{name} {shape_text(ty)} must have four axes")
    return [known_dims(op, name, ty) for name, ty in zip(names, types)]


def _infer_data(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    w, dy = _four_axes(CONV2D_BACKWARD_DATA, ("w", "dy"), call)
    channels = w[1] * int(call.attrs["groups"])
    shape = [dy[0], channels, *_ints(call.attrs["size"])]
    return relax.TensorType(shape, call.args[1].ty.dtype)


def _infer_weight(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    x, dy = _four_axes(CONV2D_BACKWARD_WEIGHT, ("x", "dy"), call)
    groups = int(call.attrs["groups"])
    shape = [dy[1], x[1] // groups, *_ints(call.attrs["kernel"])]
    return relax.TensorType(shape, call.args[1].ty.dtype)


def _legalize_data(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    (sh, sw), (top, left), (dh, dw), groups = _geometry(call)
    out = call.ty.shape.values

    def compute(w: te.Tensor, dy: te.Tensor) -> te.Tensor:
        per_in, per_out = w.shape[1], w.shape[0] // groups
        o = te.reduce_axis((0, per_out), "o")
        a = te.reduce_axis((0, w.shape[2]), "a")
        b = te.reduce_axis((0, w.shape[3]), "b")

        def element(n: Any, i: Any, r: Any, c: Any) -> Any:
            rows, cols = r + top - a * dh, c + left - b * dw
            h, v = tirx.floordiv(rows, sh), tirx.floordiv(cols, sw)
            hit = tirx.all(
                tirx.floormod(rows, sh) == 0,
                tirx.floormod(cols, sw) == 0,
                h >= 0,
                h < dy.shape[2],
                v >= 0,
                v < dy.shape[3],
            )
            oc = tirx.floordiv(i, per_in) * per_out + o
            read = tirx.if_then_else(hit, dy[n, oc, h, v], tirx.const(0.0, dy.dtype))
            return te.sum(read * w[oc, tirx.floormod(i, per_in), a, b], axis=[o, a, b])

        return te.compute(out, element, name="conv2d_backward_data")

    return bb.call_te(compute, *call.args, primfunc_name_hint="conv2d_backward_data")


def _legalize_weight(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    (sh, sw), (top, left), (dh, dw), groups = _geometry(call)
    out = call.ty.shape.values

    def compute(x: te.Tensor, dy: te.Tensor) -> te.Tensor:
        per_in, per_out = x.shape[1] // groups, dy.shape[1] // groups
        n = te.reduce_axis((0, dy.shape[0]), "n")
        h = te.reduce_axis((0, dy.shape[2]), "h")
        v = te.reduce_axis((0, dy.shape[3]), "v")

        def element(o: Any, i: Any, a: Any, b: Any) -> Any:
            r, c = h * sh - top + a * dh, v * sw - left + b * dw
            ic = tirx.floordiv(o, per_out) * per_in + i
            inside = tirx.all(r >= 0, r < x.shape[2], c >= 0, c < x.shape[3])
            read = tirx.if_then_else(inside, x[n, ic, r, c], tirx.const(0.0, x.dtype))
            return te.sum(read * dy[n, o, h, v], axis=[n, h, v])

        return te.compute(out, element, name="conv2d_backward_weight")

    return bb.call_te(compute, *call.args, primfunc_name_hint="conv2d_backward_weight")


def _geometry(call: tvm.ir.Call) -> tuple[list[int], list[int], list[int], int]:
    """Strides, (top, left) padding, dilation, groups."""
    attrs = call.attrs
    padding = _ints(attrs["padding"])[:2]
    return _ints(attrs["strides"]), padding, _ints(attrs["dilation"]), int(attrs["groups"])


register_op(CONV2D_BACKWARD_DATA, _infer_data, ("w", "dy"), "Gradient of nn.conv2d to its input.")
register_op(
    CONV2D_BACKWARD_WEIGHT, _infer_weight, ("x", "dy"), "Gradient of nn.conv2d to its weight."
)
register_attr(CONV2D_BACKWARD_DATA, "FLegalize", _legalize_data)
register_attr(CONV2D_BACKWARD_WEIGHT, "FLegalize", _legalize_weight)
