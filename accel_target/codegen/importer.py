"""Relax programs, of inference or of a training step, as graphs of the accelerator's nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ttsnn.accel_target.codegen.graph import (
    Box,
    Conv,
    Graph,
    Image,
    Map,
    Node,
    Rows,
    Small,
    Tensor,
    Weight,
    WGrad,
)
from ttsnn.accel_target.codegen.normed import normed_calls
from ttsnn.accel_target.codegen.norms import NormImport, pays
from ttsnn.accel_target.codegen.options import Options, Variant
from ttsnn.accel_target.events import Tag
from ttsnn.accel_target.isa import Flag, Format, Op, Pool, Reduce, Vec
from ttsnn.accel_target.sim.neuron import encode_lif
from ttsnn.errors import TargetError
from ttsnn.ops import lif_attrs_of, tt_conv_attrs_of
from ttsnn.passes.static_values import op_name
from ttsnn.passes.training.graph import Graph as Relax
from ttsnn.passes.training.manifest import MANIFEST, Manifest
from ttsnn.passes.training_kernels.link import dense_link
from ttsnn.program import layer_name, num_inputs, params_of

__all__ = ["import_graph"]

Value = Image | Tensor
"""Images have frames; tensors are parameters."""

_VEC = {
    "add": Vec.ADD,
    "subtract": Vec.SUB,
    "multiply": Vec.MUL,
    "divide": Vec.DIV,
    "maximum": Vec.MAX,
    "minimum": Vec.MIN,
    "power": Vec.POW,
}
_VEC1 = {
    "negative": Vec.NEG,
    "exp": Vec.EXP,
    "log": Vec.LOG,
    "sqrt": Vec.SQRT,
    "abs": Vec.ABS,
    "astype": Vec.COPY,
}


def import_graph(
    mod: tvm.IRModule, options: Options, variants: Mapping[str, Variant] | Variant | None = None
) -> Graph:
    """The nodes of ``main``.

    Args:
        mod: a program (:mod:`ttsnn.program`) with static sizes, or a training step.
        options: of the code generator.
        variants: how tensor-train layers are cut, for all or by the layer's name.

    Raises:
        TargetError: an operator that the accelerator cannot execute; names it and its shape.
    """
    return _Importer(mod, options, variants).run()


class _Importer(NormImport):
    def __init__(
        self,
        mod: tvm.IRModule,
        options: Options,
        variants: Mapping[str, Variant] | Variant | None,
    ) -> None:
        self.mod, self.options = mod, options
        self.variants = variants or options.variants()[0]
        self.relax = Relax.of(mod["main"])
        meta = json.loads(str(mod.attrs["ttsnn.meta"])) if "ttsnn.meta" in mod.attrs else {}
        self.count = num_inputs(mod["main"])
        self.T, self.N = self._time(meta)
        self.graph = Graph(self.T, self.N)
        self.env: dict[relax.Var, Any] = {}
        self.layer, self.phase, self.chain = "input", "forward", 0
        self.layer_of: dict[Any, str] = {}
        self.slopes: dict[relax.Expr, tuple[Image, Image]] = {}
        self.convs: dict[Tensor, tuple] = {}
        self.normed, self.normed_calls = {}, normed_calls(self.relax)
        self.parts: dict[Tensor, list[tuple[int, int]]] = {}
        self.names: set[str] = set()
        self.inference = MANIFEST not in (mod.attrs or {})
        self.new_weights: set[int] = set()

    # -- arguments and results --

    def _time(self, meta: dict) -> tuple[int, int]:
        first = self.relax.args[0] if self.relax.args else None
        if first is None or not self.count:
            raise TargetError("target ttsnn-accel: the program has no input")
        shape = _shape(first)
        if len(shape) == 5:
            return shape[0], shape[1]
        return int(meta.get("T") or 1), shape[0]

    def run(self) -> Graph:
        names = list(params_of(self.mod))
        main = self.mod["main"]
        if MANIFEST in (self.mod.attrs or {}):
            signature = Manifest.of(self.mod).functions["main"]
            self.new_weights = set(signature.named("results", "param").values())
        for i, arg in enumerate(self.relax.args):
            if i < self.count:
                self.env[arg] = self._input(arg)
            else:
                name = names[i - self.count]
                self.env[arg] = self._param(name, arg)
                self.layer_of[self.env[arg]] = layer_name(name)
        tops = {"labels", "lr", "step"}
        self.lr = {a for a in main.params if a.name in {"lr", "step"}}
        self.updates = self.relax.dependent(
            [a for a in self.relax.args if a.name in tops - {"labels"} or self._is_state(a)]
        )
        self.heads = self.relax.dependent([a for a in self.relax.args if a.name == "labels"])
        for var in self.relax.needed(self.relax.results):
            self._binding(var, self.relax.bindings[var])
        for i, r in enumerate(self.relax.results):
            self.graph.outputs.append(self._output(i, r))
        return self.graph

    def _is_state(self, arg: relax.Var) -> bool:
        value = self.env.get(arg)
        return isinstance(value, Tensor) and value.name.endswith(
            (".momentum_buffer", ".exp_avg", ".exp_avg_sq")
        )

    def _input(self, arg: relax.Var) -> Value:
        shape = _shape(arg)
        if not shape:
            t = Tensor(arg.name, (1, 1, 1, 1), Format.STATISTIC, "input", (), ())
            self.graph.inputs.append(t)
            return t
        fmt = Format.STATISTIC if len(shape) < 3 else Format.ACTIVATION
        t = Tensor(arg.name, _frames(shape), fmt, "input", tuple(shape), _axes(len(shape)))
        self.graph.inputs.append(t)
        return Image(t, 0, t.shape[0] // self.N)

    def _param(self, name: str, arg: relax.Var) -> Tensor:
        shape = tuple(_shape(arg))
        fmt = Format.WEIGHT if len(shape) > 1 and not _flat(shape) else Format.STATISTIC
        if name.endswith((".momentum_buffer", ".exp_avg", ".exp_avg_sq")) and len(shape) > 1:
            fmt = Format.GRADIENT
        t = Tensor(name, _weight_shape(shape), fmt, "input", shape, tuple(range(len(shape)))[::-1])
        if len(shape) == 4:
            t.host_axes = (2, 3, 1, 0)
        if _flat(shape):
            t.host_axes = tuple(range(len(shape)))
        self.graph.inputs.append(t)
        return t

    def _output(self, i: int, expr: relax.Expr) -> Image:
        value = self.get(expr)
        shape = tuple(_shape(expr))
        t = value.tensor if isinstance(value, Image) else value
        whole = isinstance(value, Tensor) or (
            not value.repeat and value.step == 0 and value.steps * self.N == t.shape[0]
        )
        if t.role != "temp" or not whole:
            new = self.temp(
                f"{t.name}.copy",
                t.shape if whole else (value.steps * self.N, *t.shape[1:]),
                t.format,
            )
            source = value if isinstance(value, Image) else Image(t, 0, 1)
            self.emit(
                Map(
                    self.tag("copy"),
                    Op.VEC,
                    [source],
                    [Image(new, 0, source.steps)],
                    flags=int(Vec.COPY),
                )
            )
            t = new
        t.role, t.host_shape = "output", shape
        param = isinstance(value, Tensor)
        if i in self.new_weights and t.format == Format.GRADIENT:
            t.format = Format.WEIGHT
        t.host_axes = _param_axes(shape) if param else _axes(len(shape))
        t.name = f"{i}:{t.name}"
        return Image(t, 0, max(1, t.shape[0] // self.N))

    # -- small helpers --

    def variant(self) -> Variant:
        """How the current layer is cut."""
        if isinstance(self.variants, Variant):
            return self.variants
        return self.variants[self.layer]

    def get(self, expr: relax.Expr) -> Any:
        """Image, parameter, number or tuple of an expression."""
        if isinstance(expr, relax.Var):
            return self.env[expr]
        if isinstance(expr, relax.Tuple):
            return tuple(self.get(f) for f in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.get(expr.tuple_value)[expr.index]
        if isinstance(expr, GenericConst):
            return self._constant(expr)
        raise TargetError(f"target ttsnn-accel: cannot read {expr}")

    def _constant(self, expr: GenericConst) -> Any:
        value = expr.value.numpy()
        if value.size == 1:
            return float(value.reshape(()))
        raise TargetError(
            f"target ttsnn-accel: a constant of shape {value.shape} that is no parameter"
        )

    def tag(self, role: str) -> Tag:
        return Tag(self.layer, self.phase, role)

    def emit(self, node: Node) -> None:
        self.graph.nodes.append(node)

    def temp(self, name: str, shape: tuple[int, ...], fmt: Format) -> Tensor:
        unique, k = name, 1
        while unique in self.names:
            k += 1
            unique = f"{name}.{k}"
        self.names.add(unique)
        return Tensor(unique, tuple(shape), fmt)  # type: ignore[arg-type]

    def image(self, name: str, like: Image, shape: tuple[int, int, int], fmt: Format) -> Image:
        """A new tensor with the timesteps of another image."""
        return Image(self.temp(name, (like.steps * self.N, *shape), fmt), 0, like.steps)

    def _binding(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Var | relax.Tuple | relax.TupleGetItem | GenericConst):
            self.env[var] = self.get(value)
            return
        if not isinstance(value, relax.Call):
            raise TargetError(f"target ttsnn-accel: {var.name} is no call of an operator")
        name = op_name(value).removeprefix("relax.")
        if var in self.updates:
            self.phase = "update"
        elif var in self.heads:
            self.phase = "backward" if self.phase == "backward" or "backward" in name else "head"
        else:
            self.phase = "forward"
        handler: Callable | None = getattr(self, "_" + name.replace(".", "_"), None)
        if handler is None and name in _VEC | _VEC1:
            handler = self._elementwise
        if handler is None:
            raise TargetError(
                f"target ttsnn-accel: operator {name} (result {_text(value)}) after layer "
                f"{self.layer!r} cannot be executed; compile for cpu"
            )
        self.env[var] = handler(value)

    # -- views --

    def _reshape(self, call: relax.Call) -> Value:
        x, shape = self.get(call.args[0]), _shape(call)
        if isinstance(x, Tensor):
            if prod(shape) == prod(x.shape):
                return x
        elif isinstance(x, Image):
            if len(shape) >= 4 and tuple(shape[-3:]) == (x.shape[2], *x.shape[:2]):
                return x
            if len(shape) in (2, 3) and x.shape[:2] == (1, 1) and shape[-1] == x.shape[2]:
                return x
            if x.tensor.role == "input" and not self.graph.nodes:
                # nothing has read it yet: it may come to DRAM in the order of its new shape
                x.tensor.shape = (x.tensor.shape[0], *_frames(shape)[1:])
                x.tensor.host_axes = tuple(range(len(x.tensor.host_shape)))
                return x
        raise TargetError(
            f"target ttsnn-accel: reshape of {_text(call.args[0])} to {tuple(shape)} after layer "
            f"{self.layer!r} is no view on the accelerator"
        )

    _flatten = _squeeze = _reshape

    def _zeros(self, call: relax.Call) -> Any:
        return 0.0

    def _ones(self, call: relax.Call) -> Any:
        return 1.0

    _zeros_like = _zeros
    _ones_like = _ones

    def _expand_dims(self, call: relax.Call) -> Value | float:
        x = self.get(call.args[0])
        if isinstance(x, Image | float):
            return x
        return self._reshape(call)

    def _permute_dims(self, call: relax.Call) -> Any:
        x = self.get(call.args[0])
        if [int(a) for a in call.attrs.axes or (1, 0)] == [1, 0]:
            return ("transposed", x)
        raise TargetError(f"target ttsnn-accel: permutation of {_text(call.args[0])}")

    def _broadcast_to(self, call: relax.Call) -> Value | float:
        x, shape = self.get(call.args[0]), _shape(call)
        if isinstance(x, float):
            return x
        if isinstance(x, Tensor):
            out = Image(
                self.temp("broadcast", _frames(shape), x.format), 0, _frames(shape)[0] // self.N
            )
            self.emit(
                Small(self.tag("loss"), Op.VEC, Box(out.tensor), [(Box(x),)], flags=int(Vec.COPY))
            )
            return out
        f, h, w, _ = _frames(shape)
        if (h, w) != x.shape[:2]:
            return self._spread(x, h, w, f)
        if f > x.steps * self.N and x.steps == 1:
            return Image(x.tensor, x.step, f // self.N, repeat=True)
        if f == x.steps * self.N:
            return x
        raise TargetError(f"target ttsnn-accel: broadcast of {_text(call.args[0])} to {shape}")

    def _spread(self, x: Image, h: int, w: int, f: int) -> Image:
        """A mean's gradient to all pixels."""
        source = x.once() if x.repeat else x
        taps = tuple((i, j) for i in range(h) for j in range(w))
        y = self.image("spread", source, (h, w, x.shape[2]), Format.GRADIENT)
        self.emit(
            Map(
                self.tag("spread"),
                Op.POOLB,
                [source],
                [y],
                "gradient",
                flags=int(Pool.SUM),
                geometry=(h, w, taps, h, w, 1, 1),
                transpose=True,
            )
        )
        return Image(y.tensor, 0, f // self.N, repeat=True) if x.repeat else y

    # -- neurons, batch norms, pools --

    def _snn_lif(self, call: relax.Call) -> Any:
        a = lif_attrs_of(call)
        x, v0 = self.get(call.args[0]), self.get(call.args[1])
        if a.decay_operand or a.threshold_operand:
            raise TargetError(
                f"target ttsnn-accel: the neuron after layer {self.layer!r} learns its decay or "
                "threshold, which the accelerator's neuron has as constants; compile for cpu"
            )
        if v0 != 0.0:
            raise TargetError(
                f"target ttsnn-accel: the neuron after layer {self.layer!r} carries its state "
                "from call to call; compile for cpu"
            )
        kind, scalars = encode_lif(a)
        s = self.image(f"{self.layer}.spikes", x, x.shape, self.options.spikes)
        outs = [s]
        if self._trained(call):
            if not a.detach_reset or a.reset_timing != "after_fire":
                raise TargetError(
                    f"target ttsnn-accel: the gradient of the neuron after layer {self.layer!r} "
                    "(reset that is not detached, or not after firing); compile for cpu"
                )
            bits = Format.SPIKE if a.surrogate == "rectangle" else Format.ACTIVATION
            slope = self.image(
                f"{self.layer}.slope",
                x,
                x.shape,
                self.options.spikes if bits == Format.SPIKE else bits,
            )
            outs.append(slope)
            self.slopes[call.args[0]] = s, slope
        self.emit(
            Map(self.tag("lif"), Op.LIF, [x], outs, "lif", scalars=scalars, flags=kind, time=True)
        )
        return s, None

    def _trained(self, call: relax.Call) -> bool:
        if not hasattr(self, "_lif_backward_inputs"):
            self._lif_backward_inputs = {
                v.args[0]
                for v in self.relax.bindings.values()
                if isinstance(v, relax.Call) and op_name(v) == "relax.snn.lif_backward"
            }
        return call.args[0] in self._lif_backward_inputs

    def _snn_lif_backward(self, call: relax.Call) -> Any:
        a = lif_attrs_of(call)
        ds = self.get(call.args[2])
        s, slope = self.slopes[call.args[0]]
        self.layer = self.layer_of.get(s.tensor, self.layer)
        kind, scalars = encode_lif(a)
        dx = self.image(f"{self.layer}.dv", s, s.shape, Format.GRADIENT)
        self.emit(
            Map(
                self.tag("lif"),
                Op.LIFB,
                [ds, s, slope],
                [dx],
                "gradient",
                scalars=scalars,
                flags=kind,
                time=True,
            )
        )
        return dx, None

    def _nn_max_pool2d(self, call: relax.Call, kind: Pool = Pool.MAX) -> Image:
        x, g = self.get(call.args[0]), self._window(call, call.args[0])
        y = self.image(f"{self.layer}.pool", x, (g[5], g[6], x.shape[2]), x.tensor.format)
        if kind == Pool.MEAN:
            y.tensor.format = Format.ACTIVATION
        self.emit(Map(self.tag("pool"), Op.POOL, [x], [y], flags=int(kind), geometry=g))
        return y

    def _nn_avg_pool2d(self, call: relax.Call) -> Image:
        return self._nn_max_pool2d(call, Pool.MEAN)

    def _window(self, call: relax.Call, x: relax.Expr) -> Any:
        a, (h, w) = call.attrs, _shape(x)[-2:]
        (kh, kw), (sh, sw) = map(int, a.pool_size), map(int, a.strides)
        top, left, bottom, right = map(int, a.padding)
        dh, dw = map(int, a.dilation)
        taps = tuple((i * dh - top, j * dw - left) for i in range(kh) for j in range(kw))
        oh = (h + top + bottom - dh * (kh - 1) - 1) // sh + 1
        ow = (w + left + right - dw * (kw - 1) - 1) // sw + 1
        return sh, sw, taps, h, w, oh, ow

    def _grad_max_pool2d_backward(self, call: relax.Call, kind: Pool = Pool.MAX) -> Image:
        dy, x = self.get(call.args[0]), self.get(call.args[1])
        g = self._window(call, call.args[1])
        dx = self.image(f"{self.layer}.dpool", x, x.shape, Format.GRADIENT)
        ins = [dy, x] if kind == Pool.MAX else [dy]
        if kind == Pool.MAX and (g[0] < 1 or max(t[0] for t in g[2]) >= g[0]):
            raise TargetError(
                f"target ttsnn-accel: the gradient of a maximum over overlapping windows after "
                f"layer {self.layer!r}; compile for cpu"
            )
        self.emit(
            Map(
                self.tag("pool"),
                Op.POOLB,
                ins,
                [dx],
                "gradient",
                flags=int(kind),
                geometry=g,
                transpose=True,
            )
        )
        return dx

    def _grad_avg_pool2d_backward(self, call: relax.Call) -> Image:
        return self._grad_max_pool2d_backward(call, Pool.MEAN)

    def _mean(self, call: relax.Call) -> Image:
        x, axes = self.get(call.args[0]), sorted(int(a) for a in call.attrs.axis)
        rank = len(_shape(call.args[0]))
        if axes == [rank - 2, rank - 1] and rank >= 4:
            h, w, c = x.shape
            taps = tuple((i, j) for i in range(h) for j in range(w))
            y = self.image(f"{self.layer}.mean", x, (1, 1, c), Format.ACTIVATION)
            self.emit(
                Map(
                    self.tag("pool"),
                    Op.POOL,
                    [x],
                    [y],
                    flags=int(Pool.MEAN),
                    geometry=(h, w, taps, h, w, 1, 1),
                )
            )
            return y
        if axes == [0] and x.shape[:2] == (1, 1):
            total: Tensor = self.temp("time_sum", (self.N, 1, 1, x.shape[2]), Format.STATISTIC)
            for n in range(self.N):
                self.emit(
                    Small(
                        self.tag("mean"),
                        Op.RED,
                        Box(total, (n, 1, 1)),
                        [(Box(x.tensor, (n, x.steps, self.N)),)],
                        flags=int(Reduce.SUM),
                    )
                )
            mean = self.temp("time_mean", total.shape, Format.STATISTIC)
            self.emit(
                Small(
                    self.tag("mean"),
                    Op.VEC,
                    Box(mean),
                    [(Box(total),)],
                    scalars=(1.0 / x.steps,),
                    flags=int(Vec.MUL),
                )
            )
            return Image(mean, 0, 1)
        raise TargetError(f"target ttsnn-accel: mean of {_text(call.args[0])} over {axes}")

    # -- convolutions and products --

    def _nn_conv2d(self, call: relax.Call) -> Image:
        x, w = self.get(call.args[0]), self.get(call.args[1])
        self.layer = self.layer_of.get(w, self.layer)
        g, shape = self._dense(call, call.args[1], call.args[0])
        y = self.image(f"{self.layer}.conv", x, (g[5], g[6], shape[2]), Format.ACTIVATION)
        chain = -1
        if self.inference and self.options.fusion and self.options.neurons:
            # with all timesteps, so that the neuron behind it is in its nest
            self.chain = chain = self.chain + 1
            self.graph.gradients[chain] = y
            self.graph.whole.add(chain)
        terms = [(x, self._weight(w, shape), g, self._binary(x))]
        self.emit(Conv(self.tag("conv"), terms, y, chain=chain))
        return y

    def _dense(
        self, call: relax.Call, w: relax.Expr | list[int], x: relax.Expr | None, size: Any = None
    ) -> Any:
        a = call.attrs
        read = (lambda k: a[k]) if isinstance(a, tvm.ir.DictAttrs) else (lambda k: getattr(a, k))
        if int(read("groups")) != 1:
            raise TargetError(
                f"target ttsnn-accel: layer {self.layer!r} is a convolution with groups; compile "
                "for cpu"
            )
        height, width = size if size is not None else _shape(x)[-2:]
        return _stage_geometry(
            dense_link(
                _shape(w) if not isinstance(w, list) else w,
                (height, width),
                [int(v) for v in read("strides")],
                [int(v) for v in read("padding")],
                [int(v) for v in read("dilation")],
            ).stage
        )

    def _weight(self, w: Tensor, shape: tuple[int, int, int]) -> Weight:
        return Weight(shape, (Rows(w, 0, shape[0], 0),), w.name)

    def _binary(self, x: Image) -> int:
        return int(Flag.BINARY) if x.tensor.name.partition(".spikes")[1] else 0

    def _dense_conv2d_backward_data(self, call: relax.Call) -> Image:
        w, dy = self.get(call.args[0]), self.get(call.args[1])
        self.layer = self.layer_of.get(w, self.layer)
        size = [int(v) for v in call.attrs["size"]]
        g, shape = self._dense(call, call.args[0], None, size)
        dx = self.image(f"{self.layer}.dx", dy, (*size, shape[1]), Format.GRADIENT)
        self.emit(
            Conv(
                self.tag("dx"),
                [(dy, self._weight(w, shape), g, 0)],
                dx,
                True,
                chain=self._chain_of(dy),
            )
        )
        return dx

    def _chain_of(self, dy: Image) -> int:
        """Both gradients of a dense layer belong together."""
        for chain, known in self.graph.gradients.items():
            if known == dy:
                return chain
        self.chain += 1
        self.graph.gradients[self.chain] = dy
        return self.chain

    def _dense_conv2d_backward_weight(self, call: relax.Call) -> Tensor:
        x, dy = self.get(call.args[0]), self.get(call.args[1])
        kh, kw = (int(v) for v in call.attrs["kernel"])
        full = [dy.shape[2], x.shape[2], kh, kw]
        g, shape = self._dense(call, full, call.args[0])
        dw = self.temp(f"{self.layer}.grad", (1, *shape), Format.GRADIENT)
        self.emit(
            WGrad(
                self.tag("dw"),
                x,
                dy,
                g,
                shape,
                (Rows(dw, 0, shape[0], 0),),
                self._binary(x),
                chain=self._chain_of(dy),
            )
        )
        return dw

    def _matmul(self, call: relax.Call) -> Value:
        a, b = self.get(call.args[0]), self.get(call.args[1])
        g = (1, 1, ((0, 0),), 1, 1, 1, 1)
        if isinstance(a, Image) and isinstance(b, tuple) and isinstance(b[1], Tensor):
            w, transpose = b[1], False
        elif isinstance(a, Image) and isinstance(b, Tensor):
            w, transpose = b, True
        elif isinstance(a, tuple) and isinstance(a[1], Image) and isinstance(b, Image):
            shape = (1, b.shape[2], a[1].shape[2])
            dw = self.temp(f"{self.layer}.grad", (1, *shape), Format.GRADIENT)
            self.emit(WGrad(self.tag("dw"), b, a[1], g, shape, (Rows(dw, 0, 1, 0),)))
            return dw
        else:
            raise TargetError(f"target ttsnn-accel: product {_text(call)} after {self.layer!r}")
        self.layer = self.layer_of.get(w, self.layer)
        shape = w.shape[1:]
        out = shape[1] if transpose else shape[2]
        fmt = Format.GRADIENT if transpose else Format.ACCUMULATOR
        y = self.image(f"{self.layer}.linear", a, (1, 1, out), fmt)
        flags = 0 if transpose else self._binary(a)
        self.emit(
            Conv(
                self.tag("dx" if transpose else "linear"),
                [(a, self._weight(w, shape), g, flags)],
                y,
                transpose,
            )
        )
        return y

    def _tt_conv2d(self, call: relax.Call) -> Image:
        x, *cores = map(self.get, call.args)
        self.layer = self.layer_of.get(cores[0], self.layer)
        attrs = tt_conv_attrs_of(call)
        if (
            self.variant().norm
            and (call.args[0], call.args[1]) in self.normed_calls
            and pays(prod(_shape(call)) // cores[3].shape[3], cores[3].shape[2])
        ):
            return self.to_last_core(x, cores, attrs, call.args[0])
        return self.tt_forward(x, cores, attrs, call.args[0])

    def _tt_conv2d_backward(self, call: relax.Call) -> Any:
        x, *cores, dy = map(self.get, call.args)
        self.layer = self.layer_of.get(cores[0], self.layer)
        attrs, chain = tt_conv_attrs_of(call), self.normed.get(dy.tensor)
        if chain is not None:
            dh = self.gradient_at_last(chain)
            return self.tt_backward(x, cores, dh, attrs, call.args[0], chain.grad)
        return self.tt_backward(x, cores, dy, attrs, call.args[0])

    # -- elementwise and the loss --

    def _elementwise(self, call: relax.Call) -> Any:
        name = op_name(call).removeprefix("relax.")
        values = [self.get(a) for a in call.args[: 2 if name in _VEC else 1]]
        if all(isinstance(v, float) for v in values):
            return float(getattr(np, name)(*values)) if name != "astype" else values[0]
        images = [v for v in values if isinstance(v, Image)]
        tensors = [v for v in values if isinstance(v, Tensor)]
        if not images:
            return self._on_params(call, name, values, tensors)
        kind = (_VEC | _VEC1)[name]
        repeat = all(i.repeat for i in images)
        if repeat:
            values = [v.once() if isinstance(v, Image) else v for v in values]
        first = max(
            (v for v in values if isinstance(v, Image)), key=lambda i: i.steps * prod(i.shape)
        )
        fmt = Format.GRADIENT if self.phase != "forward" else Format.ACTIVATION
        if first.shape[:2] == (1, 1) and self.phase == "head":
            fmt = Format.STATISTIC
        y = self.image(f"{self.layer}.{name}", first, first.shape, fmt)
        self.layer_of[y.tensor] = self.layer
        values, kind, scalars = _order(values, kind)
        ins = [v for v in values if isinstance(v, Image)]
        rows = tuple(Rows(v, 0, 1, 0) for v in values if isinstance(v, Tensor))
        if len(ins) == 2 and ins[0].shape != ins[1].shape:
            if any(v.shape[:2] != (1, 1) or v.repeat for v in ins):
                raise TargetError(
                    f"target ttsnn-accel: {name} of {_text(call.args[0])} and "
                    f"{_text(call.args[1])} after layer {self.layer!r}"
                )
            y.tensor.format = Format.STATISTIC
            boxes: list[tuple[Box, ...]] = [(Box(v.tensor),) for v in ins]
            self.emit(Small(self.tag(name), Op.VEC, Box(y.tensor), boxes, flags=int(kind)))
            return y
        self.emit(
            Map(
                self.tag(name),
                Op.VEC,
                ins,
                [y],
                rows=rows,
                width=1,
                scalars=scalars,
                flags=int(kind),
            )
        )
        steps = next(i.steps for i in images)
        return Image(y.tensor, 0, steps, repeat=True) if repeat else y

    def _on_params(
        self, call: relax.Call, name: str, values: list, tensors: list[Tensor]
    ) -> Tensor:
        wide = max(tensors, key=lambda t: prod(t.shape))
        if prod(wide.shape) > 1:
            self.layer = next((self.layer_of[t] for t in tensors if t in self.layer_of), self.layer)
        # weights are narrow, but not what is added to them
        fmt = max((t.format for t in tensors if t.shape == wide.shape), key=int)
        if self.phase == "update" and fmt == Format.WEIGHT:
            fmt = Format.GRADIENT
        out = self.temp(f"{wide.name}.{name}", wide.shape, fmt)
        self.layer_of[out] = self.layer
        kind = (_VEC | _VEC1)[name]
        values, kind, scalars = _order(values, kind)
        big = [v for v in values if isinstance(v, Tensor) and v.shape == wide.shape]
        rows = tuple(Rows(v, 0, 1, 0) for v in values if isinstance(v, Tensor) and v not in big)
        unit = "optimizer" if self.phase == "update" else "vector"
        self.emit(
            Map(
                self.tag("update" if self.phase == "update" else name),
                Op.VEC,
                [Image(v, 0, 1) for v in big],
                [Image(out, 0, 1)],
                unit,
                rows,
                1,
                scalars,
                int(kind),
            )
        )
        return out

    def _one_hot(self, call: relax.Call) -> Image:
        labels, depth = self.get(call.args[0]), _shape(call)[-1]
        shape = (labels.tensor.shape[0], 1, 1, depth)
        index = self.temp("class_index", shape, Format.STATISTIC)
        self.emit(
            Small(
                self.tag("loss"), Op.VEC, Box(index), [(Box(labels.tensor),)], flags=int(Vec.INDEX)
            )
        )
        return Image(self._small(Op.VEC, shape, [index, labels.tensor], Vec.EQUAL), 0, 1)

    def _small(self, op: Op, shape, operands: list[Tensor], kind: int) -> Tensor:
        out = self.temp("loss", tuple(shape), Format.STATISTIC)
        self.emit(
            Small(self.tag("loss"), op, Box(out), [(Box(t),) for t in operands], flags=int(kind))
        )
        return out

    def _nn_log_softmax(self, call: relax.Call) -> Image:
        image = self.get(call.args[0])
        x, shape = image.tensor, image.tensor.shape
        narrow = (*shape[:3], 1)
        top = self._small(Op.RED, narrow, [x], Reduce.MAX)
        moved = self._small(Op.VEC, shape, [x, top], Vec.SUB)
        total = self._small(
            Op.RED, narrow, [self._small(Op.VEC, shape, [moved], Vec.EXP)], Reduce.SUM
        )
        log = self._small(Op.VEC, narrow, [total], Vec.LOG)
        return Image(self._small(Op.VEC, shape, [moved, log], Vec.SUB), 0, image.steps)

    def _sum(self, call: relax.Call) -> Value:
        x = self.get(call.args[0])
        t, shape = (x.tensor if isinstance(x, Image) else x), _shape(call)
        if not shape:
            return self._small(Op.RED, (1, 1, 1, 1), [t], Reduce.SUM)
        if list(shape) == [*_shape(call.args[0])[:-1], 1] and isinstance(x, Image):
            return Image(self._small(Op.RED, (*t.shape[:3], 1), [t], Reduce.SUM), 0, x.steps)
        if len(shape) == 1 and isinstance(x, Image) and shape[0] == x.shape[2]:
            return self._small(Op.RED, (1, 1, 1, shape[0]), [t], Reduce.SUM)
        raise TargetError(f"target ttsnn-accel: sum of {_text(call.args[0])} to {tuple(shape)}")

    _collapse_sum_to = _collapse_sum_like = _sum


def _order(values: list, kind: Vec) -> tuple[list, Vec, tuple[float, ...]]:
    """Operands with the widest first, and a number as a scalar."""
    swapped = {Vec.SUB: Vec.RSUB, Vec.DIV: Vec.RDIV}

    def size(v) -> int:
        if isinstance(v, float):
            return -1
        return v.steps * prod(v.tensor.shape[1:]) if isinstance(v, Image) else prod(v.shape)

    if len(values) == 2 and size(values[1]) > size(values[0]):
        values, kind = values[::-1], swapped.get(kind, kind)
    scalars = tuple(v for v in values if isinstance(v, float))
    return [v for v in values if not isinstance(v, float)], kind, scalars


def _shape(expr: relax.Expr) -> list[int]:
    shape = getattr(expr.ty, "shape", None)
    try:
        return [int(s) for s in shape.values]  # type: ignore[union-attr]
    except (TypeError, AttributeError):
        raise TargetError(
            f"target ttsnn-accel: {_text(expr)} has a size that varies; compile for a fixed batch"
        ) from None


def _text(expr: relax.Expr) -> str:
    return str(getattr(expr, "ty", expr))


def _flat(shape: tuple[int, ...] | list[int]) -> bool:
    return len(shape) == 0 or all(s == 1 for s in shape[1:])


def _frames(shape: list[int]) -> tuple[int, int, int, int]:
    match list(shape):
        case [t, n, c, h, w]:
            return t * n, h, w, c
        case [f, c, h, w]:
            return f, h, w, c
        case [t, n, c]:
            return t * n, 1, 1, c
        case [n, c]:
            return n, 1, 1, c
        case [n]:
            return n, 1, 1, 1
    raise TargetError(f"target ttsnn-accel: a value of shape {tuple(shape)}")


def _axes(rank: int) -> tuple[int, ...]:
    return {5: (0, 1, 3, 4, 2), 4: (0, 2, 3, 1)}.get(rank, tuple(range(rank)))


def _weight_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if _flat(shape):
        return 1, 1, 1, (shape or (1,))[0]
    match shape:
        case (o, i):
            return 1, 1, i, o
        case (o, i, k):
            return 1, k, i, o
        case (o, i, kh, kw):
            return 1, kh * kw, i, o
    raise TargetError(f"target ttsnn-accel: a parameter of shape {shape}")


def _param_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    if _flat(shape):
        return tuple(range(len(shape)))
    return (2, 3, 1, 0) if len(shape) == 4 else tuple(range(len(shape)))[::-1]


def _stage_geometry(stage) -> Any:
    g = (*stage.strides, stage.taps, *stage.in_size, *stage.out_size)
    return g, (len(stage.taps), stage.in_channels, stage.out_channels)
