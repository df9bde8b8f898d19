"""Converters of elementwise ATen operators: arithmetic, comparisons, functions, creation.

dtypes follow PyTorch: arithmetic runs in the dtype of the result, comparisons in the common
dtype of the operands, constants take exactly that dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tvm import relax

from ttsnn.frontend.translate import (
    Translator,
    Unsupported,
    dtype_name,
    dtype_of,
    registrar,
)

__all__ = ["CONVERTERS"]

CONVERTERS: dict[str, Callable[..., Any]] = {}


_register = registrar(CONVERTERS)

# -- unary --------------------------------------------------------------------------------------


def _unary(op: Callable[[relax.Expr], relax.Expr]) -> Callable[..., Any]:
    def convert(t: Translator, x: relax.Expr, *_: Any) -> relax.Expr:
        return t.emit(op(t.cast(x, t.out_dtype)))

    return convert


for _name, _op in {
    "abs": relax.op.abs,
    "neg": relax.op.negative,
    "exp": relax.op.exp,
    "log": relax.op.log,
    "sqrt": relax.op.sqrt,
    "rsqrt": relax.op.rsqrt,
    "sin": relax.op.sin,
    "cos": relax.op.cos,
    "tan": relax.op.tan,
    "asin": relax.op.asin,
    "acos": relax.op.acos,
    "atan": relax.op.atan,
    "sinh": relax.op.sinh,
    "cosh": relax.op.cosh,
    "tanh": relax.op.tanh,
    "sigmoid": relax.op.sigmoid,
    "floor": relax.op.floor,
    "ceil": relax.op.ceil,
    "trunc": relax.op.trunc,
    "sign": relax.op.sign,
    "square": relax.op.square,
    "relu": relax.op.nn.relu,
    "silu": relax.op.nn.silu,
    "bitwise_not": relax.op.bitwise_not,
}.items():
    CONVERTERS[f"{_name}.default"] = _unary(_op)


@_register("erf.default")
def _erf(t: Translator, x: relax.Expr) -> relax.Expr:
    if t.out_dtype == "float64":
        raise Unsupported("erf is accurate to float32 only; import the model as float32")
    return t.emit(relax.op.erf(t.cast(x, t.out_dtype)))


@_register("gelu.default")
def _gelu(t: Translator, x: relax.Expr, approximate: str) -> relax.Expr:
    if approximate == "tanh":
        return t.emit(relax.op.nn.gelu_tanh(x))
    if t.out_dtype == "float64":
        raise Unsupported(
            "gelu with erf is accurate to float32 only; use approximate='tanh' or float32"
        )
    return t.emit(relax.op.nn.gelu(x))


@_register("reciprocal.default")
def _reciprocal(t: Translator, x: relax.Expr) -> relax.Expr:
    dtype = t.out_dtype
    return t.emit(relax.op.divide(t.const(1, dtype), t.cast(x, dtype)))


@_register("expm1.default")
def _expm1(t: Translator, x: relax.Expr) -> relax.Expr:
    dtype = t.out_dtype
    return t.emit(relax.op.subtract(relax.op.exp(t.cast(x, dtype)), t.const(1, dtype)))


@_register("log1p.default")
def _log1p(t: Translator, x: relax.Expr) -> relax.Expr:
    dtype = t.out_dtype
    return t.emit(relax.op.log(relax.op.add(t.cast(x, dtype), t.const(1, dtype))))


def _log_base(base: float) -> Callable[..., Any]:
    def convert(t: Translator, x: relax.Expr) -> relax.Expr:
        dtype = t.out_dtype
        return t.emit(
            relax.op.divide(relax.op.log(t.cast(x, dtype)), t.const(math.log(base), dtype))
        )

    return convert


CONVERTERS["log2.default"] = _log_base(2.0)
CONVERTERS["log10.default"] = _log_base(10.0)


@_register("logical_not.default")
def _logical_not(t: Translator, x: relax.Expr) -> relax.Expr:
    return t.emit(relax.op.logical_not(_as_bool(t, x)))


@_register("isnan.default")
def _isnan(t: Translator, x: relax.Expr) -> relax.Expr:
    return t.emit(relax.op.isnan(x))


@_register("leaky_relu.default")
def _leaky_relu(t: Translator, x: relax.Expr, slope: float) -> relax.Expr:
    scaled = relax.op.multiply(x, t.const(slope, t.out_dtype))
    return t.emit(relax.op.where(relax.op.greater(x, t.const(0, t.out_dtype)), x, scaled))


@_register("elu.default")
def _elu(t: Translator, x: relax.Expr, alpha: float, scale: float, input_scale: float) -> Any:
    dtype = t.out_dtype
    inner = relax.op.exp(relax.op.multiply(x, t.const(input_scale, dtype)))
    low = relax.op.multiply(
        relax.op.subtract(inner, t.const(1, dtype)), t.const(alpha * scale, dtype)
    )
    high = relax.op.multiply(x, t.const(scale, dtype))
    return t.emit(relax.op.where(relax.op.greater(x, t.const(0, dtype)), high, low))


@_register("softplus.default")
def _softplus(t: Translator, x: relax.Expr, beta: float, threshold: float) -> relax.Expr:
    dtype = t.out_dtype
    bx = t.emit(relax.op.multiply(x, t.const(beta, dtype)))
    soft = relax.op.divide(
        relax.op.log(relax.op.add(relax.op.exp(bx), t.const(1, dtype))), t.const(beta, dtype)
    )
    return t.emit(relax.op.where(relax.op.greater(bx, t.const(threshold, dtype)), x, soft))


@_register("hardtanh.default")
def _hardtanh(t: Translator, x: relax.Expr, low: float, high: float) -> relax.Expr:
    return _clamp(t, x, low, high)


@_register("clamp.default", "clamp.Tensor", "clip.default")
def _clamp(t: Translator, x: relax.Expr, low: Any = None, high: Any = None) -> relax.Expr:
    dtype = t.out_dtype
    x = t.cast(x, dtype)
    if low is not None:
        x = t.emit(relax.op.maximum(x, t.tensor(low, dtype)))
    if high is not None:
        x = t.emit(relax.op.minimum(x, t.tensor(high, dtype)))
    return x


@_register("clamp_min.default", "clamp_min.Tensor")
def _clamp_min(t: Translator, x: relax.Expr, low: Any) -> relax.Expr:
    return _clamp(t, x, low, None)


@_register("clamp_max.default", "clamp_max.Tensor")
def _clamp_max(t: Translator, x: relax.Expr, high: Any) -> relax.Expr:
    return _clamp(t, x, None, high)


@_register("round.default")
def _round(t: Translator, x: relax.Expr) -> relax.Expr:
    return t.emit(relax.op.round(x))


# -- binary -------------------------------------------------------------------------------------


def _arithmetic(op: Callable[..., relax.Expr]) -> Callable[..., Any]:
    def convert(t: Translator, x: Any, y: Any, *_: Any) -> relax.Expr:
        dtype = t.out_dtype
        return t.emit(op(t.tensor(x, dtype), t.tensor(y, dtype)))

    return convert


for _name, _op in {
    "mul": relax.op.multiply,
    "div": relax.op.divide,
    "maximum": relax.op.maximum,
    "minimum": relax.op.minimum,
    "bitwise_and": relax.op.bitwise_and,
    "bitwise_or": relax.op.bitwise_or,
    "bitwise_xor": relax.op.bitwise_xor,
    "atan2": relax.op.atan2,
}.items():
    for _overload in ("default", "Tensor", "Scalar"):
        CONVERTERS[f"{_name}.{_overload}"] = _arithmetic(_op)


def _sum_like(op: Callable[..., relax.Expr], swap: bool) -> Callable[..., Any]:
    """x ± alpha·y; with ``swap`` torch.rsub: y − alpha·x."""

    def convert(t: Translator, x: Any, y: Any, alpha: Any = 1) -> relax.Expr:
        dtype = t.out_dtype
        a, b = (y, x) if swap else (x, y)
        a, b = t.tensor(a, dtype), t.tensor(b, dtype)
        if alpha != 1:
            b = t.emit(relax.op.multiply(b, t.const(alpha, dtype)))
        return t.emit(op(a, b))

    return convert


for _overload in ("Tensor", "Scalar"):
    CONVERTERS[f"add.{_overload}"] = _sum_like(relax.op.add, False)
    CONVERTERS[f"sub.{_overload}"] = _sum_like(relax.op.subtract, False)
    CONVERTERS[f"rsub.{_overload}"] = _sum_like(relax.op.subtract, True)


def _fmod_of(t: Translator, a: relax.Expr, b: relax.Expr) -> relax.Expr:
    return t.emit(relax.op.mod(a, b))


@_register("fmod.Tensor", "fmod.Scalar")
def _fmod(t: Translator, x: Any, y: Any) -> relax.Expr:
    dtype = t.out_dtype
    return _fmod_of(t, t.tensor(x, dtype), t.tensor(y, dtype))


def _is_float(dtype: str) -> bool:
    return dtype.startswith("float")


def _wrong_sign(t: Translator, mod: relax.Expr, b: relax.Expr, dtype: str) -> relax.Expr:
    zero = t.const(0, dtype)
    opposite = relax.op.logical_xor(relax.op.less(b, zero), relax.op.less(mod, zero))
    return t.emit(relax.op.logical_and(relax.op.not_equal(mod, zero), opposite))


@_register("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def _remainder(t: Translator, x: Any, y: Any) -> relax.Expr:
    dtype = t.out_dtype
    a, b = t.tensor(x, dtype), t.tensor(y, dtype)
    if not _is_float(dtype):
        return t.emit(relax.op.floor_mod(a, b))
    mod = _fmod_of(t, a, b)
    return t.emit(relax.op.where(_wrong_sign(t, mod, b, dtype), relax.op.add(mod, b), mod))


def _floor_divide_of(t: Translator, a: relax.Expr, b: relax.Expr, dtype: str) -> relax.Expr:
    """Floor division as Python and PyTorch define it: 1.0 // 0.1 is 9, not floor(10.0)."""
    if not _is_float(dtype):
        return t.emit(relax.op.floor_divide(a, b))
    mod = _fmod_of(t, a, b)
    div = t.emit(relax.op.divide(relax.op.subtract(a, mod), b))
    one = t.const(1, dtype)
    div = t.emit(relax.op.where(_wrong_sign(t, mod, b, dtype), relax.op.subtract(div, one), div))
    floor = t.emit(relax.op.floor(div))
    above = relax.op.greater(relax.op.subtract(div, floor), t.const(0.5, dtype))
    return t.emit(relax.op.where(above, relax.op.add(floor, one), floor))


