"""Converters of ATen's reductions and pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tvm import relax

from ttsnn.frontend.translate import (
    Translator,
    Unsupported,
    dtype_of,
    registrar,
    sizes_of,
)

__all__ = ["CONVERTERS"]

CONVERTERS: dict[str, Callable[..., Any]] = {}


_register = registrar(CONVERTERS)


def _axes(x: relax.Expr, dim: Any) -> list[int]:
    rank = len(sizes_of(x))
    dims = list(range(rank)) if dim is None or dim == [] else np.atleast_1d(dim)
    return [int(d) % rank for d in dims] if rank else []


def _reduce(op: Callable[..., relax.Expr]) -> Callable[..., Any]:
    def convert(
        t: Translator, x: relax.Expr, dim: Any = None, keepdim: bool = False, *_: Any
    ) -> relax.Expr:
        x = t.cast(x, t.out_dtype)
        axes = _axes(x, dim)
        return t.emit(op(x, axes, keepdims=bool(keepdim))) if axes else x

    return convert


def _reduce_all(op: Callable[..., relax.Expr]) -> Callable[..., Any]:
    return lambda t, x, *_: _reduce(op)(t, x)


for _name, _op in {
    "sum.dim_IntList": relax.op.sum,
    "mean.dim": relax.op.mean,
    "amax.default": relax.op.max,
    "amin.default": relax.op.min,
    "prod.dim_int": relax.op.prod,
}.items():
    CONVERTERS[_name] = _reduce(_op)
for _name, _op in {
    "sum.default": relax.op.sum,
    "mean.default": relax.op.mean,
    "max.default": relax.op.max,
    "min.default": relax.op.min,
    "prod.default": relax.op.prod,
}.items():
    CONVERTERS[_name] = _reduce_all(_op)


def _arg(op: Callable[..., relax.Expr]) -> Callable[..., Any]:
    def convert(t: Translator, x: relax.Expr, dim: int | None, keepdim: bool) -> relax.Expr:
        if dim is None:
            x, dim = t.emit(relax.op.flatten(x)), 0
            if keepdim:
                raise Unsupported("argmax over all axes with keepdim")
        return t.emit(op(x, dim % len(sizes_of(x)), keepdims=keepdim))

    return convert


CONVERTERS["argmax.default"] = _arg(relax.op.argmax)
CONVERTERS["argmin.default"] = _arg(relax.op.argmin)


def _with_indices(op: Any, arg: Any) -> Callable[..., Any]:
    def convert(t: Translator, x: relax.Expr, dim: int, keepdim: bool = False) -> list[Any]:
        axis = dim % len(sizes_of(x))
        return [t.emit(op(x, axis, keepdims=keepdim)), t.emit(arg(x, axis, keepdims=keepdim))]

    return convert


CONVERTERS["max.dim"] = _with_indices(relax.op.max, relax.op.argmax)
CONVERTERS["min.dim"] = _with_indices(relax.op.min, relax.op.argmin)


def _truth(op: Callable[..., relax.Expr]) -> Callable[..., Any]:
    def convert(t: Translator, x: relax.Expr, dim: Any = None, keepdim: bool = False) -> Any:
        axes = _axes(x, dim)
        bits = relax.op.not_equal(
            t.cast(x, "int32") if dtype_of(x) == "bool" else x,
            t.const(0, "int32" if dtype_of(x) == "bool" else dtype_of(x)),
        )
        ints = t.emit(relax.op.astype(bits, "int32"))
        out = t.emit(op(ints, axes, keepdims=bool(keepdim))) if axes else ints
        return t.emit(relax.op.not_equal(out, t.const(0, "int32")))

    return convert


for _overload in ("default", "dim", "dims"):
    CONVERTERS[f"any.{_overload}"] = _truth(relax.op.max)
    CONVERTERS[f"all.{_overload}"] = _truth(relax.op.min)


def _variance(root: bool) -> Callable[..., Any]:
    def convert(
        t: Translator, x: relax.Expr, dim: Any = None, correction: Any = 1, keepdim: bool = False
    ) -> relax.Expr:
        axes = _axes(x, dim)
        sizes = [sizes_of(x)[a] for a in axes]
        if not all(isinstance(s, int) for s in sizes):
            raise Unsupported("a variance over a size that varies with the batch")
        count = int(np.prod(sizes))
        correction = 1 if correction is None else correction
        centred = t.emit(relax.op.subtract(x, relax.op.mean(x, axes, keepdims=True)))
        total = relax.op.sum(relax.op.multiply(centred, centred), axes, keepdims=keepdim)
        var = t.emit(relax.op.divide(total, t.const(count - correction, t.out_dtype)))
        return t.emit(relax.op.sqrt(var)) if root else var

    return convert


CONVERTERS["var.correction"] = _variance(False)
CONVERTERS["std.correction"] = _variance(True)


@_register("cumsum.default")
def _cumsum(t: Translator, x: relax.Expr, dim: int, *_: Any) -> relax.Expr:
    return t.emit(relax.op.cumsum(t.cast(x, t.out_dtype), dim % len(sizes_of(x))))


@_register("linalg_vector_norm.default")
def _norm(t: Translator, x: relax.Expr, order: Any, dim: Any, keepdim: bool, *_: Any) -> Any:
    axes = _axes(x, dim)
    if order == 2:
        return t.emit(relax.op.sqrt(relax.op.sum(relax.op.multiply(x, x), axes, keepdim)))
    if order == 1:
        return t.emit(relax.op.sum(relax.op.abs(x), axes, keepdim))
    raise Unsupported(f"a vector norm of order {order}; use 1 or 2")


# -- pooling ------------------------------------------------------------------------------------

_MAX_POOL = {1: relax.op.nn.max_pool1d, 2: relax.op.nn.max_pool2d, 3: relax.op.nn.max_pool3d}
_AVG_POOL = {1: relax.op.nn.avg_pool1d, 2: relax.op.nn.avg_pool2d, 3: relax.op.nn.avg_pool3d}


def _spread(values: Any, rank: int, default: Any = None) -> list[int]:
    if values is None or values == []:
        return list(default)
    values = list(np.atleast_1d(values))
    return [int(v) for v in (values * rank if len(values) == 1 else values)]


def _extra(size: int, k: int, s: int, p: int, d: int, out: int) -> int:
    """How far the last window reaches beyond the padded input (ceil mode)."""
    return max((out - 1) * s + d * (k - 1) + 1 - (size + 2 * p), 0)


def _unbatched(rank: int, pool: Callable[..., Any]) -> Callable[..., Any]:
    """Pooling also takes inputs without a batch axis."""

    def convert(t: Translator, x: relax.Expr, *args: Any) -> Any:
        if len(sizes_of(x)) == rank + 2:
            return pool(t, x, *args)
        x = t.emit(relax.op.expand_dims(x, 0))
        val = t.val()
        val = val[0] if isinstance(val, tuple | list) else val
        return t.reshape(pool(t, x, *args), t.shape(val))

    return convert


def _spatial(t: Translator, x: relax.Expr, rank: int) -> tuple[list[int], list[int]]:
    val = t.val()
    val = val[0] if isinstance(val, tuple | list) else val
    old, new = sizes_of(x)[-rank:], t.shape(val)[-rank:]
    if not all(isinstance(s, int) for s in [*old, *new]):
        raise Unsupported("pooling along a size that varies with the batch")
    return old, new


def _max_pool(rank: int) -> Callable[..., Any]:
    def pool(
        t: Translator,
        x: relax.Expr,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> relax.Expr:
        k = _spread(kernel, rank)
        s, p, d = _spread(stride, rank, k), _spread(padding, rank), _spread(dilation, rank)
        old, new = _spatial(t, x, rank)
        extra = [_extra(*v) for v in zip(old, k, s, p, d, new, strict=True)]
        # Relax does not pad by −∞ beyond what it was told; the reach of ceil mode is told too
        after = [a + e for a, e in zip(p, extra, strict=True)]
        return t.emit(_MAX_POOL[rank](x, pool_size=k, strides=s, padding=[*p, *after], dilation=d))

    return _unbatched(rank, pool)


def _avg_pool(rank: int) -> Callable[..., Any]:
    def pool(
        t: Translator,
        x: relax.Expr,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> relax.Expr:
        k = _spread(kernel, rank)
        s, p = _spread(stride, rank, k), _spread(padding, rank)
        old, new = _spatial(t, x, rank)
        extra = [_extra(*v) for v in zip(old, k, s, p, [1] * rank, new, strict=True)]
        if not any(p) and not any(extra) and divisor is None:
            return t.emit(_AVG_POOL[rank](x, pool_size=k, strides=s, count_include_pad=True))
        width = [0, 0, 0, 0]
        for a, e in zip(p, extra, strict=True):
            width += [a, a + e]
        padded = t.emit(relax.op.nn.pad(x, width))
        mean = t.emit(_AVG_POOL[rank](padded, pool_size=k, strides=s, count_include_pad=True))
        # PyTorch's own count of the elements behind each output
        ones = torch.ones([1, 1, *old], dtype=torch.float64)
        fn = getattr(torch.nn.functional, f"avg_pool{rank}d")
        if divisor is not None:
            scale = np.full([1, 1, *new], np.prod(k) / divisor)
        else:
            share = _window_sums(ones, k, s, p, extra)
            with_pad = fn(ones, k, s, p, ceil_mode, count_include_pad)
            scale = np.where(share > 0, with_pad.numpy() / np.maximum(share, 1) * np.prod(k), 0.0)
        return t.emit(relax.op.multiply(mean, t.const(scale, t.out_dtype)))

    return _unbatched(rank, pool)


def _window_sums(
    ones: torch.Tensor, k: list[int], s: list[int], p: list[int], extra: list[int]
) -> np.ndarray:
    """Number of real input elements in each window."""
    pad: list[int] = []
    for a, e in zip(reversed(p), reversed(extra), strict=True):
        pad += [a, a + e]
    padded = torch.nn.functional.pad(ones, pad)
    rank = len(k)
    fn = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)
    kernel = torch.ones([1, 1, *k], dtype=torch.float64)
    return fn[rank - 1](padded, kernel, stride=s).numpy()


def _without_indices(pool: Callable[..., Any]) -> Callable[..., Any]:
    return lambda t, *args: [pool(t, *args), None]


for _rank in (1, 2, 3):
    CONVERTERS[f"avg_pool{_rank}d.default"] = _avg_pool(_rank)
    CONVERTERS[f"max_pool{_rank}d.default"] = _max_pool(_rank)
    CONVERTERS[f"max_pool{_rank}d_with_indices.default"] = _without_indices(_max_pool(_rank))


def _adaptive(t: Translator, x: relax.Expr, rank: int, op: Callable[..., relax.Expr]) -> relax.Expr:
    """Windows ⌊i·in/out⌋ … ⌈(i+1)·in/out⌉ along each axis in turn."""
    old, new = _spatial(t, x, rank)
    first = len(sizes_of(x)) - rank
    if set(new) == {1}:
        return t.emit(op(x, list(range(first, first + rank)), keepdims=True))
    for axis, (a, b) in enumerate(zip(old, new, strict=True), start=first):
        if a == b:
            continue
        if a % b == 0:
            sizes = sizes_of(x)
            split = t.reshape(x, [*sizes[:axis], b, a // b, *sizes[axis + 1 :]])
            x = t.emit(op(split, [axis + 1], keepdims=False))
            continue
        parts = []
        for i in range(b):
            low, high = i * a // b, -((-(i + 1) * a) // b)
            window = relax.op.strided_slice(x, [axis], [low], [high])
            parts.append(t.emit(op(window, [axis], keepdims=True)))
        x = parts[0] if b == 1 else t.emit(relax.op.concat(parts, axis))
    return x


for _rank in (1, 2, 3):
    for _name in (f"_adaptive_avg_pool{_rank}d.default", f"adaptive_avg_pool{_rank}d.default"):
        CONVERTERS[_name] = lambda t, x, _, _r=_rank: _adaptive(t, x, _r, relax.op.mean)
    CONVERTERS[f"adaptive_max_pool{_rank}d.default"] = lambda t, x, _, _r=_rank: [
        _adaptive(t, x, _r, relax.op.max),
        None,
    ]


@_register("bincount.default", "nonzero.default", "unique2.default", "masked_select.default")
def _data_dependent(t: Translator, *_: Any) -> None:
    raise Unsupported("the size of its result depends on data; use where or a fixed size")


_RANDOM = (
    "rand.default randn.default rand_like.default randn_like.default bernoulli.default "
    "bernoulli.p bernoulli.Tensor randint.default randint.low randint_like.default "
    "randint_like.low_dtype normal_functional.default native_dropout.default multinomial.default "
    "randperm.default poisson.default exponential.default uniform.default normal.Tensor_Tensor"
)


@_register(*_RANDOM.split())
def _random(t: Translator, *_: Any) -> None:
    raise Unsupported("random numbers; make them an input of the model, or switch them off")
