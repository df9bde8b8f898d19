"""Reference kernels of ``relax.snn.lif`` and its backward: one block, time the serial loop in it.

The outer loops are the axes of the membrane, so a symbolic batch and any rank work. The backward
recomputes the membrane of all timesteps into local buffers, then walks back through time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as TB

from ttsnn.lif_attrs import LifAttrs, surrogate
from ttsnn.ops.neuron import LIF, LIF_BACKWARD, lif_attrs_of
from ttsnn.ops.registry import register_attr
from ttsnn.ops.types import as_int, dims, known_dims

__all__ = ["ATTRS", "NeuronEquations", "lif_backward_kernel", "lif_kernel"]

ATTRS = "ttsnn.lif"
"""Function attribute with the neuron's attributes as JSON, for targets with their own kernel."""

_TIR = SimpleNamespace(
    exp=tirx.exp,
    abs=tirx.abs,
    where=tirx.Select,
    full_like=lambda u, value: tirx.const(value, u.ty.dtype),
)


@dataclass(frozen=True)
class NeuronEquations:
    """The equations of :mod:`ttsnn.lif_attrs` on TIR expressions, and their derivatives."""

    attrs: LifAttrs
    decay: Any
    threshold: Any

    def fires(self, v: Any) -> Any:
        return v > self.threshold if self.attrs.fire == ">" else v >= self.threshold

    def surrogate(self, v: Any) -> Any:
        return surrogate(self.attrs.surrogate, v - self.threshold, self.attrs.surrogate_width, _TIR)

    def reset(self, a: Any, fired: Any) -> Any:
        if self.attrs.reset == "hard":
            return tirx.Select(fired, tirx.const(self.attrs.v_reset, a.ty.dtype), a)
        if self.attrs.reset == "soft":
            return a - self.spike(fired, a) * self.threshold
        return a

    @staticmethod
    def spike(fired: Any, like: Any) -> Any:
        dtype = like.ty.dtype
        return tirx.Select(fired, tirx.const(1.0, dtype), tirx.const(0.0, dtype))

    def reset_back(self, a: Any, fired: Any, g: Any) -> tuple[Any, Any, Any]:
        """Gradients of reset(a, s): to a, to the spike s, to the threshold."""
        zero = tirx.const(0.0, g.ty.dtype)
        if self.attrs.reset == "hard":
            return tirx.Select(fired, zero, g), g * (self.attrs.v_reset - a), zero
        if self.attrs.reset == "soft":
            return g, -g * self.threshold, -g * self.spike(fired, g)
        return g, zero, zero

    def update(self, v: Any, x: Any) -> Any:
        if self.attrs.form == "multiply":
            return self.decay * v + (x if self.attrs.gain == 1.0 else self.attrs.gain * x)
        leak = v - self.attrs.rest
        if self.attrs.form == "euler":
            return v + self._per_tau(x - leak)
        return v - self._per_tau(leak) + x

    def update_back(self, v: Any, x: Any, g: Any) -> tuple[Any, Any, Any]:
        """Gradients of update(v, x): to v, to x, to the decay operand."""
        if self.attrs.form == "multiply":
            return g * self.decay, g * self.attrs.gain, g * v
        leak = v - self.attrs.rest
        if self.attrs.form == "euler":
            return g - self._per_tau(g), self._per_tau(g), g * (x - leak)
        return g - self._per_tau(g), g, -g * leak

    def _per_tau(self, a: Any) -> Any:
        return a * self.decay if self.attrs.decay_operand else a / self.attrs.tau


