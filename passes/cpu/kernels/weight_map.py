"""Weights of training kernels: from parameters to packed weights, and gradients the way back.

Training changes weights in every step, so what inference does once with NumPy are kernels here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod
from operator import itemgetter

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from ttsnn.passes.layers.panels import packed_channels, panels
from ttsnn.passes.tir.body import Body, i64, load, splat
from ttsnn.passes.tir.finished import finished
from ttsnn.passes.training_kernels.weight_map import WeightMap

__all__ = ["core_grads", "packed_weight"]

PARALLEL_FROM = 16384


def packed_weight(
    map_: WeightMap,
    channels: tuple[int, int],
    dtype: str,
    packing: tuple[int, int],
    transposed: bool,
    order: Sequence[int] | None = None,
) -> PrimFunc:
    """The function (sources…, packed): parameters to the weight that a layer's kernel reads.

    Args:
        map_: how taps are made.
        channels: (Cin, Cout) of the packed weight, at least those of the map; the rest is zero.
        dtype: of all.
        packing: (lanes, most vectors in a panel).
        transposed: exchange Cin and Cout, as the gradient to the input wants it; ``channels``
            are those after the exchange.
        order: taps of the packed weight, as indices into ``map_.taps``; None for all in order.
    """
    order = range(len(map_.taps)) if order is None else order
    b = Body()
    cin, cout = channels
    lanes, vectors = packing
    size = len(order) * cin * packed_channels(cout, lanes)
    params = [*map_.declare(dtype), tirx.decl_buffer((i64(size),), dtype, "packed")]
    sources = [b.view(p, prod(s), dtype, f"{p.name}_flat") for p, s in zip(params, map_.shapes)]
    real_in, real_out = map_.channels[::-1] if transposed else map_.channels
    kind = "parallel" if size >= PARALLEL_FROM else "serial"
    with b.loop(cin, "ci", kind) as ci:
        # a loop over the panels of one width: LLVM takes minutes over hundreds of them in a row
        for width, group in groupby(panels(cout, lanes, vectors), key=itemgetter(1)):
            starts = [start for start, _ in group]
            with b.loop(len(starts), "panel") as panel:
                start = b.bind(starts[0] + panel * width, "start")
                for k, tap in enumerate(order):
                    base = b.bind(start * (len(order) * cin) + (k * cin + ci) * width, "at")
                    with b.loop(width, "co") as c:
                        co = start + c
                        a, o = (co, ci) if transposed else (ci, co)
                        value = map_.element(sources, tap, a, o, dtype)
                        real = tirx.all(ci < real_in, co < real_out)
                        if (real_in, real_out) != (cin, packed_channels(cout, lanes)):
                            value = tirx.if_then_else(real, value, splat(0.0, dtype, 1))
                        b.store(params[-1], value, base + c)
    return finished(b, params, "pack_weight")


def core_grads(map_: WeightMap, channels: tuple[int, int], dtype: str) -> PrimFunc:
    """The function (dw [taps, *channels], gradients of the sources…): the inverse direction.

    Args:
        map_: how taps are made of the sources.
        channels: (Cin, Cout) of dw, at least those of the map.
        dtype: of all.
    """
    b = Body()
    cin, cout = channels
    shape = [i64(s) for s in (len(map_.taps), cin, cout)]
    dw = tirx.decl_buffer(shape, dtype, "dw")
    outs = map_.declare(dtype)
    flat = b.view(dw, len(map_.taps) * cin * cout, dtype, "dw_flat")
    for index, (out, sizes) in enumerate(zip(outs, map_.shapes)):
        kernel = prod(sizes[2:])
        target = b.view(out, prod(sizes), dtype, f"out{index}")
        kind = "parallel" if prod(sizes) >= PARALLEL_FROM else "serial"
        with b.loop(sizes[0], "co", kind) as co, b.loop(sizes[1], "ci") as ci:
            base = b.bind((co * sizes[1] + ci) * kernel, "at")
            for j in range(kernel):
                total: Expr = splat(0.0, dtype, 1)
                for k, tap in enumerate(map_.taps):
                    for _ in range(tap.count((index, j))):
                        total = total + load(flat, k * (cin * cout) + ci * cout + co)
                if map_.scale != 1.0:
                    total = splat(map_.scale, dtype, 1) * total
                b.store(target, total, base + j)
    return finished(b, [dw, *outs], "core_grads")
