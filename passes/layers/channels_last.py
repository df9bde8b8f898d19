"""ToChannelsLast: convolutions and linear layers become ``relax.snn.layer``, channels last."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax

from ttsnn.ops import lif_attrs_of, make_call
from ttsnn.passes.layers.bodies import LayerBody, conv_body, linear_body, plain_config, tt_conv_body
from ttsnn.passes.layers.image import Image, channels_last_value, rows_shape, same_arrangement
from ttsnn.passes.layers.op import layer_call
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.shapes import dims, known_dims, product, same, same_dims
from ttsnn.passes.static_values import op_name

__all__ = ["ToChannelsLast"]

_ELEMENTWISE = {
    f"relax.{name}"
    for name in (
        *("abs", "add", "astype", "ceil", "clip", "divide", "equal", "erf", "exp", "floor"),
        *("greater", "greater_equal", "less", "less_equal", "log", "logical_and", "logical_not"),
        *("logical_or", "maximum", "minimum", "multiply", "negative", "not_equal", "power"),
        *("round", "rsqrt", "sigmoid", "sign", "sqrt", "square", "subtract", "tanh", "where"),
        *("nn.gelu", "nn.leakyrelu", "nn.relu", "nn.silu"),
    )
}
_REDUCTIONS = {f"relax.{name}": getattr(relax.op, name) for name in ("mean", "sum", "max", "min")}


@tvm.transform.module_pass(opt_level=0, name="ToChannelsLast")
class ToChannelsLast(ModulePass):
    """Compute images as [T, N, H, W, C].

    ``conv2d`` (one group), ``tt.conv2d`` in the form chosen for it, and products with a
    parameter become ``relax.snn.layer`` without neuron; neurons, pools, elementwise operators,
    reductions and concatenations between them work on the same layout. A reshape that folds
    time into the batch, or back, costs nothing, nor does the repetition of a value over time.
    Weights are packed as [taps, Cin, Cout]. What is not known runs in the program's own layout,
    with a transpose on the way in and out.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return prune(_Converter(mod).run())


