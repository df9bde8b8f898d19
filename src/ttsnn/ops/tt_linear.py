"""``relax.tt.linear``: a linear layer whose weight is a tensor-train matrix.

``tt.linear(x, cores…)`` with x [..., n] and cores G_k [r_{k-1}, m_k, n_k, r_k], r_0 = r_d = 1,
n = Π n_k, m = Π m_k, computes ``y = x Wᵀ`` [..., m] with
``W[(m_1 … m_d), (n_1 … n_d)] = Π_k G_k[:, m_k, n_k, :]``, the first index the slowest
(Oseledets, SIAM J. Sci. Comput. 2011; Novikov et al., NeurIPS 2015). There is no bias.

``tt.linear_backward(x, cores…, dy) -> (dx, dcores…)`` is its gradient.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import tvm
from tvm import relax

from ttsnn.ops.registry import make_call, register_op
from ttsnn.ops.types import as_int, differ, dims, fail, same_dtype, shape_text, tensor_types

__all__ = ["TT_LINEAR", "TT_LINEAR_BACKWARD", "tt_linear", "tt_linear_backward"]

TT_LINEAR = "relax.tt.linear"
TT_LINEAR_BACKWARD = "relax.tt.linear_backward"


def tt_linear(x: relax.Expr, *cores: relax.Expr) -> tvm.ir.Call:
    """Call of ``relax.tt.linear``.

    Args:
        x: input [..., Π n_k].
        cores: at least one, [r_{k-1}, m_k, n_k, r_k].

    Returns:
        A call of type [..., Π m_k].

    Raises:
        PassError: for operands that do not fit.
    """
    return make_call(TT_LINEAR, [x, *cores], {})


def tt_linear_backward(x: relax.Expr, *cores_and_dy: relax.Expr) -> tvm.ir.Call:
    """Call of ``relax.tt.linear_backward``: (dx, dcores…) for dy [..., Π m_k], given last."""
    return make_call(TT_LINEAR_BACKWARD, [x, *cores_and_dy], {})


def _infer_output(
    call: tvm.ir.Call, op: str, names: list[str]
) -> tuple[list[relax.TensorType], relax.TensorType]:
    """Check x and the cores; return all operands' types and the output's."""
    cores = [n for n in names if n.startswith("core")]
    if not cores:
        fail(op, "takes x and at least one core [r, m, n, r']")
    types = tensor_types(call, op, names)
    dtype = same_dtype(op, names, types)
    x = types[0]
    if x.ndim < 1:
        fail(op, f"x must be [..., n], got {shape_text(x)}")
    shapes: list[list[int]] = []
    for name, ty in zip(cores, types[1:]):
        if ty.ndim != 4:
            fail(op, f"{name} must be [r, m, n, r'], got {shape_text(ty)}")
        shape = dims(ty)
        if shape is None or any(as_int(s) is None for s in shape):
            fail(op, f"{name} {shape_text(ty)} must have a static shape")
        shapes.append([int(s) for s in shape])
    for i, (a, b) in enumerate(pairwise(shapes)):
        if a[3] != b[0]:
            fail(
                op,
                f"ranks do not meet: core {i} {a} ends with {a[3]}, core {i + 1} {b} starts with "
                f"{b[0]}; check the cores' order",
            )
    if shapes[0][0] != 1 or shapes[-1][3] != 1:
        fail(
            op,
            f"the first rank of core 0 {shapes[0]} and the last rank of core {len(shapes) - 1} "
            f"{shapes[-1]} must be 1",
        )
    xs = dims(x)
    if xs is None:
        return types, relax.TensorType(dtype=dtype, ndim=x.ndim)
    n = prod(s[2] for s in shapes)
    if differ(xs[-1], n):
        factors = "·".join(str(s[2]) for s in shapes)
        fail(
            op,
            f"x {shape_text(x)} has {xs[-1]} features, the cores take {factors} = {n}; "
            "check the factors of the plan",
        )
    return types, relax.TensorType([*xs[:-1], prod(s[1] for s in shapes)], dtype)


def _infer_linear(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    names = ["x", *(f"core {i}" for i in range(len(call.args) - 1))]
    return _infer_output(call, TT_LINEAR, names)[1]


def _infer_linear_backward(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    names = ["x", *(f"core {i}" for i in range(len(call.args) - 2)), "dy"]
    types, want = _infer_output(call, TT_LINEAR_BACKWARD, names)
    got, ws = dims(types[-1]), dims(want)
    if types[-1].ndim != want.ndim or (got and ws and any(map(differ, got, ws))):
        fail(
            TT_LINEAR_BACKWARD,
            f"dy {shape_text(types[-1])} must have the shape of the output, {shape_text(want)}",
        )
    return relax.TupleType(types[:-1])


register_op(TT_LINEAR, _infer_linear, ("x", "cores…"), "Linear layer by tensor-train cores.")
register_op(
    TT_LINEAR_BACKWARD,
    _infer_linear_backward,
    ("x", "cores…", "dy"),
    "Gradient of relax.tt.linear.",
)
