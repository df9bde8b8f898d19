"""The neuron alone: vectors of neighbouring neurons in parallel, each over all timesteps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import IntImm, PrimFunc, Var

from ttsnn.lif_attrs import LifAttrs
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.tir.body import Body, at_most, i64, load, splat, vector
from ttsnn.passes.tir.neuron import lif_step

__all__ = ["lif_function"]

UNIT = 4096
"""Neurons in a unit of parallel work: a few microseconds."""


def lif_function(attrs: LifAttrs, params: Sequence[Var], isa: Isa, name: str) -> PrimFunc:
    """A function equal to the reference of ``relax.snn.lif``.

    Args:
        attrs: the neuron.
        params: buffers x [T, N, …], v0 [N, …], operands that broadcast to v0, spikes [T, N, …],
            v_last [N, …]; they become the function's own.
        isa: vector width.
        name: name of the function.
    """
    x, v0, *operands, spikes, v_last = params
    dtype = str(x.dtype)
    steps, sizes = int(x.shape[0]), list(v0.shape)
    total = math.prod(sizes, start=i64(1))
    b = Body()

    def flat(buffer: Var, label: str) -> Var:
        return b.view(buffer, math.prod(buffer.shape, start=i64(1)), dtype, label)

    views = [flat(v, f"flat{i}") for i, v in enumerate((x, v0, spikes, v_last))]
    sides = [(flat(v, f"operand{i}"), list(v.shape)) for i, v in enumerate(operands)]

    def neurons(at: Expr, lanes: int) -> None:
        """All timesteps of ``lanes`` neurons from ``at`` on."""
        xs, first, out, last = views
        values = [_broadcast(b, buffer, own, sizes, at, lanes) for buffer, own in sides]
        decay = values[0] if attrs.decay_operand else None
        threshold = values[-1] if attrs.threshold_operand else None
        v = b.alloc(lanes, dtype, "v", scope="local")
        b.store(v, load(first, vector(at, lanes)), vector(0, lanes))
        with b.loop(steps, "t") as t:
            where = vector(b.bind(t * total + at, "at_t"), lanes)
            value = b.bind(load(xs, where), "x_t")
            before = b.bind(load(v, vector(0, lanes)), "v_t")
            s, after = lif_step(
                attrs, value, before, dtype, lanes, decay=decay, threshold=threshold
            )
            b.store(out, s, where)
            b.store(v, after, vector(0, lanes))
        b.store(last, load(v, vector(0, lanes)), vector(at, lanes))

    lanes = isa.lanes(dtype)
    with b.loop((total + (UNIT - 1)) // UNIT, "unit", "parallel") as unit:
        start = b.bind(unit * UNIT, "start")
        count = b.bind(at_most(total - start, UNIT), "count")
        with b.loop(count // lanes, "i") as i:
            neurons(b.bind(start + i * lanes, "at"), lanes)
        with b.loop(count % lanes, "i") as i:
            neurons(b.bind(start + count // lanes * lanes + i, "at"), 1)
    return b.function(params, name, {"op_pattern": 8})


def _broadcast(
    b: Body, buffer: Var, own: list[Expr], sizes: list[Expr], at: Expr, lanes: int
) -> Expr:
    """Elements of an operand for the neurons ``at …``, whose membrane has shape ``sizes``."""
    own = [i64(1)] * (len(sizes) - len(own)) + own
    fixed = [isinstance(o, IntImm) and int(o) == 1 for o in own]
    if all(fixed):
        return b.bind(splat(load(buffer, i64(0)), str(buffer.dtype), lanes), "side")
    if not any(fixed):
        return b.bind(load(buffer, vector(at, lanes)), "side")

    def repeat(value: Expr) -> Expr:
        return value if lanes == 1 else tirx.Broadcast(value, lanes)

    index, stride, below = None, i64(1), i64(1)
    for size, mine, one in reversed(list(zip(sizes, own, fixed))):
        if not one:
            digit = (vector(at, lanes) // repeat(below)) % repeat(i64(size)) * repeat(stride)
            index = digit if index is None else index + digit
            stride = stride * mine
        below = below * size
    return b.bind(load(buffer, index), "side")