class _Converter(BindingRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._images: dict[relax.Var, Image] = {}
        self._spikes: dict[relax.Var, tuple[Image, Image]] = {}  # neuron → spikes, last membrane
        self._packed: dict[tuple, relax.Var] = {}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        image = self._convert(var, value)
        if image is not None:
            self._images[var] = image
            return None
        return None if var in self._spikes else self.get(value)

    def _convert(self, var: relax.Var, value: relax.Expr) -> Image | None:
        if isinstance(value, relax.Var):
            return self._images.get(value)
        if isinstance(value, relax.TupleGetItem):
            pair = self._spikes.get(value.tuple_value)
            return None if pair is None else pair[value.index]
        name = op_name(value)
        if not name or not isinstance(value.ty, relax.TensorType | relax.TupleType):
            return None
        if name == "relax.snn.lif":
            self._neuron(var, value)
            return None
        if name == "relax.nn.conv2d":
            return self._conv(value)
        if name == "relax.tt.conv2d":
            return self._tt_conv(value)
        if name == "relax.matmul":
            return self._linear(value)
        if name in _ELEMENTWISE:
            return self._elementwise(value)
        if name == "relax.concat":
            return self._concat(value)
        image = self._images.get(value.args[0]) if self._is_var(value, 0) else None
        if image is None:
            return self._fold(value) if name == "relax.reshape" else None
        if name in ("relax.reshape", "relax.expand_dims", "relax.squeeze"):
            return self._reshape(value, image)
        if name == "relax.broadcast_to":
            return self._repeat(value, image)
        if name in _REDUCTIONS:
            return self._reduce(value, image)
        return self._pool(value, image)

    def _is_var(self, call: relax.Call, index: int) -> bool:
        return len(call.args) > index and isinstance(call.args[index], relax.Var)

    # -- between the layouts -----------------------------------------------------------------

    def materialise(self, var: relax.Var) -> relax.Expr:
        """The tensor in the program's own layout, for those that want it so."""
        if var in self._spikes:
            return self.emit(relax.Tuple([self._plain(i) for i in self._spikes[var]]))
        return self._plain(self._images[var], self.bound[var].ty)

    def _plain(self, image: Image, ty: relax.TensorType | None = None) -> relax.Var:
        out = self._spread(image).expr
        if image.spatial:
            out = self.emit(relax.op.permute_dims(out, [0, 1, 4, 2, 3]))
        shape = relax.ShapeExpr(image.logical) if ty is None else ty.shape
        if same_dims(known_dims(out), list(shape.values)):
            return out
        return self.emit(relax.op.reshape(out, shape))

    def _spread(self, image: Image) -> Image:
        """The image with its repetition over time written out."""
        if not image.repeated:
            return image
        shape = relax.ShapeExpr([image.steps, *known_dims(image.expr)[1:]])
        return image.like(self.emit(relax.op.broadcast_to(image.expr, shape)))

    def _image(self, expr: relax.Expr, like: Image | None = None) -> Image | None:
        """A value of the program channels last; ``like`` says how its first axes are meant."""
        if isinstance(expr, relax.Var) and expr in self._images:
            return self._images[expr]
        sizes = dims(expr)
        if sizes is None or not isinstance(expr, relax.Var) or not 2 <= len(sizes) <= 5:
            return None
        spatial = len(sizes) >= 4
        lead = sizes[: -3 if spatial else -1]
        folded = len(lead) == 1
        steps, batch = (1, lead[0]) if folded else lead
        if like is not None and like.folded and folded:
            if not same_dims(sizes[:1], like.logical[:1]):
                return None
            steps, batch = like.steps, like.sizes[1]
        if not isinstance(steps, int) or not isinstance(sizes[-1], int):
            return None
        if not spatial:
            shape = relax.ShapeExpr(rows_shape(steps, batch, sizes[-1]))
            out = self.emit(relax.op.reshape(self.get(expr), shape))
            return Image(out, steps, folded, False)
        wide = self.get(expr)
        if folded:
            wide = self.emit(relax.op.reshape(wide, relax.ShapeExpr([steps, batch, *sizes[1:]])))
        out = self.emit(relax.op.permute_dims(wide, [0, 1, 3, 4, 2]))
        return Image(out, steps, folded, True)

    # -- layers ------------------------------------------------------------------------------

    def _conv(self, call: relax.Call) -> Image | None:
        weight, a = self.static(call.args[1]), call.attrs
        layouts = (str(a.data_layout), str(a.kernel_layout), str(a.out_layout))
        if weight is None or int(a.groups) != 1 or layouts != ("NCHW", "OIHW", "NCHW"):
            return None
        x = self._image(call.args[0])
        if x is None or not all(isinstance(s, int) for s in x.sizes[2:4]):
            return None
        return self._layer(call.args[1], conv_body(call, weight, tuple(x.sizes[2:4])), x)

    def _tt_conv(self, call: relax.Call) -> Image | None:
        cores = self.static.all(call.args[1:5])
        if cores is None:
            return None
        x = self._image(call.args[0])
        if x is None or not all(isinstance(s, int) for s in x.sizes[2:4]):
            return None
        body = tt_conv_body(call, cores, tuple(x.sizes[2:4]), x.steps)
        return self._layer(call.args[1], body, x)

    def _linear(self, call: relax.Call) -> Image | None:
        weight = self.static(call.args[1])
        if weight is None or weight.ndim != 2:
            return None
        x = self._image(call.args[0])
        if x is None or x.spatial:
            return None
        return self._layer(call.args[1], linear_body(weight, known_dims(x.expr)[3]), x)

    def _layer(self, param: relax.Expr, body: LayerBody, x: Image) -> Image | None:
        if str(x.expr.ty.dtype) not in ("float32", "float64"):
            return None
        # timesteps that are treated differently give a result that changes with time
        steps = x.steps if body.half else x.sizes[0]
        name = self.owner(param)
        config = plain_config(name, body, steps, x.sizes[0], str(x.expr.ty.dtype))
        weights = [
            self._pack(param, f"{name}.{kind}{i}", w)
            for kind, chain in (("stage", body.stages), ("half_stage", body.half))
            for i, (_, w) in enumerate(chain)
        ]
        return x.like(self.emit(layer_call(config, [x.expr, *weights])))

    def _pack(self, param: relax.Expr, name: str, value: np.ndarray) -> relax.Var:
        """One parameter for each weight and stage, however often the layer is called."""
        key = (param, name, value.shape, value.tobytes())
        if key not in self._packed:
            self._packed[key] = self.fresh_param(name, value)
        return self._packed[key]

    def _neuron(self, var: relax.Var, call: relax.Call) -> None:
        x = self._images.get(call.args[0]) if self._is_var(call, 0) else None
        if x is None or x.folded:
            return
        state = known_dims(x.expr)[1:]
        like = Image(x.expr, 1, True, x.spatial)  # v0 has the shape of one timestep
        operands = [self._spread(x).expr, self._state(call.args[1], state, x)]
        for extra in call.args[2:]:
            value = self.static(extra)
            value = None if value is None else channels_last_value(value, like)
            if value is None:
                return
            operands.append(self._constant(extra, value))
        if operands[1] is None:
            return
        out = self.emit(make_call(call.op.name, operands, lif_attrs_of(call).to_dict()))
        spikes = self.emit(relax.TupleGetItem(out, 0))
        last = self.emit(relax.TupleGetItem(out, 1))
        last = self.emit(relax.op.reshape(last, relax.ShapeExpr([1, *state])))
        self._spikes[var] = (x.like(spikes), Image(last, 1, True, x.spatial))

    def _state(self, v0: relax.Expr, state: list, x: Image) -> relax.Expr | None:
        """The first membrane [N, H, W, C]."""
        made = self.definition(v0)
        value = self.static(v0)
        if op_name(made) == "relax.zeros" or (value is not None and not value.any()):
            dtype = str(x.expr.ty.dtype)
            return self.emit(relax.op.zeros(relax.ShapeExpr(state), dtype))
        if isinstance(v0, relax.Var) and v0 in self._images:
            image: Image | None = self._images[v0]
        else:
            image = self._image(v0 if isinstance(v0, relax.Var) else self.emit(v0))
        if image is None or image.steps != 1 or image.spatial != x.spatial:
            return None
        return self.emit(relax.op.reshape(image.expr, relax.ShapeExpr(state)))

    # -- everything else ---------------------------------------------------------------------

    def _constant(self, expr: relax.Expr, value: np.ndarray) -> relax.Expr:
        """A known operand in its new arrangement: itself where nothing moves."""
        old = self.static(expr)
        if old is not None and old.shape == value.shape:
            return self.get(expr)
        return self._pack(expr, f"{self.owner(expr)}.channels_last", value)

    def _elementwise(self, call: relax.Call) -> Image | None:
        tensors = [a for a in call.args if isinstance(getattr(a, "ty", None), relax.TensorType)]
        images = [
            self._images[a] for a in tensors if isinstance(a, relax.Var) and a in self._images
        ]
        if not images:
            return None
        # the operand that has the result's shape says how that is arranged
        lead = next((i for i in images if same_dims(i.logical, dims(call) or [])), None)
        if lead is None:
            return None
        args = []
        for arg in call.args:
            new = self._operand(arg, lead)
            if new is None:
                return None
            args.append(new)
        out = self.emit(relax.Call(call.op, args, call.attrs, call.ty_args))
        return lead.like(out)

    def _operand(self, arg: relax.Expr, lead: Image) -> relax.Expr | None:
        if not isinstance(getattr(arg, "ty", None), relax.TensorType):
            return arg
        value = self.static(arg)
        if value is not None:
            if value.size == 1:
                return self.get(arg) if value.ndim == 0 else self._constant(arg, value.reshape(1))
            value = channels_last_value(value, lead)
            return None if value is None else self._constant(arg, value)
        if arg.ty.ndim == 0:
            return self.get(arg)
        if arg.ty.ndim != len(lead.logical):
            return None
        image = self._image(arg, lead)
        return image.expr if image is not None and same_arrangement(image, lead) else None

    def _reshape(self, call: relax.Call, x: Image) -> Image | None:
        sizes, (p, n, h, w, c) = dims(call), x.sizes
        if sizes is None:
            return None
        batch = product([x.steps, n])
        for tail, spatial in (([c, h, w], True), ([c], False), ([product([c, h, w])], False)):
            lead = sizes[: -len(tail)]
            if len(lead) not in (1, 2) or not same_dims(sizes[len(lead) :], tail):
                continue
            if not same(product(lead), batch) or (tail == [c] and not h == w == 1):
                continue
            folded = len(lead) == 1
            if folded or same_dims(lead, [x.steps, n]):
                steps, size = x.steps, n
            elif not x.repeated and isinstance(lead[0], int):
                steps, size = lead
                p = steps
            else:
                continue
            out = x.expr
            if (not spatial and h != 1) or (w != 1 and not spatial):
                out = self.emit(relax.op.permute_dims(out, [0, 1, 4, 2, 3]))
            shape = [p, size, h, w, c] if spatial else rows_shape(p, size, tail[0])
            if not same_dims(known_dims(out), shape):
                out = self.emit(relax.op.reshape(out, relax.ShapeExpr(shape)))
            return Image(out, steps, folded, spatial)
        return None

    def _fold(self, call: relax.Call) -> Image | None:
        """[T, N, C, H, W] → [T·N, C, H, W] or [T·N, C·H·W] of a value in the program's layout.

        The last place where T is known to those that want [T·N, …].
        """
        before, after = dims(call.args[0]), dims(call)
        if before is None or after is None or len(before) != 5 or not isinstance(before[0], int):
            return None
        if before[0] == 1 or not same(after[0], product(before[:2])):
            return None
        if same_dims(after[1:], before[2:]):
            image = self._image(call.args[0])
            return None if image is None else replace(image, folded=True)
        if len(after) == 2 and isinstance(after[1], int):
            shape = relax.ShapeExpr(rows_shape(before[0], before[1], after[1]))
            rows = self.emit(relax.op.reshape(self.get(call.args[0]), shape))
            return Image(rows, before[0], True, False)
        return None

    def _repeat(self, call: relax.Call, x: Image) -> Image | None:
        """``broadcast_to`` over time alone."""
        sizes = dims(call)
        if x.folded or x.steps != 1 or sizes is None or not isinstance(sizes[0], int):
            return None
        return (
            Image(x.expr, sizes[0], False, x.spatial)
            if same_dims(sizes[1:], x.logical[1:])
            else None
        )

    def _reduce(self, call: relax.Call, x: Image) -> Image | None:
        if call.attrs.axis is None:
            return None
        keep = bool(call.attrs.keepdims)
        found = [x.axis(int(a)) for a in call.attrs.axis]
        axes = [a for a in found if a in (0, 2, 3)]
        if len(axes) < len(found):
            return None
        over_time, over_space = 0 in axes, [a for a in axes if a]
        if over_space and not keep and len(over_space) != 2:
            return None
        if over_time:
            x = self._spread(x)
        out = self.emit(_REDUCTIONS[op_name(call)](x.expr, sorted(axes), True))
        steps = 1 if over_time else x.steps
        image = Image(out, steps, x.folded or (over_time and not keep), x.spatial)
        if over_space and not keep:
            p, n, _, _, c = image.sizes
            out = self.emit(relax.op.reshape(out, relax.ShapeExpr(rows_shape(p, n, c))))
            image = Image(out, steps, image.folded, False)
        return image

    def _concat(self, call: relax.Call) -> Image | None:
        if not isinstance(call.args[0], relax.Tuple):
            return None
        fields = call.args[0].fields
        found = [self._images.get(f) for f in fields if isinstance(f, relax.Var)]
        images = [i for i in found if i is not None]
        if not images or len(images) != len(fields):
            return None
        first = images[0]
        if first.axis(int(call.attrs.axis)) != 4:
            return None
        if not all(same_arrangement(i, first) for i in images):
            return None
        images = [self._spread(i) for i in images]
        return first.like(self.emit(relax.op.concat([i.expr for i in images], 4)))

    def _pool(self, call: relax.Call, x: Image) -> Image | None:
        if not x.folded or not x.spatial:
            return None
        name, a = op_name(call).removeprefix("relax.nn."), call.attrs
        p, n, h, w, c = x.sizes
        if name in ("max_pool2d", "avg_pool2d"):
            options = [a.pool_size, a.strides, a.padding, a.dilation, a.ceil_mode]
            options += [a.count_include_pad, "NHWC", "NHWC"]
        elif name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
            options = [a.output_size, "NHWC", "NHWC"]
        else:
            return None
        if str(a.layout) != "NCHW" or not hasattr(relax.op.nn, name):
            return None
        flat = self.emit(relax.op.reshape(x.expr, relax.ShapeExpr([product([p, n]), h, w, c])))
        out = self.emit(getattr(relax.op.nn, name)(flat, *options))
        after = known_dims(out)[1:]
        return x.like(self.emit(relax.op.reshape(out, relax.ShapeExpr([p, n, *after]))))
