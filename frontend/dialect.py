"""Converters of ``torch.ops.ttsnn``: one node of the graph, one operator of the dialect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm import relax

from ttsnn import ops
from ttsnn.frontend.translate import Translator

__all__ = ["CONVERTERS"]


def _arguments(t: Translator) -> list[str]:
    """Names of the arguments of the operator that is being translated."""
    target = t.current.target
    assert isinstance(target, torch._ops.OpOverload)  # the converters here are for no others
    return [a.name for a in target._schema.arguments]


def _lif(
    t: Translator,
    x: relax.Expr,
    v0: relax.Expr | None,
    decay: relax.Expr | None,
    v_threshold: relax.Expr | None,
    *attrs: Any,
) -> list[relax.Expr]:
    """A missing v0 is zero, written as ``R.zeros`` so that passes see it."""
    names = _arguments(t)[4:]
    given = dict(zip(names, attrs, strict=True))
    dtype = str(x.ty.dtype)
    if v0 is None:
        shape = relax.ShapeExpr(list(x.ty.shape.values)[1:])
        v0 = t.bb.emit(relax.op.zeros(shape, dtype), name_hint="v0")
    for name, value in (("decay", decay), ("v_threshold", v_threshold)):
        if value is not None:
            given[name] = t.cast(value, dtype)
    t.timesteps.append(int(x.ty.shape.values[0]))
    out = t.emit(ops.lif(x, t.cast(v0, dtype), **given))
    return [t.emit(out[0]), t.emit(out[1])]


def _tt_conv2d(t: Translator, x: relax.Expr, *args: Any) -> relax.Expr:
    names = _arguments(t)[5:]
    return t.emit(ops.tt_conv2d(x, *args[:4], **dict(zip(names, args[4:], strict=True))))


def _tt_linear(t: Translator, x: relax.Expr, cores: list[relax.Expr]) -> relax.Expr:
    return t.emit(ops.tt_linear(x, *cores))


CONVERTERS: dict[str, Callable[..., Any]] = {
    "ttsnn::lif.default": _lif,
    "ttsnn::tt_conv2d.default": _tt_conv2d,
    "ttsnn::tt_linear.default": _tt_linear,
}
