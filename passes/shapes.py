"""Questions about shapes with symbolic sizes."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax
from tvm.sym import Analyzer

__all__ = ["dims", "product", "same", "same_dims"]

Dim = object  # an int, IntImm or symbolic PrimExpr


def dims(expr: relax.Expr) -> list | None:
    """The sizes of a tensor as a list of ints and symbolic expressions; None if unknown."""
    shape = getattr(expr.ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr):
        return None
    return [int(d) if isinstance(d, tvm.tirx.IntImm) else d for d in shape.values]


def same(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal for every value of the symbols in them."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(Analyzer().can_prove_equal(a, b))


def same_dims(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are equal."""
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))


def product(sizes: Sequence[Dim]):
    """Product of sizes, 1 for none."""
    out = 1
    for size in sizes:
        out = out * size
    return out
