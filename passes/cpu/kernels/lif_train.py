"""The neuron in training, channels last: forward, with what comes before it in the same pass.

That is a batch norm, and an addition after the batch norm. Spikes are stored as bytes where that
is asked for. :mod:`ttsnn.lif_attrs` has the equations.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.lif_attrs import LifAttrs
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.batch_norm import Arrays, Normaliser, Shape
from ttsnn.passes.cpu.kernels.stream import stream
from ttsnn.passes.tir.body import Body, i64, load, splat, vector
from ttsnn.passes.tir.finished import finished
from ttsnn.passes.tir.neuron import lif_step

__all__ = ["SPIKE_BYTES", "NeuronArrays", "TrainedNeuron", "lif_train_forward"]

SPIKE_BYTES = "uint8"
"""dtype of spikes that are stored as bytes."""

UNROLLED_STEPS = 8
"""Timesteps up to which the loops over time are unrolled, so that membranes stay in registers."""


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


class NeuronArrays(Arrays):
    """Arrays over time, and arrays of one timestep."""

    def __init__(self, shape: Shape, neuron: TrainedNeuron, dtype: str, isa: Isa) -> None:
        super().__init__(shape, dtype, isa)
        self.pixels //= neuron.steps
        self.step = self.pixels * self.channels
        self.steps = neuron.steps
        self.kind = "unrolled" if neuron.steps <= UNROLLED_STEPS else "serial"

    def image(self, name: str, dtype: str | None = None) -> Var:
        """An argument with time."""
        return self._argument(name, self.shape, self.step * self.steps, dtype or self.dtype)

    def state(self, name: str) -> Var:
        """An argument of one timestep."""
        shape = (self.shape[0], self.shape[1] // self.steps, *self.shape[2:])
        return self._argument(name, shape, self.step, self.dtype)

    def _argument(self, name: str, shape: Shape, size: int, dtype: str) -> Var:
        buffer = tirx.decl_buffer([i64(s) for s in shape], dtype, name)
        self.params.append(buffer)
        return self.b.view(buffer, size, dtype, f"{name}_flat")

    def local(
        self, name: str, lanes: int, steps: int = 1, dtype: str | None = None
    ) -> NeuronVector:
        """A vector for each timestep, in registers where time is unrolled."""
        dtype = dtype or self.dtype
        buffer = self.b.alloc(steps * lanes, dtype, name, scope="local")
        return NeuronVector(self.b, buffer, lanes, dtype)


@dataclass(frozen=True)
class NeuronVector:
    """Some neighbouring neurons' values, at one or all timesteps."""

    b: Body
    buffer: Var
    lanes: int
    dtype: str

    @property
    def type(self) -> str:
        """TVM's name of a vector of these."""
        return self.dtype if self.lanes == 1 else f"{self.dtype}x{self.lanes}"

    def get(self, t: Expr | int = 0) -> Expr:
        """The vector at a timestep."""
        return load(self.buffer, vector(t * self.lanes, self.lanes))

    def set(self, value: Expr, t: Expr | int = 0) -> None:
        """Replace it."""
        self.b.store(self.buffer, value, vector(t * self.lanes, self.lanes))

    def add(self, value: Expr) -> None:
        """Add to the first."""
        self.set(self.get() + value)


def lif_train_forward(neuron: TrainedNeuron, shape: Shape, dtype: str, isa: Isa) -> PrimFunc:
    """The function (x[, gamma, beta, mean, rstd][, side][, v0], spikes[, membrane][, v_last]).

    Args:
        neuron: what to compute.
        shape: of x [1, T · N, H, W, C].
        dtype: of all arguments.
        isa: vector width.
    """
    a = NeuronArrays(shape, neuron, dtype, isa)
    b = a.b
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
                s = s.astype(SPIKE_BYTES if lanes == 1 else f"{SPIKE_BYTES}x{lanes}")
            b.store(spikes, s, where)
            v.set(after)
        if v_last is not None:
            b.store(v_last, v.get(), vector(at, lanes))

    stream(b, a.pixels, a.channels, a.lanes, element)
    return finished(b, a.params, "lif_forward")
