"""Relax operators as ONNX nodes, one writer each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ttsnn import ops
from ttsnn.errors import ModelImportError
from ttsnn.frontend.onnx_functions import (
    layer_function,
    lif_function,
    tt_conv2d_function,
    tt_linear_function,
)
from ttsnn.frontend.onnx_graph import DOMAIN, GraphBuilder, tensor_type
from ttsnn.ops.types import dims

__all__ = ["WRITERS", "Writer"]


class Writer:
    """State of one export: names of Relax values, sizes that vary, functions made so far."""

    def __init__(self, builder: GraphBuilder) -> None:
        self.b = builder
        self.env: dict[Any, Any] = {}
        self.sizes: dict[Any, tuple[str, int]] = {}
        self.functions: list[Any] = []
        self.zeros: set[Any] = set()
        self._known: dict[Any, str] = {}

    def ref(self, expr: Any) -> Any:
        """Name of a Relax value (a list of names for a tuple)."""
        if isinstance(expr, relax.Tuple):
            return [self.ref(f) for f in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            value = self.env[expr.tuple_value]
            return value[expr.index] if isinstance(value, list) else value
        if isinstance(expr, tvm.ir.GenericConst):
            array = expr.value.numpy()
            return self.b.const(array, str(array.dtype))
        return self.env[expr]

    def args(self, call: tvm.ir.Call) -> list[Any]:
        """Names of a call's tensor operands."""
        return [self.ref(a) for a in call.args if not isinstance(a, relax.ShapeExpr)]

    def shape(self, sizes: Sequence[Any]) -> str:
        """A shape as a 1-D int64 value, computed where it depends on the batch."""
        if all(isinstance(s, int) for s in sizes):
            return self.b.ints(*sizes)
        return self.b.op("Concat", *(self._size(s) for s in sizes), axis=0)

    def _size(self, size: Any) -> str:
        if isinstance(size, int | tvm.tirx.IntImm):
            return self.b.ints(int(size))
        if size in self.sizes:
            name, axis = self.sizes[size]
            return self.b.op("Shape", name, start=axis, end=axis + 1)
        for kind, op in ((tvm.tirx.Mul, "Mul"), (tvm.tirx.Add, "Add"), (tvm.tirx.Sub, "Sub")):
            if isinstance(size, kind):
                return self.b.op(op, self._size(size.a), self._size(size.b))
        raise ModelImportError(f"a size varies as {size}; export with a fixed batch size")

    def function(self, kind: str, key: Any, make: Callable[[str], Any]) -> str:
        """Name of the function for these settings, made once."""
        if (kind, key) not in self._known:
            name = f"{kind}_{sum(k == kind for k, _ in self._known)}"
            self._known[kind, key] = name
            self.functions.append(make(name))
        return self._known[kind, key]


WRITERS: dict[str, Callable[[Writer, tvm.ir.Call], Any]] = {}


def _dims(ty: relax.TensorType) -> list[Any]:
    """Sizes of a tensor, which an ONNX node needs to know."""
    sizes = dims(ty)
    if sizes is None:
        raise ModelImportError(f"a tensor {ty} has no known shape; give it one, with match_cast")
    return sizes


