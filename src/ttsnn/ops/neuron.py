"""``relax.snn.lif``: a spiking neuron over time, one operator.

``lif(x, v0[, decay][, v_threshold]) -> (spikes, v_last)`` with x [T, N, …], v0 [N, …], spikes
like x (0 or 1), v_last like v0. :mod:`ttsnn.lif_attrs` has the equations.

``lif_backward(x, v0[, decay][, v_threshold], dspikes, dv_last) -> (dx, dv0[, ddecay]
[, dv_threshold])`` is backpropagation through time with the surrogate in place of the spike's
derivative. It recomputes the membrane, so that the forward pass saves nothing but its inputs.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from ttsnn.errors import TTSNNError
from ttsnn.lif_attrs import LifAttrs
from ttsnn.ops.registry import make_call, register_op
from ttsnn.ops.types import as_int, differ, dims, fail, same_dtype, shape_text, tensor_types

__all__ = ["LIF", "LIF_BACKWARD", "lif", "lif_attrs_of", "lif_backward", "operand_names"]

LIF = "relax.snn.lif"
LIF_BACKWARD = "relax.snn.lif_backward"


def lif(
    x: relax.Expr,
    v0: relax.Expr,
    decay: relax.Expr | float | None = None,
    v_threshold: relax.Expr | float | None = None,
    **attrs: Any,
) -> tvm.ir.Call:
    """Call of ``relax.snn.lif``.

    Args:
        x: input [T, N, …], float32 or float64, T static.
        v0: membrane before the first step [N, …].
        decay: number, or tensor that broadcasts to v0 (the rate 1/tau in the Euler forms).
        v_threshold: number, or tensor that broadcasts to v0.
        attrs: the other attributes, as :class:`ttsnn.lif_attrs.LifAttrs`.

    Returns:
        A call of type (spikes [T, N, …], v_last [N, …]).

    Raises:
        TTSNNError: for a wrong attribute; PassError for operands that do not fit.
    """
    operands = [x, v0]
    for name, flag, value in (
        ("decay", "decay_operand", decay),
        ("v_threshold", "threshold_operand", v_threshold),
    ):
        if isinstance(value, relax.Expr):
            operands.append(value)
            attrs[flag] = True
        elif attrs.get(flag):
            raise TTSNNError(f"{LIF}: {flag} is set, so give {name} as a tensor operand")
        elif value is not None:
            attrs[name] = value
    return make_call(LIF, operands, LifAttrs.from_dict(attrs).to_dict())


def lif_backward(
    x: relax.Expr,
    v0: relax.Expr,
    *operands_and_grads: relax.Expr,
    **attrs: Any,
) -> tvm.ir.Call:
    """Call of ``relax.snn.lif_backward``.

    Args:
        x: input of the forward call [T, N, …].
        v0: its first membrane [N, …].
        operands_and_grads: its tensor operands (decay, v_threshold) where it had them, then the
            gradients of spikes [T, N, …] and of v_last [N, …].
        attrs: attributes of the forward call.

    Returns:
        A call whose type is the tuple of gradients, one for each operand of the forward call.
    """
    return make_call(
        LIF_BACKWARD, [x, v0, *operands_and_grads], LifAttrs.from_dict(attrs).to_dict()
    )


def lif_attrs_of(call: tvm.ir.Call) -> LifAttrs:
    """Attributes of a ``lif`` or ``lif_backward`` call; missing ones have their defaults."""
    return LifAttrs() if call.attrs is None else LifAttrs.from_dict(call.attrs)


def operand_names(attrs: LifAttrs) -> list[str]:
    """Names of the forward call's operands, in order."""
    names = ["x", "v0"]
    if attrs.decay_operand:
        names.append("decay")
    if attrs.threshold_operand:
        names.append("v_threshold")
    return names


def _check_forward(op: str, names: list[str], types: list[relax.TensorType]) -> None:
    x, v0 = types[:2]
    if x.ndim < 2:
        fail(op, f"x must be [T, N, …], got {shape_text(x)}; add the axes of time and batch")
    if v0.ndim != x.ndim - 1:
        fail(
            op,
            f"v0 {shape_text(v0)} must have the shape of one timestep of x {shape_text(x)}; "
            "drop the axis of time",
        )
    xs, vs = dims(x), dims(v0)
    if xs is not None:
        if as_int(xs[0]) is None:
            fail(op, f"the number of timesteps of x {shape_text(xs)} must be static")
        if as_int(xs[0]) == 0:
            fail(op, f"x {shape_text(xs)} has no timestep; give at least one")
    if xs is not None and vs is not None and any(differ(a, b) for a, b in zip(xs[1:], vs)):
        fail(
            op,
            f"v0 {shape_text(v0)} must have the shape of one timestep of x {shape_text(x)}, "
            f"{shape_text(xs[1:])}",
        )
    for name, ty in zip(names[2:], types[2:]):
        ps = dims(ty)
        bad = ty.ndim > v0.ndim or (
            ps is not None
            and vs is not None
            and any(differ(p, 1) and differ(p, v) for p, v in zip(ps[::-1], vs[::-1]))
        )
        if bad:
            fail(
                op,
                f"{name} {shape_text(ty)} does not broadcast to the membrane {shape_text(v0)}; "
                "give each of its axes the membrane's size or 1",
            )


def _infer_lif(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    attrs = lif_attrs_of(call)
    names = operand_names(attrs)
    types = tensor_types(call, LIF, names)
    same_dtype(LIF, names, types)
    _check_forward(LIF, names, types)
    return relax.TupleType([types[0], types[1]])


def _infer_lif_backward(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    forward = operand_names(lif_attrs_of(call))
    names = [*forward, "dspikes", "dv_last"]
    types = tensor_types(call, LIF_BACKWARD, names)
    same_dtype(LIF_BACKWARD, names, types)
    _check_forward(LIF_BACKWARD, forward, types[: len(forward)])
    for i, (name, like) in enumerate((("dspikes", "x"), ("dv_last", "v0"))):
        got, want = types[len(forward) + i], types[i]
        gs, ws = dims(got), dims(want)
        if got.ndim != want.ndim or (
            gs is not None and ws is not None and any(map(differ, gs, ws))
        ):
            fail(
                LIF_BACKWARD,
                f"{name} {shape_text(got)} must have the shape of {like} {shape_text(want)}",
            )
    return relax.TupleType(types[: len(forward)])


register_op(
    LIF,
    _infer_lif,
    ("x", "v0", "decay…", "v_threshold…"),
    "A spiking neuron over all timesteps.",
)
register_op(
    LIF_BACKWARD,
    _infer_lif_backward,
    ("x", "v0", "decay…", "v_threshold…", "dspikes", "dv_last"),
    "Surrogate gradient of relax.snn.lif, through time.",
)
