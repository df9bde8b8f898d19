"""Converters of ATen operators that move, select, join and write elements."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax

from ttsnn.frontend.translate import (
    ScatterWrites,
    Translator,
    Unsupported,
    dtype_of,
    registrar,
    same_shape,
    sizes_of,
)

__all__ = ["CONVERTERS"]

CONVERTERS: dict[str, Callable[..., Any]] = {}


_register = registrar(CONVERTERS)


def _static(size: Any, what: str) -> int:
    if not isinstance(size, int):
        raise Unsupported(f"{what} along a size that varies with the batch")
    return size


# -- views --------------------------------------------------------------------------------------


@_register(
    "view.default",
    "reshape.default",
    "_unsafe_view.default",
    "flatten.using_ints",
    "unflatten.int",
    "_reshape_copy.default",
)
def _reshape(t: Translator, x: relax.Expr, *_: Any) -> relax.Expr:
    return t.reshape(x, t.out_shape)


@_register("permute.default")
def _permute(t: Translator, x: relax.Expr, dims: list[int]) -> relax.Expr:
    rank = len(sizes_of(x))
    return t.emit(relax.op.permute_dims(x, [d % rank for d in dims]))


@_register("transpose.int")
def _transpose(t: Translator, x: relax.Expr, a: int, b: int) -> relax.Expr:
    axes = list(range(len(sizes_of(x))))
    if not axes:
        return x
    axes[a], axes[b] = axes[b], axes[a]
    return t.emit(relax.op.permute_dims(x, axes))


@_register("t.default", "numpy_T.default")
def _t(t: Translator, x: relax.Expr) -> relax.Expr:
    rank = len(sizes_of(x))
    return x if rank < 2 else t.emit(relax.op.permute_dims(x, list(range(rank))[::-1]))


@_register("expand.default", "broadcast_to.default", "expand_as.default", "expand_copy.default")
def _expand(t: Translator, x: relax.Expr, *_: Any) -> relax.Expr:
    return _broadcast(t, x, t.out_shape)


def _broadcast(t: Translator, x: relax.Expr, shape: list[Any]) -> relax.Expr:
    if same_shape(shape, sizes_of(x)):
        return x
    return t.emit(relax.op.broadcast_to(x, relax.ShapeExpr(shape)))


@_register("unsqueeze.default")
def _unsqueeze(t: Translator, x: relax.Expr, dim: int) -> relax.Expr:
    return t.emit(relax.op.expand_dims(x, dim % (len(sizes_of(x)) + 1)))


@_register("squeeze.default", "squeeze.dim", "squeeze.dims")
def _squeeze(t: Translator, x: relax.Expr, *_: Any) -> relax.Expr:
    sizes = sizes_of(x)
    given: list[Any] = list(t.current.args[1:])  # an int or a list of them, or nothing
    wanted = range(len(sizes)) if not given else np.atleast_1d(given[0]) % max(len(sizes), 1)
    axes = [int(d) for d in wanted if sizes and isinstance(sizes[d], int) and sizes[d] == 1]
    return t.emit(relax.op.squeeze(x, axes)) if axes else x


# -- joining and splitting ----------------------------------------------------------------------


@_register("cat.default", "concat.default")
def _cat(t: Translator, tensors: list[relax.Expr], dim: int) -> relax.Expr:
    # PyTorch skips tensors of shape [0] whatever the others' rank is
    kept = [x for x in tensors if sizes_of(x) != [0]] or tensors[:1]
    kept = [t.cast(x, t.out_dtype) for x in kept]
    return kept[0] if len(kept) == 1 else t.emit(relax.op.concat(kept, dim % len(t.out_shape)))


@_register("stack.default")
def _stack(t: Translator, tensors: list[relax.Expr], dim: int) -> relax.Expr:
    tensors = [t.cast(x, t.out_dtype) for x in tensors]
    return t.emit(relax.op.stack(tensors, dim % len(t.out_shape)))


@_register(
    "split.Tensor",
    "split_with_sizes.default",
    "split_with_sizes_copy.default",
    "split_copy.Tensor",
    "chunk.default",
)
def _split(t: Translator, x: relax.Expr, _: Any, dim: int = 0) -> list[relax.Expr]:
    dim %= len(sizes_of(x))
    parts = [_static(t.dim(v.shape[dim]), "split") for v in t.val()]
    if len(parts) == 1:
        return [x]
    out = t.emit(relax.op.split(x, [int(e) for e in np.cumsum(parts)[:-1]], dim))
    return [t.emit(out[i]) for i in range(len(parts))]


@_register("unbind.int", "unbind_copy.int")
def _unbind(t: Translator, x: relax.Expr, dim: int) -> list[relax.Expr]:
    dim %= len(sizes_of(x))
    return [_take(t, x, i, dim) for i in range(len(t.val()))]


# -- selecting ----------------------------------------------------------------------------------


def _take(t: Translator, x: relax.Expr, index: int, dim: int) -> relax.Expr:
    written = t.scatters.get(x)
    if written is not None and written.dim == dim and index in written.writes:
        return written.writes[index]
    return t.emit(relax.op.take(x, t.const(index, "int64"), dim, mode="clip"))


@_register("select.int", "select_copy.int")
def _select(t: Translator, x: relax.Expr, dim: int, index: Any) -> relax.Expr:
    sizes = sizes_of(x)
    dim %= len(sizes)
    if not isinstance(index, int):
        raise Unsupported("an index that varies with the batch")
    if index < 0:
        index += _static(sizes[dim], "indexing from the end")
    return _take(t, x, index, dim)


def _slice_of(
    t: Translator, x: relax.Expr, dim: int, start: Any, end: Any, step: int = 1
) -> relax.Expr:
    return t.emit(relax.op.strided_slice(x, [dim], [start], [end], [step]))


def _bounds(size: Any, start: Any, end: Any, step: int) -> tuple[Any, Any]:
    """Python's rules for the bounds of a slice; a symbolic size admits plain bounds only."""
    start = 0 if start is None else start
    end = sys.maxsize if end is None else end
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        start, end, _ = slice(start, end, step).indices(size)
        return start, max(start, end)
    if not isinstance(end, int) and isinstance(size, int):
        raise Unsupported("a slice whose end varies with the batch")
    if isinstance(start, int) and start < 0:
        start = size + start
    if isinstance(end, int):
        end = size if end >= sys.maxsize // 2 else (size + end if end < 0 else end)
    return start, end


