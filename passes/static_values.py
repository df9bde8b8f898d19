"""NumPy values of expressions that depend on parameters and constants only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import tvm
from tvm import relax

__all__ = ["StaticValues", "op_name", "static_shape"]


def op_name(expr: relax.Expr) -> str:
    """Name of the operator that a call applies (``"relax.add"``); empty for anything else."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name)
    return ""


def static_shape(expr: relax.Expr) -> tuple[int, ...] | None:
    """The sizes of a tensor where all are known at compile time, else None."""
    shape = getattr(expr.ty, "shape", None)
    if shape is None or not isinstance(shape, relax.ShapeExpr):
        return None
    if not all(isinstance(d, tvm.tirx.IntImm | int) for d in shape.values):
        return None
    return tuple(int(d) for d in shape.values)


def _axes(value: object) -> tuple[int, ...] | None:
    return None if value is None else tuple(int(a) for a in value)  # type: ignore[attr-defined]


def _reshape(call: relax.Call, x: np.ndarray) -> np.ndarray:
    shape = static_shape(call)
    if shape is None:
        raise ValueError("symbolic shape")
    return x.reshape(shape)


def _broadcast(call: relax.Call, x: np.ndarray) -> np.ndarray:
    shape = static_shape(call)
    if shape is None:
        raise ValueError("symbolic shape")
    return np.broadcast_to(x, shape)


_OPS: dict[str, Callable[..., np.ndarray]] = {
    "relax.reshape": _reshape,
    "relax.broadcast_to": _broadcast,
    "relax.squeeze": lambda c, x: np.squeeze(x, _axes(c.attrs.axis)),
    "relax.expand_dims": lambda c, x: np.expand_dims(x, tuple(int(a) for a in c.attrs.axis)),
    "relax.permute_dims": lambda c, x: np.transpose(x, _axes(c.attrs.axes)),
    "relax.astype": lambda c, x: x.astype(str(c.attrs.dtype)),
    "relax.add": lambda c, x, y: x + y,
    "relax.subtract": lambda c, x, y: x - y,
    "relax.multiply": lambda c, x, y: x * y,
    "relax.divide": lambda c, x, y: x / y,
    "relax.negative": lambda c, x: -x,
    "relax.sqrt": lambda c, x: np.sqrt(x),
    "relax.rsqrt": lambda c, x: 1 / np.sqrt(x),
    "relax.exp": lambda c, x: np.exp(x),
    "relax.sigmoid": lambda c, x: 1 / (1 + np.exp(-x)),
}


class StaticValues:
    """Evaluates expressions of one function whose leaves are all known at compile time.

    Args:
        bindings: variable → the expression bound to it.
        leaf: value of a parameter or constant, or None.
    """

    def __init__(
        self,
        bindings: Mapping[relax.Var, relax.Expr],
        leaf: Callable[[relax.Expr], np.ndarray | None],
    ) -> None:
        self._bindings = bindings
        self._leaf = leaf
        self._cache: dict[relax.Var, np.ndarray | None] = {}

    def __call__(self, expr: relax.Expr) -> np.ndarray | None:
        """The value, or None where it is known at run time only."""
        found = self._leaf(expr)
        if found is not None:
            return found
        if isinstance(expr, relax.Var):
            if expr not in self._cache:
                bound = self._bindings.get(expr)
                self._cache[expr] = None if bound is None else self(bound)
            return self._cache[expr]
        rule = _OPS.get(op_name(expr))
        if rule is None:
            return None
        args = [self(a) for a in expr.args if not isinstance(a, relax.ShapeExpr)]
        if any(a is None for a in args):
            return None
        try:
            value = rule(expr, *args)
        except ValueError:
            return None
        return np.asarray(value, dtype=str(expr.ty.dtype))

    def all(self, exprs: Iterable[relax.Expr]) -> list[np.ndarray] | None:
        """The values of several expressions, or None where one is known at run time only."""
        values = []
        for expr in exprs:
            value = self(expr)
            if value is None:
                return None
            values.append(value)
        return values
