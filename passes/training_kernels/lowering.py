"""The operators of a training step that every target computes alike, channels last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import tvm
from tvm import relax

from ttsnn.ops import lif_attrs_of
from ttsnn.passes.shapes import dims, known_dims
from ttsnn.passes.static_values import op_name
from ttsnn.passes.training_kernels.converter import Converter
from ttsnn.passes.training_kernels.features import (
    flat_batch_norm,
    flat_batch_norm_backward,
    flat_lif,
    flat_lif_backward,
)
from ttsnn.passes.training_kernels.images import BatchNormGrad, Image, NeuronGrad, Normalised
from ttsnn.passes.training_kernels.lif_forward import TrainedNeuron

__all__ = ["Lowering", "rewrite_functions"]

_ELEMENTWISE = {
    f"relax.{name}"
    for name in (
        *("abs", "add", "clip", "divide", "exp", "log", "maximum", "minimum", "multiply"),
        *("negative", "power", "rsqrt", "sigmoid", "sign", "sqrt", "square", "subtract", "tanh"),
        *("nn.gelu", "nn.leakyrelu", "nn.relu", "nn.silu"),
    )
}


def rewrite_functions(
    mod: tvm.IRModule, bb: relax.BlockBuilder, convert: Callable[[relax.Function], Converter]
) -> tvm.IRModule:
    """All Relax functions rewritten into the builder's module; attributes stay."""
    attrs = {}
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function):
            convert(func).emit(gvar.name_hint)
            attrs[gvar.name_hint] = func.attrs
    out = bb.get()
    for gvar, func in mod.functions_items():
        name = gvar.name_hint
        if name in attrs:
            new = out[name]
            for key, value in (attrs[name] or {}).items():
                new = new.with_attr(key, value)
            out.update_func(out.get_global_var(name), new)
        else:
            out[gvar] = func
    for key, value in (mod.attrs or {}).items():
        out = out.with_attr(key, value)
    return out