@_register("slice.Tensor", "slice_copy.Tensor")
def _slice(t: Translator, x: relax.Expr, dim: int, start: Any, end: Any, step: int) -> relax.Expr:
    sizes = sizes_of(x)
    dim %= len(sizes)
    start, end = _bounds(sizes[dim], start, end, step)
    if same_shape(t.out_shape, sizes):
        return x
    return _slice_of(t, x, dim, start, end, step)


@_register("narrow.default")
def _narrow(t: Translator, x: relax.Expr, dim: int, start: int, length: int) -> relax.Expr:
    return _slice(t, x, dim, start, start + length, 1)


@_register("index_select.default")
def _index_select(t: Translator, x: relax.Expr, dim: int, index: relax.Expr) -> relax.Expr:
    return t.emit(relax.op.take(x, index, dim % len(sizes_of(x)), mode="clip"))


@_register("embedding.default")
def _embedding(t: Translator, weight: relax.Expr, index: relax.Expr, *_: Any) -> relax.Expr:
    return t.emit(relax.op.take(weight, index, 0, mode="clip"))


@_register("index.Tensor")
def _index(t: Translator, x: relax.Expr, indices: list[Any]) -> relax.Expr:
    used = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(used) != 1:
        raise Unsupported("indexing with several index tensors; index one axis at a time")
    dim, index = used[0]
    if dtype_of(index) == "bool":
        raise Unsupported("indexing with a mask gives a size that depends on data; use where")
    size = _static(sizes_of(x)[dim], "indexing")
    zero = t.const(0, dtype_of(index))
    wrapped = relax.op.add(index, t.const(size, dtype_of(index)))
    index = t.emit(relax.op.where(relax.op.less(index, zero), wrapped, index))
    return t.emit(relax.op.take(x, index, dim, mode="clip"))