class _Builder:
    """What the two kernels share: buffers over the membrane's axes, operands, the neuron."""

    def __init__(self, call: tvm.ir.Call) -> None:
        self.attrs = lif_attrs_of(call)
        x, v0 = call.args[0].ty, call.args[1].ty
        shape = known_dims(call.op.name, "x", x)
        known_dims(call.op.name, "v0", v0)
        self.steps = int(shape[0])
        self.dtype = str(x.dtype)
        # own variables for symbolic sizes: they are bound by the buffers' shapes at run time
        self.sizes = [
            tirx.const(s, "int64") if as_int(s) is not None else tirx.Var(f"n{i}", "int64")
            for i, s in enumerate(shape[1:])
        ]
        flags = (self.attrs.decay_operand, self.attrs.threshold_operand)
        types = [a.ty for a in call.args[2 : 2 + sum(flags)]]
        self.operands = [self._operand_shape(dims(t) or []) for t in types]

    def _operand_shape(self, shape: Sequence[Any]) -> list[Any]:
        own = self.sizes[len(self.sizes) - len(shape) :]
        return [tirx.const(s, "int64") if as_int(s) is not None else n for s, n in zip(shape, own)]

    def buffer(self, name: str, time: bool = False) -> Any:
        shape = [tirx.const(self.steps, "int64"), *self.sizes] if time else self.sizes
        return TB.arg(name, TB.buffer(shape, self.dtype))

    def operand_buffers(self) -> list[Any]:
        return [
            TB.arg(f"operand{i}", TB.buffer(s, self.dtype)) for i, s in enumerate(self.operands)
        ]

    def local(self, name: str, size: int = 1) -> Any:
        buf = TB.sblock_alloc_buffer((size,), self.dtype, scope="local")
        IRBuilder.name(name, buf)
        return buf

    def neuron(self, buffers: Sequence[Any], at: Sequence[Any]) -> NeuronEquations:
        """The neuron at one membrane index, its operands read with broadcasting."""
        values = []
        for buf, shape in zip(buffers, self.operands):
            own = at[len(at) - len(shape) :]
            values.append(buf[tuple(0 if as_int(s) == 1 else i for s, i in zip(shape, own))])
        take = iter(values)
        decay = next(take) if self.attrs.decay_operand else self.attrs.decay
        threshold = next(take) if self.attrs.threshold_operand else None
        if threshold is None:
            threshold = tirx.const(self.attrs.v_threshold, self.dtype)
        return NeuronEquations(self.attrs, decay, threshold)

    def kernel(
        self, name: str, body: Callable[[Any, list[Any]], None], args: Callable[[], Any]
    ) -> Any:
        """The PrimFunc: ``args()`` declares buffers, ``body(buffers, index)`` fills the block."""
        with IRBuilder() as ib, TB.prim_func(is_private=True, s_tir=True):
            TB.func_name(name)
            TB.func_attr({"tirx.noalias": True})
            buffers = args()
            with TB.grid(*self.sizes) as loops, TB.sblock(name):
                loops = [loops] if isinstance(loops, tirx.Var) else list(loops)
                at = TB.axis.remap("S" * len(loops), loops)
                body(buffers, [at] if isinstance(at, tirx.Var) else list(at))
        return ib.get()

    def step(self, neuron: NeuronEquations, vp: Any, x: Any, h0: Any, h: Any, t: Any) -> None:
        """Emit steps 1–3 of the equations: h0[t] after the update, h[t] before the spike."""
        timing = neuron.attrs.reset_timing
        r = neuron.fires(vp)
        start = neuron.reset(vp, r) if timing == "before_decay" else vp
        TB.buffer_store(h0, neuron.update(start, x), [t])
        TB.buffer_store(h, neuron.reset(h0[t], r) if timing == "after_decay" else h0[t], [t])


def lif_kernel(call: tvm.ir.Call) -> tirx.PrimFunc:
    """Kernel of a ``lif`` call: (x, v0, operands…, spikes, v_last)."""
    b = _Builder(call)

    def args() -> Any:
        ins = [b.buffer("x", time=True), b.buffer("v0"), b.operand_buffers()]
        return [*ins, b.buffer("spikes", time=True), b.buffer("v_last")]

    def body(buffers: Any, at: list[Any]) -> None:
        x, v0, operands, spikes, v_last = buffers
        neuron = b.neuron(operands, at)
        v, h0, h = (b.local(name) for name in ("v", "h0", "h"))
        TB.buffer_store(v, v0[tuple(at)], [0])
        with TB.serial(b.steps) as t:
            b.step(neuron, v[0], x[(t, *at)], h0, h, 0)
            fired = neuron.fires(h[0])
            TB.buffer_store(spikes, neuron.spike(fired, h[0]), [t, *at])
            after = b.attrs.reset_timing == "after_fire"
            TB.buffer_store(v, neuron.reset(h[0], fired) if after else h[0], [0])
        TB.buffer_store(v_last, v[0], at)

    return b.kernel("lif", body, args)