class Lowering(Converter):
    """Handlers of the operators, but for products.

    Attributes:
        handlers: operator → method that converts a call of it; subclasses have more.
    """

    handlers: ClassVar[Mapping[str, Callable[..., Any]]]

    def convert(self, var: relax.Var, value: relax.Expr) -> Image | list | relax.Expr | bool | None:
        """By the operator's handler."""
        handler = self.handlers.get(op_name(value))
        if handler is None and op_name(value) in _ELEMENTWISE:
            handler = Lowering._elementwise
        return None if handler is None else handler(self, var, value)

    # -- normalisation -----------------------------------------------------------------------

    def _batch_norm(self, var: relax.Var, call: relax.Call) -> list | None:
        if _over_features(call):
            return flat_batch_norm(self, call)
        if int(call.attrs["axis"]) != len(known_dims(call.args[0])) - 3:
            return None
        x = self.image(call.args[0])
        if x is None:
            return None
        gamma, beta, *running = (self.get(a) for a in call.args[1:])
        epsilon, momentum = float(call.attrs["epsilon"]), float(call.attrs["momentum"])
        repeats = int(call.attrs["repeats"])
        stats = self.k.batch_norm_stats(x.expr, running, epsilon, momentum, repeats)
        return [Normalised(x, (gamma, beta, *stats[2:])), *stats]

    def _batch_norm_backward(self, _var: relax.Var, call: relax.Call) -> list | None:
        if _over_features(call):
            return flat_batch_norm_backward(self, call)
        if int(call.attrs["axis"]) != len(known_dims(call.args[0])) - 3:
            return None
        x = self.image(call.args[0])
        if x is None:
            return None
        channel = [self.get(a) for a in call.args[1:4]]
        pending = self.pending(call.args[4])
        sums = None
        if isinstance(pending, NeuronGrad):
            alone = self.uses[call.args[4]] == 1 and pending.side is None
            if self.k.recomputes_neurons and alone and _is_own(pending, x, channel):
                return self._neuron_twice(pending, x)
            sums = self._neuron_sums(pending, x, channel)
        dy = self.known_image(call.args[4])
        if sums is None:
            sums = self.k.batch_norm_sums(x.expr, channel[1:], dy.expr)
        return [BatchNormGrad(x, (*channel, dy.expr, *sums)), *sums]

    def _neuron_sums(
        self, grad: NeuronGrad, x: Image, channel: Sequence[relax.Expr]
    ) -> list[relax.Var]:
        """Compute a neuron's gradient with the (dgamma, dbeta) of a batch norm of ``x``."""
        neuron, args = grad.neuron, [*grad.args, *([] if grad.side is None else [grad.side])]
        if _is_own(grad, x, channel):
            neuron = replace(neuron, sums="own")
        else:
            neuron = replace(neuron, sums="other")
            args += [x.expr, *channel[1:]]
        self.made[grad.key], *sums = self.k.lif_backward(neuron, args)
        return sums

    def _neuron_twice(self, grad: NeuronGrad, x: Image) -> list:
        """A batch norm's gradients, where the one that it gets is the neuron's alone.

        The neuron's gradient is computed for the sums, and again for the gradient to the input,
        instead of being stored and read.
        """
        first = replace(grad.neuron, sums="own", dx="")
        sums = self.k.lif_backward(first, grad.args)
        again = replace(grad.neuron, dx="input")
        return [BatchNormGrad(x, (*grad.args, *sums), again), *sums]

    # -- neurons -----------------------------------------------------------------------------

    def _neuron(
        self, call: relax.Call, with_side: bool
    ) -> tuple[TrainedNeuron, Image, list[relax.Expr]] | None:
        """What a neuron computes, its input, and the kernel's first arguments.

        A sum with a batch norm is computed by the neuron's kernel too where ``with_side``.
        """
        attrs = lif_attrs_of(call)
        x, shape = call.args[0], known_dims(call.args[0])
        if attrs.decay_operand or attrs.threshold_operand or len(shape) != 5:
            return None
        if not self.is_image(x) and shape[-1] * shape[-2] == 1:
            return None
        found = self.pending(x)
        norm = None
        if isinstance(found, Normalised) and (with_side or found.side is None):
            norm = found
        image = norm.x if norm is not None else self.known_image(x)
        image = replace(image, lead=tuple(shape[:2]))
        args: list[relax.Expr] = [image.expr, *(norm.channel if norm is not None else ())]
        side = norm.side if norm is not None else None
        if side is not None:
            args.append(side)
        zero = self.is_zero(call.args[1])
        if not zero:
            args.append(self.known_image(call.args[1]).expr)
        neuron = TrainedNeuron(attrs, shape[0], norm is not None, side is not None, v0=not zero)
        return neuron, image, args

    def _lif(self, var: relax.Var, call: relax.Call) -> list | None:
        if _of_features(call):
            return flat_lif(self, var, call)
        made = self._neuron(call, True)
        if made is None:
            return None
        neuron, x, args = made
        last = (var, 1) in self.item_reads
        neuron = replace(neuron, compact=True, membrane=neuron.side, v_last=last)
        spikes, *more = self.k.lif(neuron, args)
        self.compact[spikes] = str(x.expr.ty.dtype)
        if neuron.membrane:
            self.made[self.lazy[call.args[0]].key] = more.pop(0)
        return [replace(x, expr=spikes), Image(more[0], x.lead[1:]) if last else None]

    def _lif_backward(self, var: relax.Var, call: relax.Call) -> list | None:
        if _of_features(call):
            return flat_lif_backward(self, var, call)
        made = self._neuron(call, False)
        if made is None:
            return None
        neuron, x, args = made
        dspikes, dv_last = call.args[2:]
        zero = self.is_zero(dv_last)
        neuron = replace(neuron, v_last=not zero, dv0=(var, 1) in self.item_reads)
        args.append(self.known_image(dspikes).expr)
        if not zero:
            args.append(self.known_image(dv_last).expr)
        if not neuron.dv0:
            return [NeuronGrad(x, neuron, tuple(args)), None]
        out = self.k.lif_backward(neuron, args)
        return [replace(x, expr=out[0]), Image(out[1], x.lead[1:])]

    # -- everything else ---------------------------------------------------------------------

    def _elementwise(self, var: relax.Var, call: relax.Call) -> Image | bool | None:
        if not any(self.is_image(a) for a in call.args):
            return None
        shape = tuple(known_dims(call))
        for arg in call.args:
            size = dims(arg)
            if size is None or (prod(size) != 1 and tuple(size) != shape):
                return None
        if op_name(call) == "relax.add":
            for zero, other in (call.args, list(reversed(call.args))):
                if self.is_zero(zero) and tuple(known_dims(other)) == shape:
                    return self.image(other, compact=True)
            if self._add_lazily(var, call):
                return True
        args, lead = [], shape[:-3]
        for arg in call.args:
            size = known_dims(arg)
            if prod(size) == 1 and tuple(size) != shape:
                args.append(self.reshape(self.get(arg), ()) if size else self.get(arg))
            else:
                args.append(self.known_image(arg).expr)
        out = self.bind(relax.Call(call.op, args, call.attrs, call.ty_args))
        return Image(out, lead)

    def _add_lazily(self, var: relax.Var, call: relax.Call) -> bool | None:
        """The sum of a value that its reader computes and another one, left to the reader too."""
        for lazy, other in (call.args, list(reversed(call.args))):
            value = self.pending(lazy)
            if not isinstance(value, Normalised | NeuronGrad) or value.side is not None:
                continue
            if known_dims(other) != known_dims(lazy):
                continue
            side = self.known_image(other)
            if isinstance(value, NeuronGrad):
                value = replace(value, neuron=replace(value.neuron, side=True))
            self.lazy[var] = replace(value, x=replace(value.x, lead=side.lead), side=side.expr)
            return True
        return None

    def _reshaped(self, var: relax.Var, call: relax.Call) -> Image | bool | None:
        x, shape = call.args[0], known_dims(call)
        if not self.is_image(x):
            return None
        image = self.images[x] if x in self.images else self.lazy[x].x
        lead = image.reshaped(shape)
        if lead is None:
            return None
        if x in self.images:
            return replace(image, lead=lead)
        self.lazy[var] = replace(self.lazy[x], x=replace(image, lead=lead))
        return True

    def _broadcast(self, _var: relax.Var, call: relax.Call) -> Image | None:
        """[*lead, C, 1, 1] → [*lead, C, H, W], and repetition over time."""
        shape, source = known_dims(call), call.args[0]
        size = known_dims(source)
        if len(shape) not in (4, 5) or len(size) != len(shape):
            return None
        *lead, c, h, w = shape
        if h * w > 1 and size == [*lead, c, 1, 1]:
            wide = self.reshape(self.get(source), (1, prod(lead), 1, 1, c))
            target = [1, prod(lead), h, w, c]
            return Image(self.bind(relax.op.broadcast_to(wide, target)), tuple(lead))
        if len(lead) == 2 and size == [1, lead[1], c, h, w] and self.is_image(source):
            image = self.known_image(source)
            full = self.bind(relax.op.broadcast_to(image.expr, [lead[0], lead[1], h, w, c]))
            return Image(self.reshape(full, (1, prod(lead), h, w, c)), tuple(lead))
        return None

    def _reduced(self, _var: relax.Var, call: relax.Call) -> Image | relax.Expr | None:
        """Mean or sum over height and width of an image, or over its timesteps."""
        x, axes = call.args[0], call.attrs.axis
        if axes is None or not self.is_image(x):
            return None
        rank = len(known_dims(x))
        op = relax.op.mean if op_name(call) == "relax.mean" else relax.op.sum
        if rank == 5 and [int(a) % rank for a in axes] == [0]:
            return self._over_time(x, op, bool(call.attrs.keepdims))
        if sorted(int(a) % rank for a in axes) != [rank - 2, rank - 1]:
            return None
        out = self.bind(op(self.known_image(x).expr, axis=[2, 3]))
        return self.reshape(out, known_dims(call))

    def _over_time(self, x: relax.Expr, op: Callable[..., relax.Expr], keep: bool) -> Image:
        """Mean or sum of an image [T, N, …] over its timesteps."""
        image = self.known_image(x)
        steps = self.reshape(image.expr, (image.lead[0], image.lead[1], *image.sizes[1:]))
        lead = ((1,) if keep else ()) + image.lead[1:]
        return Image(self.bind(op(steps, axis=[0], keepdims=True)), lead)

    def _collapsed(self, _var: relax.Var, call: relax.Call) -> Image | None:
        """Sum over timesteps: the gradient of a repetition."""
        x, shape = call.args[0], known_dims(call)
        size = known_dims(x)
        if not self.is_image(x) or len(size) != 5 or shape != [1, *size[1:]]:
            return None
        return self._over_time(x, relax.op.sum, True)

    def _pool(self, _var: relax.Var, call: relax.Call) -> Image | None:
        """2-D pools, and their gradients, in NHWC; the largest of spikes as bytes is one too."""
        a = call.attrs
        if not any(self.is_image(v) for v in call.args) or str(a.layout) != "NCHW":
            return None
        args: list[relax.Expr] = []
        lead: tuple[int, ...] = ()
        spikes: str | None = None
        for arg in call.args:
            image = self.image(arg, compact=op_name(call) == "relax.nn.max_pool2d")
            if image is None or len(image.lead) != 1:
                return None
            lead, spikes = image.lead, self.compact.get(image.expr)
            args.append(self.reshape(image.expr, image.sizes))
        keys = [str(k) for k in a.keys()] if hasattr(a, "keys") else _POOL_ATTRS  # noqa: SIM118
        given = {k: getattr(a, k) for k in keys if hasattr(a, k)}
        options = {k: given[k] for k in _POOL_ATTRS if k in given and "layout" not in k}
        make = _POOLS[op_name(call)]
        out = self.bind(make(*args, **_plain_options(options), layout="NHWC", out_layout="NHWC"))
        out = self.reshape(out, (1, *known_dims(out)))
        if spikes is not None:
            self.compact[out] = spikes
        return Image(out, lead)