@_register("gather.default")
def _gather(t: Translator, x: relax.Expr, dim: int, index: relax.Expr, *_: Any) -> relax.Expr:
    return t.emit(relax.op.gather_elements(x, index, dim % len(sizes_of(x))))


@_register("flip.default")
def _flip(t: Translator, x: relax.Expr, dims: list[int]) -> relax.Expr:
    for d in dims:
        x = t.emit(relax.op.flip(x, d % len(sizes_of(x))))
    return x


@_register("roll.default")
def _roll(t: Translator, x: relax.Expr, shifts: list[int], dims: list[int]) -> relax.Expr:
    if not dims:
        raise Unsupported("roll without dims; name the axis")
    for shift, dim in zip(shifts, dims, strict=True):
        dim %= len(sizes_of(x))
        size = _static(sizes_of(x)[dim], "roll")
        if shift % size:
            cut = size - shift % size
            tail, head = _slice_of(t, x, dim, cut, size), _slice_of(t, x, dim, 0, cut)
            x = t.emit(relax.op.concat([tail, head], dim))
    return x


# -- repeating and padding ----------------------------------------------------------------------


@_register("repeat.default", "tile.default")
def _repeat(t: Translator, x: relax.Expr, repeats: list[Any]) -> relax.Expr:
    if not all(isinstance(r, int) for r in repeats):
        raise Unsupported("repeating by a number that varies with the batch")
    rank = max(len(repeats), len(sizes_of(x)))
    repeats = [1] * (rank - len(repeats)) + list(repeats)
    return x if set(repeats) <= {1} else t.emit(relax.op.tile(x, repeats))


@_register("repeat_interleave.self_int")
def _repeat_interleave(
    t: Translator, x: relax.Expr, repeats: int, dim: int | None, *_: Any
) -> relax.Expr:
    return t.emit(relax.op.repeat(x, repeats, None if dim is None else dim % len(sizes_of(x))))


