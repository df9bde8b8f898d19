"""Weights of convolutions from parameters, and gradients the way back."""

from __future__ import annotations

from math import ceil, prod

from tvm import tirx
from tvm.tirx import PrimFunc

from ttsnn.passes.cuda.gpu import Gpu
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_load import width_of
from ttsnn.passes.tir.body import i64, load, splat, vector
from ttsnn.passes.tir.finished import finished
from ttsnn.passes.training_kernels.weight_map import WeightMap

__all__ = ["core_grads", "tap_weight"]

COLUMNS = 8
"""Output channels of a thread of ``core_grads``: those of a 32-byte sector, in float32."""


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
    # all taps by one thread: in a parameter they are neighbours
    with b.each(first * second) as item:
        major, minor = b.bind(item // second, "major"), b.bind(item % second, "minor")
        ci, co = (minor, major) if transposed else (major, minor)
        inside = tirx.all(ci < real_in, co < real_out)
        held = b.alloc(1, dtype, "held", "local")
        for k in range(taps):
            b.store(held, splat(0.0, dtype, 1), b.at(0))
            with b.when(inside):
                b.store(held, map_.element(sources, k, ci, co, dtype), b.at(0))
            b.store(flat, load(held, b.at(0)), k * (first * second) + item)
    return finished(b, params, "tap_weight")


def core_grads(map_: WeightMap, channels: tuple[int, int], dtype: str, gpu: Gpu) -> PrimFunc:
    """The function (dw [taps, *channels], gradients of the sources…): the inverse direction.

    A thread has one element for :data:`COLUMNS` output channels: it reads neighbours, and
    neighbouring threads write neighbours.

    Args:
        map_: how taps are made of the sources.
        channels: (Cin, Cout) of dw, at least those of the map.
        dtype: of all.
        gpu: for which GPU.
    """
    b = CudaBody()
    cin, cout = channels
    vec = width_of(cout, gpu.vector(dtype))
    dw = tirx.decl_buffer([i64(s) for s in (len(map_.taps), cin, cout)], dtype, "dw")
    outs = map_.declare(dtype)
    grad = b.view(dw, prod(dw.shape), dtype, "dw_flat")
    for index, (out, sizes) in enumerate(zip(outs, map_.shapes)):
        kernel, row = prod(sizes[2:]), prod(sizes[1:])
        target = b.view(out, prod(sizes), dtype, f"out{index}")
        with b.each(row * ceil(sizes[0] / COLUMNS)) as item:
            at = b.bind(item % row, "at")
            j, ci = b.bind(at % kernel, "j"), b.bind(at // kernel, "ci")
            co = b.bind(item // row * COLUMNS, "co")
            held = b.alloc(COLUMNS, dtype, "held", "local")
            for v in range(0, COLUMNS, vec):
                b.store(held, splat(0.0, dtype, vec), vector(b.at(v), vec))
            for k, tap in enumerate(map_.taps):
                for element in (e for source, e in tap if source == index):
                    with b.when(tirx.EQ(j, b.at(element))):
                        for v in range(0, COLUMNS, vec):
                            with b.when(co + v < cout):
                                place = vector(k * (cin * cout) + ci * cout + co + v, vec)
                                own = vector(b.at(v), vec)
                                b.store(held, load(held, own) + load(grad, place), own)
            for i in range(COLUMNS):
                with b.when(co + i < sizes[0]):
                    value = load(held, b.at(i))
                    value = value if map_.scale == 1.0 else value * map_.scale
                    b.store(target, value, (co + i) * row + at)
    return finished(b, [dw, *outs], "core_grads")
