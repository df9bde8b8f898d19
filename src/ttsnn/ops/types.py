"""Helpers for type inference: shapes that may be symbolic, and messages about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import tvm
from tvm import relax
from tvm.sym import Analyzer

from ttsnn.errors import PassError

__all__ = [
    "FLOATS",
    "as_int",
    "differ",
    "dims",
    "fail",
    "known_dims",
    "same_dtype",
    "shape_text",
    "tensor_types",
]

FLOATS = ("float32", "float64")


def fail(op: str, message: str) -> NoReturn:
    """Raise the error of a type inference."""
    raise PassError(f"{op}: {message}")


def dims(ty: relax.TensorType) -> list[Any] | None:
    """Sizes of a tensor type (ints or symbolic expressions), or None where not known."""
    if ty.shape is None or not isinstance(ty.shape, relax.ShapeExpr):
        return None
    return [v if as_int(v) is None else as_int(v) for v in ty.shape.values]


def known_dims(op: str, name: str, ty: relax.TensorType) -> list[Any]:
    """Sizes of a tensor type that must have a shape.

    Raises:
        PassError: where its shape is not known.
    """
    shape = dims(ty)
    if shape is None:
        fail(op, f"needs the shape of {name} {shape_text(ty)}; give it one, with match_cast")
    return shape


def as_int(size: Any) -> int | None:
    """The value of a static size, None for a symbolic one."""
    if isinstance(size, int):
        return size
    return int(size.value) if isinstance(size, tvm.tirx.IntImm) else None


def differ(a: Any, b: Any) -> bool:
    """Whether two sizes are known to differ; False where a symbolic size leaves it open."""
    if as_int(a) is not None and as_int(b) is not None:
        return as_int(a) != as_int(b)
    return Analyzer().can_prove(a != b)


def shape_text(shape: Sequence[Any] | relax.TensorType | None) -> str:
    """``[2, n, 3]``, or ``[?]`` where the shape is not known."""
    if isinstance(shape, relax.TensorType):
        ndim = shape.ndim
        shape = dims(shape)
        if shape is None:
            return f"[{', '.join(['?'] * ndim)}]" if ndim >= 0 else "[…]"
    return "[?]" if shape is None else f"[{', '.join(str(s) for s in shape)}]"


def tensor_types(call: tvm.ir.Call, op: str, names: Sequence[str]) -> list[relax.TensorType]:
    """Types of the operands, each a tensor of known rank.

    Raises:
        PassError: for another number of operands, or an operand that is no tensor.
    """
    if len(call.args) != len(names):
        fail(
            op,
            f"takes {len(names)} operands ({', '.join(names)}), got {len(call.args)}; "
            "check the operands against the op's attributes",
        )
    out = []
    for name, arg in zip(names, call.args):
        ty = arg.ty
        if not isinstance(ty, relax.TensorType):
            fail(op, f"operand {name} must be a tensor, got {ty}; index a tuple first")
        if ty.ndim < 0:
            fail(op, f"operand {name} has no known rank; give it a shape, with match_cast")
        out.append(ty)
    return out


def same_dtype(op: str, names: Sequence[str], types: Sequence[relax.TensorType]) -> str:
    """The one floating-point dtype of all operands.

    Raises:
        PassError: where they differ or are not float32 or float64.
    """
    found = [str(t.dtype.dtype if hasattr(t.dtype, "dtype") else t.dtype) for t in types]
    if found[0] not in FLOATS:
        fail(
            op,
            f"{names[0]} {shape_text(types[0])} has dtype {found[0]}; "
            f"cast it to {' or '.join(FLOATS)} first",
        )
    for name, ty, dtype in zip(names, types, found):
        if dtype != found[0]:
            fail(
                op,
                f"{name} {shape_text(ty)} has dtype {dtype} but {names[0]} {shape_text(types[0])} "
                f"has {found[0]}; cast one of them",
            )
    return found[0]