def _pad_width(x: relax.Expr, pad: list[int]) -> list[int]:
    """torch lists (before, after) from the last axis backwards, Relax from the first on."""
    rank = len(sizes_of(x))
    width = [0] * (2 * rank)
    for i in range(len(pad) // 2):
        axis = rank - 1 - i
        width[2 * axis : 2 * axis + 2] = pad[2 * i : 2 * i + 2]
    return width


@_register("constant_pad_nd.default")
def _constant_pad(t: Translator, x: relax.Expr, pad: list[int], value: Any = 0) -> relax.Expr:
    sizes = sizes_of(x)
    for i in range(len(pad) // 2):  # negative padding crops
        axis = len(sizes) - 1 - i
        low, high = pad[2 * i], pad[2 * i + 1]
        if low < 0 or high < 0:
            size = _static(sizes[axis], "cropping")
            x = _slice_of(t, x, axis, max(-low, 0), size + min(high, 0))
    width = _pad_width(x, [max(p, 0) for p in pad])
    return t.emit(relax.op.nn.pad(x, width, "constant", float(value))) if any(width) else x


def _gather_pad(mode: str) -> Callable[..., Any]:
    """Reflection, replication and circular padding: the positions that PyTorch reads."""

    def convert(t: Translator, x: relax.Expr, pad: list[int]) -> relax.Expr:
        sizes = sizes_of(x)
        for i in range(len(pad) // 2):
            axis = len(sizes) - 1 - i
            low, high = pad[2 * i : 2 * i + 2]
            if low == high == 0:
                continue
            size = _static(sizes[axis], "padding")
            line = torch.arange(size, dtype=torch.float64)[None, None]
            index = torch.nn.functional.pad(line, (low, high), mode=mode)[0, 0].long()
            x = t.emit(relax.op.take(x, t.const(index.numpy(), "int64"), axis, mode="clip"))
        return x

    return convert


for _n in (1, 2, 3):
    CONVERTERS[f"reflection_pad{_n}d.default"] = _gather_pad("reflect")
    CONVERTERS[f"replication_pad{_n}d.default"] = _gather_pad("replicate")


@_register("pad.default")
def _pad(t: Translator, x: relax.Expr, pad: list[int], mode: str, value: Any) -> relax.Expr:
    if mode == "constant":
        return _constant_pad(t, x, pad, value or 0)
    return _gather_pad(mode)(t, x, pad)


# -- writing slices -----------------------------------------------------------------------------


@_register("select_scatter.default")
def _select_scatter(
    t: Translator, x: relax.Expr, src: relax.Expr, dim: int, index: int
) -> relax.Expr:
    """``out[index] = src``. Writes over every index of an axis become one stack."""
    sizes = sizes_of(x)
    dim %= len(sizes)
    size = _static(sizes[dim], "writing")
    index %= size
    src = _broadcast(t, t.cast(src, t.out_dtype), sizes[:dim] + sizes[dim + 1 :])
    old = t.scatters.get(x)
    base, writes = x, {index: src}
    if old is not None and old.dim == dim:
        base, writes = old.base, {**old.writes, index: src}
    if len(writes) == size:
        out = t.emit(relax.op.stack([writes[i] for i in range(size)], dim))
    else:
        out = t.emit(relax.op.concat(_pieces(t, base, writes, dim, size), dim))
    t.scatters[out] = ScatterWrites(base, dim, writes)
    return out


def _pieces(
    t: Translator, base: relax.Expr, writes: dict[int, relax.Expr], dim: int, size: int
) -> list[relax.Expr]:
    pieces, i = [], 0
    while i < size:
        if i in writes:
            pieces.append(t.emit(relax.op.expand_dims(writes[i], dim)))
            i += 1
            continue
        end = min([j for j in writes if j > i], default=size)
        pieces.append(_slice_of(t, base, dim, i, end))
        i = end
    return pieces


@_register("slice_scatter.default")
def _slice_scatter(
    t: Translator, x: relax.Expr, src: relax.Expr, dim: int, start: Any, end: Any, step: int
) -> relax.Expr:
    sizes = sizes_of(x)
    dim %= len(sizes)
    start, end = _bounds(sizes[dim], start, end, step)
    if same_shape(sizes_of(src), sizes):
        return t.cast(src, t.out_dtype)
    if step != 1 or not isinstance(sizes[dim], int):
        raise Unsupported("writing a slice with a step, or along a size that varies")
    parts = [t.cast(src, t.out_dtype)]
    if start > 0:
        parts.insert(0, _slice_of(t, x, dim, 0, start))
    if end < sizes[dim]:
        parts.append(_slice_of(t, x, dim, end, sizes[dim]))
    return t.emit(relax.op.concat(parts, dim))


@_register("copy.default")
def _copy(t: Translator, _: relax.Expr, src: relax.Expr, *__: Any) -> relax.Expr:
    return _broadcast(t, t.cast(src, t.out_dtype), t.out_shape)


@_register("index_put.default")
def _index_put(
    t: Translator, x: relax.Expr, indices: list[Any], values: relax.Expr, accumulate: bool
) -> relax.Expr:
    """Only ``out[mask] = value`` and ``out[i] = s`` with constant i keep their shapes static."""
    index = indices[0] if len(indices) == 1 else None
    if index is not None and dtype_of(index) == "bool" and not accumulate:
        if len(sizes_of(index)) == len(sizes_of(x)) and not sizes_of(values):
            return t.emit(relax.op.where(index, t.cast(values, t.out_dtype), x))
        raise Unsupported("writing several values through a mask; use where")
    if isinstance(index, tvm.ir.GenericConst) and index.value.numpy().size == 1 and not accumulate:
        value = _broadcast(
            t, t.cast(values, t.out_dtype), list(index.ty.shape.values) + sizes_of(x)[1:]
        )
        value = t.reshape(value, sizes_of(x)[1:])
        return _select_scatter(t, x, value, 0, int(index.value.numpy()))
    raise Unsupported("writing through index tensors; write with constant indices or where")


def _triangle(op: Callable[..., relax.Expr]) -> Callable[..., Any]:
    return lambda t, x, k=0: t.emit(op(x, k))


CONVERTERS["tril.default"] = _triangle(relax.op.tril)
CONVERTERS["triu.default"] = _triangle(relax.op.triu)