def _is_own(grad: NeuronGrad, x: Image, channel: Sequence[relax.Expr]) -> bool:
    """Whether a batch norm of x with (gamma, mean, 1/σ) is the one before a neuron."""
    own = [grad.args[i] for i in (0, 1, 3, 4)] if grad.neuron.norm else []
    return own == [x.expr, *channel]


def _over_features(call: relax.Call) -> bool:
    """Whether a batch norm normalises the columns of a matrix."""
    return int(call.attrs["axis"]) == 1 and len(known_dims(call.args[0])) == 2


def _of_features(call: relax.Call) -> bool:
    """Whether a neuron is one of a fully connected layer, [T, N, features]."""
    attrs = lif_attrs_of(call)
    operands = attrs.decay_operand or attrs.threshold_operand
    return not operands and len(known_dims(call.args[0])) == 3


_POOL_ATTRS = ("pool_size", "strides", "padding", "dilation", "ceil_mode", "count_include_pad")
_POOLS: dict[str, Callable[..., relax.Expr]] = {
    "relax.nn.max_pool2d": relax.op.nn.max_pool2d,
    "relax.nn.avg_pool2d": relax.op.nn.avg_pool2d,
    "relax.grad.max_pool2d_backward": relax.op.grad.max_pool2d_backward,
    "relax.grad.avg_pool2d_backward": relax.op.grad.avg_pool2d_backward,
}


def _plain_options(options: dict) -> dict:
    return {
        k: bool(v) if k in ("ceil_mode", "count_include_pad") else tuple(int(i) for i in v)
        for k, v in options.items()
    }


Lowering.handlers = {
    "relax.snn.batch_norm_train": Lowering._batch_norm,
    "relax.snn.batch_norm_train_backward": Lowering._batch_norm_backward,
    "relax.snn.lif": Lowering._lif,
    "relax.snn.lif_backward": Lowering._lif_backward,
    "relax.reshape": Lowering._reshaped,
    "relax.expand_dims": Lowering._reshaped,
    "relax.squeeze": Lowering._reshaped,
    "relax.broadcast_to": Lowering._broadcast,
    "relax.collapse_sum_to": Lowering._collapsed,
    "relax.mean": Lowering._reduced,
    "relax.sum": Lowering._reduced,
    **dict.fromkeys(_POOLS, Lowering._pool),
}