@_register("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(t: Translator, x: Any, y: Any, rounding_mode: str | None) -> relax.Expr:
    dtype = t.out_dtype
    a, b = t.tensor(x, dtype), t.tensor(y, dtype)
    if rounding_mode == "floor":
        return _floor_divide_of(t, a, b, dtype)
    if rounding_mode == "trunc" and not _is_float(dtype):
        raise Unsupported("division of integers that rounds towards zero; use '//'")
    out = t.emit(relax.op.divide(a, b))
    return t.emit(relax.op.trunc(out)) if rounding_mode == "trunc" else out


@_register("floor_divide.default", "floor_divide.Scalar")
def _floor_divide(t: Translator, x: Any, y: Any) -> relax.Expr:
    dtype = t.out_dtype
    return _floor_divide_of(t, t.tensor(x, dtype), t.tensor(y, dtype), dtype)


@_register("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def _pow(t: Translator, x: Any, y: Any) -> relax.Expr:
    dtype = t.out_dtype
    if isinstance(y, int | float):
        base = t.tensor(x, dtype)
        if y == 0.5:
            return t.emit(relax.op.sqrt(base))
        if float(y).is_integer() and 1 <= y <= 8:
            out = base
            for _ in range(int(y) - 1):
                out = t.emit(relax.op.multiply(out, base))
            return out
    if not _is_float(dtype):
        raise Unsupported("powers of integers with such an exponent; convert to float first")
    return t.emit(relax.op.power(t.tensor(x, dtype), t.tensor(y, dtype)))


def _operand_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty((1,) * value.ndim, dtype=value.dtype, device="meta")
    return value


def _common_dtype(t: Translator) -> str:
    """dtype in which PyTorch compares the current node's two operands."""
    metas = []
    for arg in t.current.args[:2]:
        metas.append(_operand_meta(t.val(arg) if isinstance(arg, torch.fx.Node) else arg))
    return dtype_name(torch.result_type(*metas))


def _comparison(op: Callable[..., relax.Expr]) -> Callable[..., Any]:
    def convert(t: Translator, x: Any, y: Any) -> relax.Expr:
        dtype = _common_dtype(t)
        if dtype == "bool":
            dtype = "int32"
        return t.emit(op(t.tensor(x, dtype), t.tensor(y, dtype)))

    return convert


for _name, _op in {
    "eq": relax.op.equal,
    "ne": relax.op.not_equal,
    "ge": relax.op.greater_equal,
    "gt": relax.op.greater,
    "le": relax.op.less_equal,
    "lt": relax.op.less,
}.items():
    for _overload in ("Tensor", "Scalar"):
        CONVERTERS[f"{_name}.{_overload}"] = _comparison(_op)


def _as_bool(t: Translator, x: relax.Expr) -> relax.Expr:
    if dtype_of(x) == "bool":
        return x
    return t.emit(relax.op.not_equal(x, t.const(0, dtype_of(x))))


def _logical(op: Callable[..., relax.Expr]) -> Callable[..., Any]:
    def convert(t: Translator, x: relax.Expr, y: relax.Expr) -> relax.Expr:
        return t.emit(op(_as_bool(t, x), _as_bool(t, y)))

    return convert


CONVERTERS["logical_and.default"] = _logical(relax.op.logical_and)
CONVERTERS["logical_or.default"] = _logical(relax.op.logical_or)
CONVERTERS["logical_xor.default"] = _logical(relax.op.logical_xor)


@_register("where.self")
def _where(t: Translator, cond: relax.Expr, x: relax.Expr, y: relax.Expr) -> relax.Expr:
    dtype = t.out_dtype
    return t.emit(relax.op.where(_as_bool(t, cond), t.tensor(x, dtype), t.tensor(y, dtype)))


@_register("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(t: Translator, x: relax.Expr, mask: relax.Expr, value: Any) -> relax.Expr:
    return t.emit(relax.op.where(_as_bool(t, mask), t.tensor(value, t.out_dtype), x))


# -- casts and copies ---------------------------------------------------------------------------


@_register("_to_copy.default")
def _to_copy(t: Translator, x: relax.Expr, *_: Any) -> relax.Expr:
    return _as_bool(t, x) if t.out_dtype == "bool" else t.cast(x, t.out_dtype)


@_register(
    "clone.default",
    "alias.default",
    "detach.default",
    "detach_.default",
    "contiguous.default",
    "lift_fresh_copy.default",
    "lift_fresh.default",
    "dropout.default",
    "_assert_tensor_metadata.default",
)
def _identity(t: Translator, x: relax.Expr, *_: Any) -> relax.Expr:
    return x


@_register("sym_size.int", "sym_numel.default")
def _sym_size(t: Translator, *_: Any) -> Any:
    return t.dim(t.val())


@_register("_assert_scalar.default", "_assert_async.msg", "sym_constrain_range_for_size.default")
def _assertion(t: Translator, *_: Any) -> None:
    return None


# -- creation -----------------------------------------------------------------------------------


def _filled(t: Translator, value: Any) -> relax.Expr:
    if not isinstance(value, bool | int | float):
        raise Unsupported("filling a tensor with a value that is known at run time only")
    shape, dtype = relax.ShapeExpr(t.out_shape), t.out_dtype
    if value == 0:
        return t.emit(relax.op.zeros(shape, dtype))
    if value == 1:
        return t.emit(relax.op.ones(shape, dtype))
    return t.emit(relax.op.full(shape, t.const(value, dtype), dtype))


@_register("full.default", "full_like.default", "new_full.default", "fill.Scalar")
def _full(t: Translator, _: Any, value: Any, *__: Any) -> relax.Expr:
    return _filled(t, value)


CONVERTERS["new_full.default"] = lambda t, _x, _size, value, *_: _filled(t, value)


@_register("zeros.default", "zeros_like.default", "new_zeros.default")
@_register(
    "empty.memory_format", "empty_like.default", "new_empty.default", "empty_permuted.default"
)
def _zeros(t: Translator, *_: Any) -> relax.Expr:
    return _filled(t, 0)


@_register("ones.default", "ones_like.default", "new_ones.default")
def _ones(t: Translator, *_: Any) -> relax.Expr:
    return _filled(t, 1)


@_register("scalar_tensor.default")
def _scalar_tensor(t: Translator, value: Any, *_: Any) -> relax.Expr:
    if not isinstance(value, bool | int | float):
        raise Unsupported("a tensor made of a size that varies with the batch")
    return t.const(value, t.out_dtype)


@_register("arange.start_step", "arange.default", "arange.start")
def _arange(t: Translator, *args: Any) -> relax.Expr:
    numbers = [a for a in t.current.args if isinstance(a, int | float)]
    if len(numbers) != len(t.current.args):
        raise Unsupported("arange over a size that varies with the batch")
    return t.const(torch.arange(*numbers, dtype=torch.float64).numpy(), t.out_dtype)
