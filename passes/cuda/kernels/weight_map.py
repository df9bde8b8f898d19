"""Weights of convolutions from parameters, and gradients the way back: a thread an element."""

from __future__ import annotations

from math import prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.tir.body import i64, load, splat
from ttsnn.passes.tir.finished import finished
from ttsnn.passes.training_kernels.weight_map import WeightMap

__all__ = ["core_grads", "tap_weight"]


def tap_weight(
    map_: WeightMap, channels: tuple[int, int], dtype: str, transposed: bool
) -> PrimFunc:
    """The function (sources…, w [taps, *channels]).

    Args:
        map_: how taps are made.
        channels: of w, at least the map's (Cin, Cout), or (Cout, Cin) if ``transposed``; the rest
            is zero.
        dtype: of all.
        transposed: whether Cin and Cout are exchanged, as the gradient to the input wants it.
    """
    b = CudaBody()
    taps, (first, second) = len(map_.taps), channels
    out = tirx.decl_buffer([i64(s) for s in (taps, *channels)], dtype, "w")
    params = [*map_.declare(dtype), out]
    *sources, flat = (b.view(p, prod(p.shape), dtype, f"{p.name}_flat") for p in params)
    real_in, real_out = map_.channels
    with b.each(taps * first * second) as item:
        major, minor = b.bind(item // second % first, "major"), b.bind(item % second, "minor")
        ci, co = (minor, major) if transposed else (major, minor)
        inside = tirx.all(ci < real_in, co < real_out)
        held = b.alloc(1, dtype, "held", "local")
        b.store(held, splat(0.0, dtype, 1), b.at(0))
        for k in range(taps):
            with b.when(tirx.all(inside, tirx.EQ(item // (first * second), b.at(k)))):
                b.store(held, map_.element(sources, k, ci, co, dtype), b.at(0))
        b.store(flat, load(held, b.at(0)), item)
    return finished(b, params, "tap_weight")


def core_grads(map_: WeightMap, channels: tuple[int, int], dtype: str) -> PrimFunc:
    """The function (dw [taps, *channels], gradients of the sources…): the inverse direction.

    Args:
        map_: how taps are made of the sources.
        channels: (Cin, Cout) of dw, at least those of the map.
        dtype: of all.
    """
    b = CudaBody()
    cin, cout = channels
    dw = tirx.decl_buffer([i64(s) for s in (len(map_.taps), cin, cout)], dtype, "dw")
    outs = map_.declare(dtype)
    grad = b.view(dw, prod(dw.shape), dtype, "dw_flat")
    for index, (out, sizes) in enumerate(zip(outs, map_.shapes)):
        kernel = prod(sizes[2:])
        target = b.view(out, prod(sizes), dtype, f"out{index}")
        with b.each(prod(sizes)) as item:
            j = b.bind(item % kernel, "j")
            ci = b.bind(item // kernel % sizes[1], "ci")
            co = b.bind(item // (kernel * sizes[1]), "co")
            held = b.alloc(1, dtype, "held", "local")
            b.store(held, splat(0.0, dtype, 1), b.at(0))
            for k, tap in enumerate(map_.taps):
                for source, element in tap:
                    if source == index:
                        with b.when(tirx.EQ(j, b.at(element))):
                            value: Expr = load(grad, k * (cin * cout) + ci * cout + co)
                            b.store(held, load(held, b.at(0)) + value, b.at(0))
            value = load(held, b.at(0))
            b.store(target, value if map_.scale == 1.0 else value * map_.scale, item)
    return finished(b, [dw, *outs], "core_grads")
