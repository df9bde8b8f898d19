"""Gradients that Relax's operators lack, or have wrong.

Importing this module registers them. ``nn.conv2d`` gets the dialect's backward operators, which
are right for dilation too; the others are written in Relax's own operators, for static shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax

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


@_register("grad.no_grad")
def _no_grad(call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder) -> list[relax.Expr]:
    return [_stop(call.args[0])]  # Gradient adds nothing to an operand for this result