def _writes(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(fn: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            WRITERS[f"relax.{name}"] = fn
        return fn

    return add


def _plain(kind: str, **attrs: Any) -> Callable[..., Any]:
    return lambda w, call: w.b.op(kind, *w.args(call), **attrs)


for _relax, _onnx in {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max",
    "minimum": "Min", "power": "Pow", "abs": "Abs", "negative": "Neg", "exp": "Exp", "log": "Log",
    "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos",
    "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "tanh": "Tanh", "sigmoid": "Sigmoid",
    "floor": "Floor", "ceil": "Ceil", "sign": "Sign", "erf": "Erf", "round": "Round",
    "isnan": "IsNaN", "nn.relu": "Relu", "where": "Where", "equal": "Equal", "greater": "Greater",
    "greater_equal": "GreaterOrEqual", "less": "Less", "less_equal": "LessOrEqual",
    "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor", "logical_not": "Not",
    "matmul": "MatMul", "nn.gelu": "Gelu",
}.items():  # fmt: skip
    WRITERS[f"relax.{_relax}"] = _plain(_onnx)
WRITERS["relax.mod"] = _plain("Mod", fmod=1)
WRITERS["relax.nn.gelu_tanh"] = _plain("Gelu", approximate="tanh")


@_writes("floor_mod")
def _floor_mod(w: Writer, call: tvm.ir.Call) -> str:
    if str(call.ty.dtype).startswith("float"):
        raise ModelImportError("on floats it has no ONNX form")
    return w.b.op("Mod", *w.args(call))


@_writes("not_equal")
def _not_equal(w: Writer, call: tvm.ir.Call) -> str:
    return w.b.op("Not", w.b.op("Equal", *w.args(call)))


@_writes("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not")
def _bits(w: Writer, call: tvm.ir.Call) -> str:
    word = call.op.name.rpartition("_")[2].capitalize()
    kind = word if str(call.ty.dtype) == "bool" else f"Bitwise{word}"
    return w.b.op(kind, *w.args(call))


@_writes("rsqrt")
def _rsqrt(w: Writer, call: tvm.ir.Call) -> str:
    return w.b.op("Reciprocal", w.b.op("Sqrt", *w.args(call)))


@_writes("trunc")
def _trunc(w: Writer, call: tvm.ir.Call) -> str:
    (x,) = w.args(call)
    return w.b.op("Mul", w.b.op("Sign", x), w.b.op("Floor", w.b.op("Abs", x)))


@_writes("square")
def _square(w: Writer, call: tvm.ir.Call) -> str:
    (x,) = w.args(call)
    return w.b.op("Mul", x, x)


@_writes("nn.silu")
def _silu(w: Writer, call: tvm.ir.Call) -> str:
    (x,) = w.args(call)
    return w.b.op("Mul", x, w.b.op("Sigmoid", x))


@_writes("astype")
def _astype(w: Writer, call: tvm.ir.Call) -> str:
    return w.b.op("Cast", *w.args(call), to=tensor_type(str(call.ty.dtype)))


# -- shapes -------------------------------------------------------------------------------------


@_writes("reshape", "flatten")
def _reshape(w: Writer, call: tvm.ir.Call) -> str:
    shape = _dims(call.ty)
    free = [i for i, s in enumerate(shape) if not isinstance(s, int)]
    if len(free) == 1:
        return w.b.reshape(
            w.ref(call.args[0]), [-1 if i in free else s for i, s in enumerate(shape)]
        )
    return w.b.op("Reshape", w.ref(call.args[0]), w.shape(shape))


@_writes("permute_dims")
def _permute(w: Writer, call: tvm.ir.Call) -> str:
    rank = len(_dims(call.ty))
    axes = [int(a) for a in call.attrs.axes] if call.attrs.axes else list(range(rank))[::-1]
    return w.b.op("Transpose", *w.args(call), perm=axes)


@_writes("expand_dims")
def _expand_dims(w: Writer, call: tvm.ir.Call) -> str:
    return w.b.op("Unsqueeze", *w.args(call), w.b.ints(*(int(a) for a in call.attrs.axis)))


@_writes("squeeze")
def _squeeze(w: Writer, call: tvm.ir.Call) -> str:
    return (
        w.b.reshape(w.ref(call.args[0]), _dims(call.ty))
        if all(isinstance(s, int) for s in _dims(call.ty))
        else w.b.op("Squeeze", *w.args(call), w.b.ints(*(int(a) for a in call.attrs.axis)))
    )


@_writes("broadcast_to")
def _broadcast(w: Writer, call: tvm.ir.Call) -> str:
    old, new = _dims(call.args[0].ty), _dims(call.ty)
    old = [1] * (len(new) - len(old)) + old
    # Expand keeps a size where the shape says 1
    target = [1 if not isinstance(o, int) else n for o, n in zip(old, new, strict=True)]
    return w.b.op("Expand", w.ref(call.args[0]), w.shape(target))


@_writes("zeros", "ones", "full")
def _filled(w: Writer, call: tvm.ir.Call) -> str:
    kind, dtype = call.op.name, str(call.ty.dtype)
    if kind == "relax.full":
        value = w.ref(call.args[1])
    else:
        value = w.b.const(0 if kind == "relax.zeros" else 1, dtype)
    return w.b.op("Expand", value, w.shape(_dims(call.ty)))


@_writes("concat")
def _concat(w: Writer, call: tvm.ir.Call) -> str:
    return w.b.op("Concat", *w.ref(call.args[0]), axis=int(call.attrs.axis))


@_writes("stack")
def _stack(w: Writer, call: tvm.ir.Call) -> str:
    axis = int(call.attrs.axis)
    parts = [w.b.op("Unsqueeze", x, w.b.ints(axis)) for x in w.ref(call.args[0])]
    return w.b.op("Concat", *parts, axis=axis)


@_writes("split")
def _split(w: Writer, call: tvm.ir.Call) -> list[str]:
    axis = int(call.attrs.axis)
    sizes = [_dims(f)[axis] for f in call.ty.fields]
    return w.b.op("Split", *w.args(call), w.b.ints(*sizes), outputs=len(sizes), axis=axis)


@_writes("take")
def _take(w: Writer, call: tvm.ir.Call) -> str:
    x, index = w.args(call)
    return w.b.op("Gather", x, index, axis=int(call.attrs.axis))


@_writes("gather_elements")
def _gather(w: Writer, call: tvm.ir.Call) -> str:
    return w.b.op("GatherElements", *w.args(call), axis=int(call.attrs.axis))


def _numbers(expr: relax.Expr) -> list[int]:
    values = [getattr(f, "value", f) for f in expr.fields]
    if not all(isinstance(v, int) for v in values):
        raise ModelImportError("its bounds vary with the batch; export with a fixed batch size")
    return values


@_writes("strided_slice")
def _slice(w: Writer, call: tvm.ir.Call) -> str:
    axes, begin, end, *more = [_numbers(a) for a in call.args[1:]]
    steps = more[0] if more else [1] * len(axes)
    bounds = (w.b.ints(*v) for v in (begin, end, axes, steps))
    return w.b.op("Slice", w.ref(call.args[0]), *bounds)


@_writes("flip")
def _flip(w: Writer, call: tvm.ir.Call) -> str:
    axis, low = int(call.attrs.axis), np.iinfo(np.int64).min
    bounds = (w.b.ints(v) for v in (-1, low, axis, -1))
    return w.b.op("Slice", *w.args(call), *bounds)


@_writes("tile")
def _tile(w: Writer, call: tvm.ir.Call) -> str:
    x, repeats = call.args[0], [int(r) for r in call.attrs.repeats]
    name, rank = w.ref(x), len(_dims(x.ty))
    if len(repeats) > rank:
        name = w.b.op("Unsqueeze", name, w.b.ints(*range(len(repeats) - rank)))
    return w.b.op("Tile", name, w.b.ints(*([1] * (rank - len(repeats)) + repeats)))


@_writes("repeat")
def _repeat(w: Writer, call: tvm.ir.Call) -> str:
    axis = int(call.attrs.axis)
    size = _dims(call.args[0].ty)[axis]
    index = np.repeat(np.arange(size), int(call.attrs.repeats))
    return w.b.op("Gather", *w.args(call), w.b.ints(*index), axis=axis)


@_writes("nn.pad")
def _pad(w: Writer, call: tvm.ir.Call) -> str:
    width = [int(v) for v in call.attrs.pad_width]
    fill = w.b.const(float(call.attrs.pad_value), str(call.ty.dtype))
    return w.b.op("Pad", w.ref(call.args[0]), w.b.ints(*width[::2], *width[1::2]), fill)


@_writes("tril", "triu")
def _triangle(w: Writer, call: tvm.ir.Call) -> str:
    k = call.args[1]
    return w.b.op(
        "Trilu",
        w.ref(call.args[0]),
        w.b.const(int(getattr(k, "value", k)), "int64"),
        upper=int(call.op.name.endswith("triu")),
    )


# -- reductions ---------------------------------------------------------------------------------


def _reduction(kind: str) -> Callable[..., Any]:
    def write(w: Writer, call: tvm.ir.Call) -> str:
        axis = call.attrs.axis
        axes = [] if axis is None else [w.b.ints(*(int(a) for a in axis))]
        return w.b.op(kind, *w.args(call), *axes, keepdims=int(call.attrs.keepdims))

    return write


for _relax, _onnx in {
    "sum": "ReduceSum",
    "mean": "ReduceMean",
    "max": "ReduceMax",
    "min": "ReduceMin",
    "prod": "ReduceProd",
}.items():
    WRITERS[f"relax.{_relax}"] = _reduction(_onnx)


@_writes("argmax", "argmin")
def _arg(w: Writer, call: tvm.ir.Call) -> str:
    kind = "ArgMax" if call.op.name.endswith("max") else "ArgMin"
    return w.b.op(kind, *w.args(call), axis=int(call.attrs.axis), keepdims=int(call.attrs.keepdims))


@_writes("cumsum")
def _cumsum(w: Writer, call: tvm.ir.Call) -> str:
    return w.b.op("CumSum", *w.args(call), w.b.const(int(call.attrs.axis), "int64"))


@_writes("nn.softmax", "nn.log_softmax")
def _softmax(w: Writer, call: tvm.ir.Call) -> str:
    kind = "LogSoftmax" if "log" in call.op.name else "Softmax"
    return w.b.op(kind, *w.args(call), axis=int(call.attrs.axis))


# -- layers -------------------------------------------------------------------------------------


def _ints(values: Any) -> list[int]:
    return [int(v) for v in values]


@_writes("nn.conv1d", "nn.conv2d", "nn.conv3d")
def _conv(w: Writer, call: tvm.ir.Call) -> str:
    a = call.attrs
    x, weight = w.args(call)
    shape, w_shape = _dims(call.args[0].ty), _dims(call.args[1].ty)
    if len(shape) == 4:
        args = _ints(a.strides), _ints(a.padding), _ints(a.dilation), int(a.groups)
        if w.b.dtype == "float64":
            keys = ("strides", "padding", "dilation", "groups")
            return _layer(w, "conv2d", shape[1:], w_shape, dict(zip(keys, args)), x, weight)
        return w.b.conv2d(x, weight, shape[1:], w_shape, *args)[0]
    if w.b.dtype == "float64":
        raise ModelImportError(f"of an input {shape} has no float64 form; export as float32")
    return w.b.op(
        "Conv",
        x,
        weight,
        kernel_shape=w_shape[2:],
        strides=_ints(a.strides),
        pads=_ints(a.padding),
        dilations=_ints(a.dilation),
        group=int(a.groups),
    )


def _layer(
    w: Writer, kind: str, x_shape: list[Any], w_shape: list[Any], attrs: dict, *operands: str
) -> str:
    """A layer that ONNX Runtime lacks in float64, as a function of ours."""
    key = str((x_shape, w_shape, attrs))
    name = w.function(kind, key, lambda n: layer_function(n, x_shape, w_shape, attrs))
    return w.b.op(name, *operands, hint=kind, domain=DOMAIN, **attrs)


@_writes("nn.conv1d_transpose", "nn.conv2d_transpose", "nn.conv3d_transpose")
def _conv_transpose(w: Writer, call: tvm.ir.Call) -> str:
    if w.b.dtype == "float64":
        raise ModelImportError("has no float64 form in ONNX Runtime; export as float32")
    a = call.attrs
    return w.b.op(
        "ConvTranspose",
        *w.args(call),
        kernel_shape=_dims(call.args[1].ty)[2:],
        strides=_ints(a.strides),
        pads=_ints(a.padding),
        output_padding=_ints(a.output_padding),
        dilations=_ints(a.dilation),
        group=int(a.groups),
    )


@_writes("nn.max_pool1d", "nn.max_pool2d", "nn.max_pool3d")
def _max_pool(w: Writer, call: tvm.ir.Call) -> str:
    a = call.attrs
    return w.b.op(
        "MaxPool",
        *w.args(call),
        kernel_shape=_ints(a.pool_size),
        strides=_ints(a.strides),
        pads=_ints(a.padding),
        dilations=_ints(a.dilation),
    )


@_writes("nn.avg_pool1d", "nn.avg_pool2d", "nn.avg_pool3d")
def _avg_pool(w: Writer, call: tvm.ir.Call) -> str:
    a = call.attrs
    kernel, strides, shape = _ints(a.pool_size), _ints(a.strides), _dims(call.args[0].ty)
    if any(_ints(a.padding)):
        raise ModelImportError("with padding inside the operator has no ONNX form here")
    if len(kernel) == 2 and w.b.dtype == "float64":
        attrs = {"pool_size": kernel, "strides": strides}
        return _layer(w, "avg_pool2d", shape[1:], [], attrs, *w.args(call))
    if w.b.dtype == "float64":
        raise ModelImportError(f"of an input {shape} has no float64 form; export as float32")
    return w.b.op("AveragePool", *w.args(call), kernel_shape=kernel, strides=strides)


@_writes("nn.batch_norm")
def _batch_norm(w: Writer, call: tvm.ir.Call) -> list[str]:
    return [w.b.op("BatchNormalization", *w.args(call), epsilon=float(call.attrs.epsilon))]


# -- the dialect --------------------------------------------------------------------------------


@_writes("snn.lif")
def _lif(w: Writer, call: tvm.ir.Call) -> list[str]:
    a = ops.lif_attrs_of(call)
    x, v0, *rest = call.args
    steps, dtype = int(_dims(x.ty)[0]), str(x.ty.dtype)
    zero = v0 in w.zeros
    attrs = {k: int(v) if isinstance(v, bool) else v for k, v in a.to_dict().items()}
    # ONNX keeps numbers in float32; the text has them in full precision
    attrs |= {"timesteps": steps, "has_v0": int(not zero), "settings": json.dumps(a.to_dict())}
    name = w.function(
        "lif",
        tuple(attrs.items()),
        lambda n: lif_function(n, a, steps, dtype, not zero, attrs),
    )
    operands = [w.ref(o) for o in ([x, *rest] if zero else [x, v0, *rest])]
    return w.b.op(name, *operands, hint="lif", outputs=2, domain=DOMAIN, **attrs)


@_writes("tt.conv2d")
def _tt_conv2d(w: Writer, call: tvm.ir.Call) -> str:
    a = ops.tt_conv_attrs_of(call)
    shape = _dims(call.args[0].ty)
    cores = [_dims(g.ty) for g in call.args[1:]]
    attrs: dict[str, Any] = {
        "mode": a.mode,
        "timesteps": int(a.timesteps),
        "strides": _ints(a.strides),
        "padding": _ints(a.padding),
        "dilation": _ints(a.dilation),
    }
    key = str((attrs, [str(s) for s in shape], cores))
    name = w.function(
        "tt_conv2d",
        key,
        lambda n: tt_conv2d_function(n, a, shape, cores, str(call.ty.dtype), attrs),
    )
    return w.b.op(name, *w.args(call), hint="tt_conv2d", domain=DOMAIN, **attrs)


@_writes("tt.linear")
def _tt_linear(w: Writer, call: tvm.ir.Call) -> str:
    cores = [_dims(g.ty) for g in call.args[1:]]
    name = w.function(
        "tt_linear",
        str(cores),
        lambda n: tt_linear_function(n, cores, str(call.ty.dtype), {}),
    )
    return w.b.op(name, *w.args(call), hint="tt_linear", domain=DOMAIN)
