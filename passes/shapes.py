"""Questions about shapes with symbolic sizes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import tvm
from tvm import relax
from tvm.sym import Analyzer

from ttsnn.errors import PassError

__all__ = ["dims", "known_dims", "nbytes", "product", "same", "same_dims"]

Dim = Any  # an int, IntImm or symbolic PrimExpr


def dims(expr: relax.Expr) -> list[Dim] | None:
    """The sizes of a tensor as a list of ints and symbolic expressions; None if unknown."""
    shape = getattr(expr.ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr):
        return None
    return [int(d) if isinstance(d, tvm.tirx.IntImm) else d for d in shape.values]


def known_dims(expr: relax.Expr) -> list[Dim]:
    """The sizes of a tensor that must have a shape.

    Raises:
        PassError: where its shape is not known.
    """
    sizes = dims(expr)
    if sizes is None:
        name = getattr(expr, "name", None) or getattr(getattr(expr, "op", None), "name", "a value")
        raise PassError(
            f"{name} needs a known shape, but is {expr.ty}; give it one, with match_cast"
        )
    return sizes


def same(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal for every value of the symbols in them."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(Analyzer().can_prove_equal(a, b))


def same_dims(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are equal."""
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))


def nbytes(ty: tvm.ir.Type) -> int:
    """Bytes of a tensor of static sizes, or of all tensors of a tuple.

    Raises:
        PassError: where a shape is not known.
    """
    if isinstance(ty, relax.TupleType):
        return sum(map(nbytes, ty.fields))
    bits = tvm.DataType(str(ty.dtype)).bits
    return prod(int(s) for s in known_dims(relax.Var("x", ty))) * bits // 8


def product(sizes: Sequence[Dim]) -> Dim:
    """Product of sizes, 1 for none."""
    out: Dim = 1
    for size in sizes:
        out = out * size
    return out
