"""Gradient of max pooling that reads nothing outside its arrays.

TVM's own looks at windows behind the last one where windows overlap, and throws the value away; on
a GPU such a read can fault.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from tvm import relax, te, tirx
from tvm.ir import Expr

from ttsnn.passes.shapes import known_dims

__all__ = ["max_pool2d_backward"]


def max_pool2d_backward(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Legalisation of ``relax.grad.max_pool2d_backward(dy, x)``; static sizes.

    Of equal values in a window the first one gets the gradient, as in PyTorch.
    """
    a = call.attrs
    layout = str(a.layout)
    axes = layout.index("H"), layout.index("W")
    pool, strides, dilation = (
        [int(v) for v in values] for values in (a.pool_size, a.strides, a.dilation)
    )
    first = [int(v) for v in a.padding][:2]
    sizes = [known_dims(call.args[1])[i] for i in axes]
    windows = [known_dims(call.args[0])[i] for i in axes]

    def gradient(dy: Any, x: Any) -> Any:
        winner = _winners(x, dy.shape, axes, pool, strides, dilation, first, sizes)
        # windows that an element can be in, counted back from the last that begins before it
        counts = [ceil(((p - 1) * d + 1) / s) for p, d, s in zip(pool, dilation, strides)]
        back = [te.reduce_axis((0, n), f"w{i}") for i, n in enumerate(counts)]

        def element(*index: Expr) -> Expr:
            at, inside, place = list(index), [], []
            for i, axis in enumerate(axes):
                padded = index[axis] + first[i]
                window = padded // strides[i] - back[i]
                offset = padded - window * strides[i]
                inside += [window >= 0, window < windows[i], offset < pool[i] * dilation[i]]
                if dilation[i] > 1:
                    inside.append(tirx.EQ(offset % dilation[i], tirx.const(0, "int64")))
                at[axis] = window
                place.append(offset // dilation[i])
            zero = tirx.const(0.0, str(dy.dtype))
            won = tirx.EQ(winner(*at), (place[0] * pool[1] + place[1]).astype("int32"))
            value = tirx.if_then_else(won, dy(*at), zero)
            return te.sum(tirx.if_then_else(tirx.all(*inside), value, zero), axis=back)

        return te.compute(x.shape, element, name="max_pool2d_backward")

    return bb.call_te(gradient, *call.args, primfunc_name_hint="max_pool2d_backward")


def _winners(
    x: Any,
    shape: Any,
    axes: tuple[int, int],
    pool: list[int],
    strides: list[int],
    dilation: list[int],
    first: list[int],
    sizes: list[int],
) -> Any:
    """Which element of each window is the largest, int32: row · width + column."""

    def better(a: Any, b: Any) -> Any:
        keep = tirx.any(a[1] > b[1], tirx.all(tirx.EQ(a[1], b[1]), a[0] < b[0]))
        return tuple(tirx.Select(keep, a[i], b[i]) for i in range(2))

    def nothing(place: str, value: str) -> Any:
        return tirx.const(1 << 30, place), tirx.min_value(value)

    argmax = te.comm_reducer(better, nothing, name="argmax")
    inner = [te.reduce_axis((0, n), f"k{i}") for i, n in enumerate(pool)]

    def element(*index: Expr) -> Any:
        at, inside = list(index), []
        for i, axis in enumerate(axes):
            at[axis] = index[axis] * strides[i] + inner[i] * dilation[i] - first[i]
            inside += [at[axis] >= 0, at[axis] < sizes[i]]
        lowest = tirx.min_value(str(x.dtype))
        value = tirx.if_then_else(tirx.all(*inside), x(*at), lowest)
        place = (inner[0] * pool[1] + inner[1]).astype("int32")
        return argmax((place, value), axis=inner)

    return te.compute(shape, element, name="winners")[0]
