"""Converters of ATen's layers: convolution, normalisation, products, softmax, resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tvm import relax

from ttsnn.frontend.translate import (
    Translator,
    Unsupported,
    registrar,
    sizes_of,
)

__all__ = ["CONVERTERS"]

CONVERTERS: dict[str, Callable[..., Any]] = {}


_register = registrar(CONVERTERS)

# -- convolution --------------------------------------------------------------------------------

_CONV = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}
_CONV_T = {
    1: relax.op.nn.conv1d_transpose,
    2: relax.op.nn.conv2d_transpose,
    3: relax.op.nn.conv3d_transpose,
}


def _spread(values: Sequence[int], rank: int) -> list[int]:
    return list(values) * rank if len(values) == 1 else list(values)


@_register("convolution.default")
def _convolution(
    t: Translator,
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> relax.Expr:
    rank = len(sizes_of(x)) - 2
    if rank not in _CONV:
        raise Unsupported(f"convolution of an input with {rank + 2} axes")
    stride, padding, dilation = (_spread(v, rank) for v in (stride, padding, dilation))
    if transposed:
        out = _transposed(
            t, x, weight, stride, padding, dilation, _spread(output_padding, rank), groups
        )
    else:
        out = t.emit(
            _CONV[rank](
                x,
                weight,
                strides=stride,
                padding=[*padding, *padding],
                dilation=dilation,
                groups=groups,
            )
        )
    if bias is not None:
        out = t.emit(relax.op.add(out, t.reshape(bias, [1, sizes_of(bias)[0]] + [1] * rank)))
    return out


def _transposed(
    t: Translator,
    x: relax.Expr,
    weight: relax.Expr,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    output_padding: list[int],
    groups: int,
) -> relax.Expr:
    rank = len(stride)
    if rank == 3 and (groups > 1 or set(dilation) != {1}):
        raise Unsupported("transposed 3-D convolution with groups or dilation")
    if set(dilation) != {1}:
        # Relax has no dilated transposed convolution: spread the taps by zeros instead
        weight = _dilate(t, weight, dilation)
    return t.emit(
        _CONV_T[rank](
            x,
            weight,
            strides=stride,
            padding=[*padding, *padding],
            output_padding=output_padding,
            groups=groups,
        )
    )


def _dilate(t: Translator, weight: relax.Expr, dilation: list[int]) -> relax.Expr:
    for axis, d in enumerate(dilation, start=2):
        if d > 1:
            shape = sizes_of(weight)
            wide = t.emit(relax.op.expand_dims(weight, axis + 1))
            width = [0] * (2 * len(shape) + 2)
            width[2 * (axis + 1) + 1] = d - 1
            wide = t.emit(relax.op.nn.pad(wide, width))
            wide = t.reshape(wide, [*shape[:axis], shape[axis] * d, *shape[axis + 1 :]])
            end = (shape[axis] - 1) * d + 1
            weight = t.emit(relax.op.strided_slice(wide, [axis], [0], [end]))
    return weight


# -- products -----------------------------------------------------------------------------------


@_register("linear.default")
def _linear(
    t: Translator, x: relax.Expr, weight: relax.Expr, bias: relax.Expr | None
) -> relax.Expr:
    out = t.emit(relax.op.matmul(x, t.emit(relax.op.permute_dims(weight, [1, 0]))))
    return out if bias is None else t.emit(relax.op.add(out, bias))


@_register("matmul.default", "mm.default", "bmm.default", "mv.default", "dot.default")
def _matmul(t: Translator, x: relax.Expr, y: relax.Expr, *_: Any) -> relax.Expr:
    return t.emit(relax.op.matmul(x, y))


@_register("addmm.default", "baddbmm.default", "addmv.default")
def _addmm(
    t: Translator, c: relax.Expr, x: relax.Expr, y: relax.Expr, beta: Any, alpha: Any
) -> relax.Expr:
    dtype = t.out_dtype
    out = t.emit(relax.op.matmul(x, y))
    if alpha != 1:
        out = t.emit(relax.op.multiply(out, t.const(alpha, dtype)))
    if beta != 1:
        c = t.emit(relax.op.multiply(c, t.const(beta, dtype)))
    return t.emit(relax.op.add(out, c))


# -- normalisation ------------------------------------------------------------------------------


def _vector(t: Translator, x: relax.Expr | None, shape: Any, value: float, like: relax.Expr) -> Any:
    return x if x is not None else t.const(np.full(shape, value), str(like.ty.dtype))


@_register("_native_batch_norm_legit_no_training.default")
def _batch_norm(
    t: Translator,
    x: relax.Expr,
    weight: relax.Expr | None,
    bias: relax.Expr | None,
    mean: relax.Expr,
    var: relax.Expr,
    momentum: float,
    eps: float,
) -> list[Any]:
    """Batch norm on running statistics: ``(x − mean) / √(var + eps) · weight + bias``."""
    channels = sizes_of(mean)
    out = t.emit(
        relax.op.nn.batch_norm(
            x,
            _vector(t, weight, channels, 1.0, x),
            _vector(t, bias, channels, 0.0, x),
            mean,
            var,
            axis=1,
            epsilon=eps,
            momentum=momentum,
            training=False,
        )
    )
    return [t.emit(out[0]), None, None]


@_register(
    "_native_batch_norm_legit.default",
    "_native_batch_norm_legit_functional.default",
    "native_batch_norm.default",
)
def _batch_norm_training(t: Translator, *_: Any) -> None:
    raise Unsupported(
        "batch norm on batch statistics; export the model in eval mode, with running statistics"
    )


def _normalised(
    t: Translator, x: relax.Expr, axes: list[int], eps: float, count: int
) -> relax.Expr:
    """``(x − mean) / √(var + eps)`` over axes, two passes, in the dtype of x."""
    dtype = str(x.ty.dtype)
    scale = t.const(1.0 / count, dtype)
    mean = t.emit(relax.op.multiply(relax.op.sum(x, axes, keepdims=True), scale))
    centred = t.emit(relax.op.subtract(x, mean))
    square = relax.op.sum(relax.op.multiply(centred, centred), axes, keepdims=True)
    var = t.emit(relax.op.multiply(square, scale))
    std = relax.op.sqrt(relax.op.add(var, t.const(eps, dtype)))
    return t.emit(relax.op.divide(centred, std))


def _affine(
    t: Translator, x: relax.Expr, weight: Any, bias: Any, shape: list[Any] | None
) -> relax.Expr:
    if weight is not None:
        weight = weight if shape is None else t.reshape(weight, shape)
        x = t.emit(relax.op.multiply(x, weight))
    if bias is not None:
        bias = bias if shape is None else t.reshape(bias, shape)
        x = t.emit(relax.op.add(x, bias))
    return x


@_register("native_layer_norm.default")
def _layer_norm(
    t: Translator, x: relax.Expr, shape: list[int], weight: Any, bias: Any, eps: float
) -> list[Any]:
    axes = list(range(len(sizes_of(x)) - len(shape), len(sizes_of(x))))
    y = _normalised(t, x, axes, eps, int(np.prod(shape)))
    return [_affine(t, y, weight, bias, None), None, None]


@_register("native_group_norm.default")
def _group_norm(
    t: Translator,
    x: relax.Expr,
    weight: Any,
    bias: Any,
    batch: Any,
    channels: int,
    area: int,
    groups: int,
    eps: float,
) -> list[Any]:
    sizes = sizes_of(x)
    if not isinstance(area, int):
        raise Unsupported("group norm over a size that varies with the batch")
    y = t.reshape(x, [sizes[0], groups, channels // groups * area])
    y = t.reshape(_normalised(t, y, [2], eps, channels // groups * area), sizes)
    return [_affine(t, y, weight, bias, [1, channels] + [1] * (len(sizes) - 2)), None, None]


@_register("instance_norm.default")
def _instance_norm(
    t: Translator,
    x: relax.Expr,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    _: bool,
) -> relax.Expr:
    sizes = sizes_of(x)
    shape = [1, sizes[1]] + [1] * (len(sizes) - 2)
    if not use_input_stats:
        std = relax.op.sqrt(relax.op.add(var, t.const(eps, t.out_dtype)))
        y = t.emit(
            relax.op.divide(
                relax.op.subtract(x, t.reshape(mean, shape)), t.reshape(t.emit(std), shape)
            )
        )
    else:
        if not all(isinstance(s, int) for s in sizes[2:]):
            raise Unsupported("instance norm over a size that varies with the batch")
        y = _normalised(t, x, list(range(2, len(sizes))), eps, int(np.prod(sizes[2:])))
    return _affine(t, y, weight, bias, shape)


# -- softmax ------------------------------------------------------------------------------------


@_register("_softmax.default", "softmax.int")
def _softmax(t: Translator, x: relax.Expr, dim: int, *_: Any) -> relax.Expr:
    return t.emit(relax.op.nn.softmax(t.cast(x, t.out_dtype), dim))


@_register("_log_softmax.default", "log_softmax.int")
def _log_softmax(t: Translator, x: relax.Expr, dim: int, *_: Any) -> relax.Expr:
    return t.emit(relax.op.nn.log_softmax(t.cast(x, t.out_dtype), dim))


@_register("prelu.default", "_prelu_kernel.default")
def _prelu(t: Translator, x: relax.Expr, weight: relax.Expr) -> relax.Expr:
    sizes, n = sizes_of(x), sizes_of(weight)
    if len(n) == 1 and len(sizes) > 1:
        weight = t.reshape(weight, [1, n[0]] + [1] * (len(sizes) - 2))
    low = relax.op.multiply(x, weight)
    return t.emit(relax.op.where(relax.op.greater(x, t.const(0, t.out_dtype)), x, low))


# -- resampling ---------------------------------------------------------------------------------


def _scaled_sizes(t: Translator, x: relax.Expr) -> tuple[list[int], list[int]]:
    rank = len(sizes_of(x)) - 2
    old, new = sizes_of(x)[-rank:], t.out_shape[-rank:]
    if not all(isinstance(s, int) for s in [*old, *new]):
        raise Unsupported("resampling along a size that varies with the batch")
    return old, new


def _nearest(exact: bool) -> Callable[..., Any]:
    mode = "nearest-exact" if exact else "nearest"

    def convert(t: Translator, x: relax.Expr, _: Any, scales: Any = None, *more: Any) -> Any:
        old, new = _scaled_sizes(t, x)
        factors = _factors([scales, *more], len(old))
        dtype = t.val().dtype
        for axis, (a, b, s) in enumerate(zip(old, new, factors, strict=True), start=2):
            # the positions that PyTorch itself reads
            line = torch.arange(a, dtype=dtype)[None, None]
            how = {"size": b} if s is None else {"scale_factor": s}
            index = torch.nn.functional.interpolate(line, mode=mode, **how)[0, 0].long().numpy()
            if b % a == 0 and (index == np.arange(b) // (b // a)).all():
                x = x if b == a else t.emit(relax.op.repeat(x, b // a, axis))
            else:
                x = t.emit(relax.op.take(x, t.const(index, "int64"), axis, mode="clip"))
        return x

    return convert


def _factors(scales: list[Any], rank: int) -> list[float | None]:
    flat = scales[0] if isinstance(scales[0], list | tuple) else scales
    flat = [s for s in flat if s is None or isinstance(s, float)][:rank]
    return [*flat, *[None] * (rank - len(flat))]


def _linear_resample(mode: str) -> Callable[..., Any]:
    def convert(
        t: Translator, x: relax.Expr, _: Any, align: bool, scales: Any = None, *more: Any
    ) -> Any:
        old, new = _scaled_sizes(t, x)
        factors = _factors([scales, *more], len(old))
        rank = len(sizes_of(x))
        for axis, (a, b, s) in enumerate(zip(old, new, factors, strict=True), start=2):
            how = {"size": b} if s is None else {"scale_factor": s}
            lines = torch.eye(a, dtype=torch.float64)[:, None]  # one column of the matrix each
            matrix = torch.nn.functional.interpolate(lines, mode=mode, align_corners=align, **how)[
                :, 0
            ]
            order = [i for i in range(rank) if i != axis] + [axis]
            back = [order.index(i) for i in range(rank)]
            y = relax.op.matmul(
                relax.op.permute_dims(x, order), t.const(matrix.numpy(), t.out_dtype)
            )
            x = t.emit(relax.op.permute_dims(y, back))
        return x

    return convert


for _rank in (1, 2, 3):
    for _overload in ("vec", "default"):
        CONVERTERS[f"upsample_nearest{_rank}d.{_overload}"] = _nearest(False)
        CONVERTERS[f"_upsample_nearest_exact{_rank}d.{_overload}"] = _nearest(True)
for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"):
    for _overload in ("vec", "default"):
        CONVERTERS[f"{_name}.{_overload}"] = _linear_resample("linear")


@_register("pixel_shuffle.default")
def _pixel_shuffle(t: Translator, x: relax.Expr, factor: int) -> relax.Expr:
    n, c, h, w = sizes_of(x)
    y = t.reshape(x, [n, c // factor**2, factor, factor, h, w])
    y = t.emit(relax.op.permute_dims(y, [0, 1, 4, 2, 5, 3]))
    return t.reshape(y, t.out_shape)
