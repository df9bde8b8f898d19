"""Batch norms and neurons over [rows, features]: those of images of one pixel for each row."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tvm import relax

from ttsnn.ops import lif_attrs_of
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.training_kernels.converter import Converter
from ttsnn.passes.training_kernels.lif_forward import TrainedNeuron

__all__ = ["flat_batch_norm", "flat_batch_norm_backward", "flat_lif", "flat_lif_backward"]


def _pixels(c: Converter, expr: relax.Expr) -> relax.Var:
    """Features [..., C] as an image of one pixel for each row."""
    shape = known_dims(expr)
    return c.reshape(c.bind(c.get(expr)), (1, prod(shape[:-1]), 1, 1, shape[-1]))


def flat_batch_norm(c: Converter, call: relax.Call) -> list:
    """``snn.batch_norm_train`` over [rows, features]."""
    x = _pixels(c, call.args[0])
    gamma, beta, *running = (c.get(a) for a in call.args[1:])
    epsilon, momentum = float(call.attrs["epsilon"]), float(call.attrs["momentum"])
    repeats = int(call.attrs["repeats"])
    stats = c.k.batch_norm_stats(x, running, epsilon, momentum, repeats)
    y = c.k.batch_norm_apply(x, (gamma, beta, *stats[2:]))
    return [c.reshape(y, known_dims(call.args[0])), *stats]


def flat_batch_norm_backward(c: Converter, call: relax.Call) -> list:
    """Its gradient."""
    x, dy = _pixels(c, call.args[0]), _pixels(c, call.args[4])
    channel = [c.get(a) for a in call.args[1:4]]
    sums = c.k.batch_norm_sums(x, channel[1:], dy)
    dx = c.k.batch_norm_dx(x, [*channel, dy, *sums])
    return [c.reshape(dx, known_dims(call.args[0])), *sums]


def flat_lif(c: Converter, var: relax.Var, call: relax.Call) -> list:
    """``snn.lif`` over [T, N, features], without tensor operands."""
    neuron, args = _neuron(c, call)
    neuron = replace(neuron, v_last=(var, 1) in c.item_reads)
    spikes, *last = c.k.lif(neuron, args)
    shape = known_dims(call.args[0])
    return [c.reshape(spikes, shape), *(c.reshape(v, shape[1:]) for v in last)]


def flat_lif_backward(c: Converter, var: relax.Var, call: relax.Call) -> list:
    """Its gradient."""
    neuron, args = _neuron(c, call)
    dspikes, dv_last = call.args[2:]
    zero = c.is_zero(dv_last)
    neuron = replace(neuron, v_last=not zero, dv0=(var, 1) in c.item_reads)
    args.append(_pixels(c, dspikes))
    if not zero:
        args.append(_pixels(c, dv_last))
    dx, *dv0 = c.k.lif_backward(neuron, args)
    shape = known_dims(call.args[0])
    return [c.reshape(dx, shape), *(c.reshape(v, shape[1:]) for v in dv0)]


def _neuron(c: Converter, call: relax.Call) -> tuple[TrainedNeuron, list[relax.Expr]]:
    x, zero = _pixels(c, call.args[0]), c.is_zero(call.args[1])
    args = [x, *([] if zero else [_pixels(c, call.args[1])])]
    steps = known_dims(call.args[0])[0]
    return TrainedNeuron(lif_attrs_of(call), steps, v0=not zero), args