def lif_backward_kernel(call: tvm.ir.Call) -> tirx.PrimFunc:
    """Kernel of a ``lif_backward`` call: (x, v0, operands…, dspikes, dv_last, dx, dv0, doperands…).

    The operands' gradients have the membrane's shape: the sum over broadcast axes comes after.
    """
    b = _Builder(call)

    def args() -> Any:
        ins = [b.buffer("x", time=True), b.buffer("v0"), b.operand_buffers()]
        grads = [b.buffer("dspikes", time=True), b.buffer("dv_last")]
        outs = [b.buffer("dx", time=True), b.buffer("dv0")]
        return [*ins, *grads, *outs, [b.buffer(f"doperand{i}") for i in range(len(b.operands))]]

    def body(buffers: Any, at: list[Any]) -> None:
        x, v0, operands, dspikes, dv_last, dx, dv0, doperands = buffers
        neuron = b.neuron(operands, at)
        timing, detach = b.attrs.reset_timing, b.attrs.detach_reset
        steps = b.steps
        vp, h0, h = (b.local(name, steps + 1) for name in ("vp", "h0", "h"))
        gv, gs, gh = (b.local(name) for name in ("gv", "gs", "gh"))
        sums = [b.local(f"sum{i}") for i in range(len(doperands))]

        def accumulate(buf: Any, value: Any) -> None:
            TB.buffer_store(buf, buf[0] + value, [0])

        def to_threshold(value: Any) -> None:
            if b.attrs.threshold_operand:
                accumulate(sums[-1], value)

        TB.buffer_store(vp, v0[tuple(at)], [0])
        with TB.serial(steps) as t:
            b.step(neuron, vp[t], x[(t, *at)], h0, h, t)
            after = neuron.reset(h[t], neuron.fires(h[t])) if timing == "after_fire" else h[t]
            TB.buffer_store(vp, after, [t + 1])

        for buf in sums:
            TB.buffer_store(buf, tirx.const(0.0, b.dtype), [0])
        TB.buffer_store(gv, dv_last[tuple(at)], [0])
        with TB.serial(steps) as back:
            t = steps - 1 - back
            TB.buffer_store(gs, dspikes[(t, *at)], [0])
            TB.buffer_store(gh, gv[0], [0])
            if timing == "after_fire":
                to_a, to_s, to_th = neuron.reset_back(h[t], neuron.fires(h[t]), gv[0])
                TB.buffer_store(gh, to_a, [0])
                to_threshold(to_th)
                if not detach:
                    accumulate(gs, to_s)
            accumulate(gh, gs[0] * neuron.surrogate(h[t]))
            to_threshold(-gs[0] * neuron.surrogate(h[t]))

            # gs now holds the gradient to r, the spike of the step before
            r = neuron.fires(vp[t])
            start = neuron.reset(vp[t], r) if timing == "before_decay" else vp[t]
            if timing == "after_decay":
                to_a, to_s, to_th = neuron.reset_back(h0[t], r, gh[0])
                TB.buffer_store(gs, to_s, [0])
                to_threshold(to_th)
                TB.buffer_store(gh, to_a, [0])
            to_v, to_x, to_decay = neuron.update_back(start, x[(t, *at)], gh[0])
            TB.buffer_store(dx, to_x, [t, *at])
            if b.attrs.decay_operand:
                accumulate(sums[0], to_decay)
            TB.buffer_store(gv, to_v, [0])
            if timing == "before_decay":
                to_a, to_s, to_th = neuron.reset_back(vp[t], r, gv[0])
                TB.buffer_store(gs, to_s, [0])
                to_threshold(to_th)
                TB.buffer_store(gv, to_a, [0])
            if timing != "after_fire" and not detach:
                accumulate(gv, gs[0] * neuron.surrogate(vp[t]))
                to_threshold(-gs[0] * neuron.surrogate(vp[t]))
        TB.buffer_store(dv0, gv[0], at)
        for buf, total in zip(doperands, sums):
            TB.buffer_store(buf, total[0], at)

    return b.kernel("lif_backward", body, args)


def _legalize_lif(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    attrs = json.dumps(lif_attrs_of(call).to_dict())
    # 8: opaque, so that no fusion drops the attribute
    func = lif_kernel(call).with_attr(ATTRS, attrs).with_attr("op_pattern", 8)
    gv = bb.add_func(func, "lif")
    return relax.call_tir(gv, list(call.args), [call.args[0].ty, call.args[1].ty])


def _legalize_lif_backward(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    gv = bb.add_func(lif_backward_kernel(call), "lif_backward")
    operands = list(call.args[:-2])
    x, v0 = (a.ty for a in call.args[:2])
    out = bb.emit(relax.call_tir(gv, list(call.args), [x, v0, *[v0] * (len(operands) - 2)]))
    grads = [relax.TupleGetItem(out, i) for i in range(len(operands))]
    if len(grads) == 2:
        return out
    summed = [bb.emit(_sum_to(bb.emit(g), o.ty)) for g, o in zip(grads[2:], operands[2:])]
    return relax.Tuple([*grads[:2], *summed])


def _sum_to(grad: relax.Expr, ty: relax.TensorType) -> relax.Expr:
    """Sum over the axes along which an operand of type ``ty`` was broadcast."""
    shape = dims(ty) or []
    extra = grad.ty.ndim - len(shape)
    axes = [*range(extra), *(extra + i for i, s in enumerate(shape) if as_int(s) == 1)]
    if not axes:
        return grad
    return relax.op.reshape(relax.op.sum(grad, axis=axes), ty.shape)


register_attr(LIF, "FLegalize", _legalize_lif)
register_attr(LIF_BACKWARD, "FLegalize", _legalize_lif_backward)
