"""The neuron alone: a thread for each, over all timesteps, its membrane in a register."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm.ir import Expr
from tvm.tirx import IntImm, PrimFunc, Var

from ttsnn.lif_attrs import LifAttrs
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.tir.body import i64, load
from ttsnn.passes.tir.neuron import lif_step

__all__ = ["lif_function"]


def lif_function(attrs: LifAttrs, params: Sequence[Var], name: str) -> PrimFunc:
    """A function equal to the reference of ``relax.snn.lif``.

    Args:
        attrs: the neuron.
        params: buffers x [T, N, …], v0 [N, …], operands that broadcast to v0, spikes [T, N, …],
            v_last [N, …]; they become the function's own.
        name: name of the function.
    """
    x, v0, *operands, spikes, v_last = params
    dtype = str(x.dtype)
    steps, sizes = int(x.shape[0]), list(v0.shape)
    count = prod(sizes, start=i64(1))
    known = all(isinstance(s, IntImm) for s in sizes)
    b = CudaBody(steps * prod(int(s) for s in sizes) if known else None)

    def flat(buffer: Var, label: str) -> Var:
        return b.view(buffer, prod(buffer.shape, start=i64(1)), dtype, label)

    xs, first, out, last = (flat(v, f"flat{i}") for i, v in enumerate((x, v0, spikes, v_last)))
    sides = [(flat(v, f"operand{i}"), list(v.shape)) for i, v in enumerate(operands)]
    total = b.narrow(prod(int(s) for s in sizes) if known else count)
    with b.each(total) as at:
        values = [load(buffer, _place(b, own, sizes, at)) for buffer, own in sides]
        values = [b.bind(value, "side") for value in values]
        decay = values[0] if attrs.decay_operand else None
        threshold = values[-1] if attrs.threshold_operand else None
        v = b.alloc(1, dtype, "v", "local")
        b.store(v, load(first, at), b.at(0))
        with b.loop(steps, "t") as t:
            where = b.bind(t * total + at, "at_t")
            value = b.bind(load(xs, where), "x_t")
            before = b.bind(load(v, b.at(0)), "v_t")
            s, after = lif_step(attrs, value, before, dtype, 1, decay=decay, threshold=threshold)
            b.store(out, s, where)
            b.store(v, after, b.at(0))
        b.store(last, load(v, b.at(0)), at)
    return b.function(params, name, {"op_pattern": 8})


def _place(b: CudaBody, own: list[Expr], sizes: list[Expr], at: Expr) -> Expr:
    """Index into an operand of shape ``own`` that belongs to element ``at`` of ``sizes``."""
    own = [i64(1)] * (len(sizes) - len(own)) + own
    index, stride, below = b.at(0), b.at(1), b.at(1)
    for size, mine in reversed(list(zip(sizes, own))):
        if not (isinstance(mine, IntImm) and int(mine) == 1):
            index = index + (at // below) % b.narrow(size) * stride
            stride = stride * b.narrow(mine)
        below = below * b.narrow(size)
    return index
