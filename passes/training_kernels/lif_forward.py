"""The neuron in training, channels last: forward, with what comes before it in the same pass.

That is a batch norm, and an addition after the batch norm. Spikes are stored as bytes where that
is asked for. :mod:`ttsnn.lif_attrs` has the equations.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.ir import Expr
from tvm.tirx import PrimFunc

from ttsnn.lif_attrs import LifAttrs
from ttsnn.passes.tir.body import as_vector, load, splat, vector
from ttsnn.passes.tir.neuron import lif_step
from ttsnn.passes.training_kernels.arrays import Arrays
from ttsnn.passes.training_kernels.batch_norm import Normaliser

__all__ = ["SPIKE_BYTES", "TrainedNeuron", "lif_train_forward"]

SPIKE_BYTES = "uint8"
"""dtype of spikes that are stored as bytes."""


@dataclass(frozen=True)
class TrainedNeuron:
    """What a kernel of a neuron computes.

    Attributes:
        attrs: the neuron, without tensor operands.
        steps: T; the arrays' first axes hold T · N images.
        norm: whether a batch norm comes before the neuron (and after it, backwards).
        side: forwards, whether a tensor is added before the neuron, after the batch norm;
            backwards, whether one is added to the gradient.
        membrane: whether what enters the neuron is a result; forwards only.
        compact: whether the spikes are stored as bytes; forwards only.
        v0: whether it starts from an operand [1, N, H, W, C] instead of zero.
        v_last: whether the last membrane is a result; backwards, whether it has a gradient.
        dv0: whether the gradient of v0 is a result.
        sums: backwards, the batch norm whose parameters' gradients are results: ``"own"``, the
            one of ``norm``, ``"other"``, one that got the same gradient, or none (``""``).
        dx: backwards, which gradient is a result: that of what enters the neuron, with a batch
            norm that of its ``"result"``; that of the batch norm's ``"input"``; or none (``""``).
    """

    attrs: LifAttrs
    steps: int
    norm: bool = False
    side: bool = False
    membrane: bool = False
    compact: bool = False
    v0: bool = False
    v_last: bool = False
    dv0: bool = False
    sums: str = ""
    dx: str = "result"


def lif_train_forward(neuron: TrainedNeuron, a: Arrays) -> PrimFunc:
    """The function (x[, gamma, beta, mean, rstd][, side][, v0], spikes[, membrane][, v_last]).

    Args:
        neuron: what to compute.
        a: arrays of x's shape [1, T · N, H, W, C].
    """
    b, dtype = a.b, a.dtype
    x = a.image("x")
    norm = Normaliser(a) if neuron.norm else None
    side = a.image("side") if neuron.side else None
    v0 = a.state("v0") if neuron.v0 else None
    spikes = a.image("spikes", SPIKE_BYTES if neuron.compact else None)
    membrane = a.image("membrane") if neuron.membrane else None
    v_last = a.state("v_last") if neuron.v_last else None

    def element(at: Expr, c: Expr, lanes: int) -> None:
        v = a.local("v", lanes)
        v.set(splat(0.0, dtype, lanes) if v0 is None else load(v0, vector(at, lanes)))
        with b.loop(a.steps, "t", a.kind) as t:
            where = vector(at + t * a.step, lanes)
            value = load(x, where)
            value = value if norm is None else norm(value, c, lanes)
            value = b.bind(value if side is None else value + load(side, where), "m")
            if membrane is not None:
                b.store(membrane, value, where)
            before = b.bind(v.get(), "before")
            s, after = lif_step(neuron.attrs, value, before, dtype, lanes)
            if neuron.compact:
                s = s.astype(as_vector(SPIKE_BYTES, lanes))
            b.store(spikes, s, where)
            v.set(after)
        if v_last is not None:
            b.store(v_last, v.get(), vector(at, lanes))

    a.stream(element)
    return a.finish("lif_forward")
