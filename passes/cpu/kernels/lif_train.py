"""The neuron in training, channels last: forward and backward, with a batch norm before it.

The backward recomputes the membranes of all timesteps in registers, from the same inputs that the
forward had: nothing but the convolution's result is kept. :mod:`ttsnn.lif_attrs` has the
equations.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.lif_attrs import LifAttrs
from ttsnn.ops.legalize_lif import NeuronEquations
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.batch_norm import Arrays, Normaliser, Shape
from ttsnn.passes.cpu.kernels.finished import finished
from ttsnn.passes.cpu.kernels.neuron import lif_step
from ttsnn.passes.cpu.kernels.stream import stream
from ttsnn.passes.cpu.kernels.tir import Body, i64, load, splat, vector

__all__ = ["TrainedNeuron", "lif_train_backward", "lif_train_forward"]

UNROLLED_STEPS = 8
"""Timesteps up to which the loops over time are unrolled, so that membranes stay in registers."""


@dataclass(frozen=True)
class TrainedNeuron:
    """What a kernel of a neuron computes.

    Attributes:
        attrs: the neuron, without tensor operands.
        steps: T; the arrays' first axes hold T · N images.
        norm: whether a batch norm comes before the neuron (and after it, backwards).
        v0: whether it starts from an operand [1, N, H, W, C] instead of zero.
        v_last: whether the last membrane is a result; backwards, whether it has a gradient.
        dv0: whether the gradient of v0 is a result.
    """

    attrs: LifAttrs
    steps: int
    norm: bool = False
    v0: bool = False
    v_last: bool = False
    dv0: bool = False


class _Arrays(Arrays):
    """Arrays over time, and arrays of one timestep."""

    def __init__(self, shape: Shape, neuron: TrainedNeuron, dtype: str, isa: Isa) -> None:
        super().__init__(shape, dtype, isa)
        self.pixels //= neuron.steps
        self.step = self.pixels * self.channels
        self.steps = neuron.steps
        self.kind = "unrolled" if neuron.steps <= UNROLLED_STEPS else "serial"

    def image(self, name: str) -> Var:
        """An argument with time."""
        return self._argument(name, self.shape, self.step * self.steps)

    def state(self, name: str) -> Var:
        """An argument of one timestep."""
        shape = (self.shape[0], self.shape[1] // self.steps, *self.shape[2:])
        return self._argument(name, shape, self.step)

    def _argument(self, name: str, shape: Shape, size: int) -> Var:
        buffer = tirx.decl_buffer([i64(s) for s in shape], self.dtype, name)
        self.params.append(buffer)
        return self.b.view(buffer, size, self.dtype, f"{name}_flat")

    def local(self, name: str, lanes: int, steps: int = 1) -> _Local:
        """A vector for each timestep, in registers where time is unrolled."""
        return _Local(self.b, self.b.alloc(steps * lanes, self.dtype, name, scope="local"), lanes)


@dataclass(frozen=True)
class _Local:
    b: Body
    buffer: Var
    lanes: int

    def get(self, t: Expr | int = 0) -> Expr:
        return load(self.buffer, vector(t * self.lanes, self.lanes))

    def set(self, value: Expr, t: Expr | int = 0) -> None:
        self.b.store(self.buffer, value, vector(t * self.lanes, self.lanes))

    def add(self, value: Expr) -> None:
        self.set(self.get() + value)


def lif_train_forward(neuron: TrainedNeuron, shape: Shape, dtype: str, isa: Isa) -> PrimFunc:
    """The function (x[, gamma, beta, mean, rstd][, v0], spikes[, v_last]).

    Args:
        neuron: what to compute.
        shape: of x [1, T · N, H, W, C].
        dtype: of all arguments.
        isa: vector width.
    """
    a = _Arrays(shape, neuron, dtype, isa)
    b = a.b
    x = a.image("x")
    norm = Normaliser(a) if neuron.norm else None
    v0 = a.state("v0") if neuron.v0 else None
    spikes = a.image("spikes")
    v_last = a.state("v_last") if neuron.v_last else None

    def element(at: Expr, c: Expr, lanes: int) -> None:
        v = a.local("v", lanes)
        v.set(splat(0.0, dtype, lanes) if v0 is None else load(v0, vector(at, lanes)))
        with b.loop(a.steps, "t", a.kind) as t:
            where = vector(at + t * a.step, lanes)
            value = load(x, where)
            value = b.bind(value if norm is None else norm(value, c, lanes), "m")
            before = b.bind(v.get(), "before")
            s, after = lif_step(neuron.attrs, value, before, dtype, lanes)
            b.store(spikes, s, where)
            v.set(after)
        if v_last is not None:
            b.store(v_last, v.get(), vector(at, lanes))

    stream(b, a.pixels, a.channels, a.lanes, element)
    return finished(b, a.params, "lif_forward")


def lif_train_backward(neuron: TrainedNeuron, shape: Shape, dtype: str, isa: Isa) -> PrimFunc:
    """The function (x[, gamma, beta, mean, rstd][, v0], dspikes[, dv_last], dx[, dv0]).

    dx is the gradient of what enters the neuron: with a batch norm that of its result.
    """
    a = _Arrays(shape, neuron, dtype, isa)
    b, attrs = a.b, neuron.attrs
    x = a.image("x")
    norm = Normaliser(a) if neuron.norm else None
    v0 = a.state("v0") if neuron.v0 else None
    dspikes = a.image("dspikes")
    dv_last = a.state("dv_last") if neuron.v_last else None
    dx = a.image("dx")
    dv0 = a.state("dv0") if neuron.dv0 else None
    timing = attrs.reset_timing

    def element(at: Expr, c: Expr, lanes: int) -> None:
        def const(value: float) -> Expr:
            return splat(value, dtype, lanes)

        eq = NeuronEquations(attrs, const(attrs.decay), const(attrs.v_threshold))
        v = a.local("v", lanes, a.steps + 1)
        m, h0, h = (a.local(name, lanes, a.steps) for name in ("m", "h0", "h"))
        gv, gs, gh = (a.local(name, lanes) for name in ("gv", "gs", "gh"))
        v.set(const(0.0) if v0 is None else load(v0, vector(at, lanes)))
        with b.loop(a.steps, "t", a.kind) as t:
            value = load(x, vector(at + t * a.step, lanes))
            m.set(value if norm is None else norm(value, c, lanes), t)
            start = v.get(t)
            fired = eq.fires(start)
            if timing == "before_decay":
                start = eq.reset(start, fired)
            h0.set(eq.update(start, m.get(t)), t)
            h.set(eq.reset(h0.get(t), fired) if timing == "after_decay" else h0.get(t), t)
            after = h.get(t)
            v.set(eq.reset(after, eq.fires(after)) if timing == "after_fire" else after, t + 1)
        gv.set(const(0.0) if dv_last is None else load(dv_last, vector(at, lanes)))
        with b.loop(a.steps, "back", a.kind) as back:
            t = a.steps - 1 - back
            where = vector(at + t * a.step, lanes)
            slope = b.bind(eq.surrogate(h.get(t)), "slope")
            gs.set(load(dspikes, where))
            gh.set(gv.get())
            if timing == "after_fire":
                to_a, to_s, _ = eq.reset_back(h.get(t), eq.fires(h.get(t)), gv.get())
                gh.set(to_a)
                if not attrs.detach_reset:
                    gs.add(to_s)
            gh.add(gs.get() * slope)
            # from here on gs is the gradient of the spike of the step before
            gs.set(const(0.0))
            fired = eq.fires(v.get(t))
            if timing == "after_decay":
                to_a, to_s, _ = eq.reset_back(h0.get(t), fired, gh.get())
                gs.set(to_s)
                gh.set(to_a)
            start = eq.reset(v.get(t), fired) if timing == "before_decay" else v.get(t)
            to_v, to_x, _ = eq.update_back(start, m.get(t), gh.get())
            b.store(dx, to_x, where)
            gv.set(to_v)
            if timing == "before_decay":
                to_a, to_s, _ = eq.reset_back(v.get(t), fired, gv.get())
                gs.set(to_s)
                gv.set(to_a)
            if timing != "after_fire" and not attrs.detach_reset:
                gv.add(gs.get() * eq.surrogate(v.get(t)))
        if dv0 is not None:
            b.store(dv0, gv.get(), vector(at, lanes))

    stream(b, a.pixels, a.channels, a.lanes, element)
    return finished(b, a.params, "lif_backward")
