"""Gradients of the dialect: each operator's is one call of its backward operator.

``relax.transform.Gradient`` then works through the dialect, and the backward stays at its level,
to be scheduled as contractions by the same passes as the forward.
"""

from __future__ import annotations

import tvm
from tvm import relax

from ttsnn.ops.neuron import LIF, LIF_BACKWARD
from ttsnn.ops.registry import register_attr
from ttsnn.ops.tt_conv import TT_CONV2D, TT_CONV2D_BACKWARD
from ttsnn.ops.tt_linear import TT_LINEAR, TT_LINEAR_BACKWARD

__all__: list[str] = []


def _register(forward: str, backward: str, outputs: int = 0) -> None:
    """Gradient of ``forward`` = ``backward(operands…, gradients…)``.

    ``outputs`` is the number of the forward's results where they are a tuple.
    """

    def gradient(
        var: relax.Var, call: tvm.ir.Call, grad: relax.Expr, bb: relax.BlockBuilder
    ) -> list[relax.Expr]:
        grads = [relax.TupleGetItem(grad, i) for i in range(outputs)] or [grad]
        op = tvm.ir.Op.get(backward)
        out = bb.emit(relax.Call(op, [*call.args, *grads], call.attrs))
        return [relax.TupleGetItem(out, i) for i in range(len(call.args))]

    register_attr(forward, "FPrimalGradient", gradient)


_register(LIF, LIF_BACKWARD, outputs=2)
_register(TT_CONV2D, TT_CONV2D_BACKWARD)
_register(TT_LINEAR, TT_LINEAR_BACKWARD)
