"""Convolutions and linear layers of a program, dense or tensor train, and how often they run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.sym import Analyzer

from ttsnn.passes.rewriter import bindings_of
from ttsnn.passes.shapes import dims
from ttsnn.passes.static_values import op_name
from ttsnn.program import layer_name, num_inputs, param_names

__all__ = ["LayerCall", "layer_calls", "network_steps", "sizes_for_one_sample"]

_NCHW = ("NCHW", "OIHW", "NCHW")


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    Attributes:
        name: the layer's name, from its parameter's.
        kind: ``"conv2d"``, ``"linear"``, ``"tt.conv2d"`` or ``"tt.linear"``.
        var: the variable that the call is bound to.
        call: ``relax.nn.conv2d``, ``relax.matmul``, ``relax.tt.conv2d`` or ``relax.tt.linear``.
        weight: the parameter: the dense weight, or the first core.
        transposed: linear: the operand is the parameter [out, in] with its axes exchanged, as
            PyTorch's linear imports; otherwise the parameter is [in, out].
    """

    name: str
    kind: str
    var: relax.Var
    call: relax.Call
    weight: relax.Var
    transposed: bool = False


def layer_calls(mod: tvm.IRModule) -> dict[str, list[LayerCall]]:
    """Layer name → its calls, both in order of execution.

    Only layers whose weight is a parameter count; a program that loops over time calls a layer
    once a timestep.
    """
    names = param_names(mod)
    bound = bindings_of(mod["main"])
    found: dict[str, list[LayerCall]] = {}
    for var, value in bound.items():
        entry = _classify(value, bound)
        if entry is None or entry[1] not in names:
            continue
        kind, weight, transposed = entry
        name = layer_name(names[weight])
        if kind == "tt.linear":  # <layer>.cores.0
            name = layer_name(name)
        found.setdefault(name, []).append(LayerCall(name, kind, var, value, weight, transposed))
    return found


def _classify(value: relax.Expr, bound: dict) -> tuple[str, relax.Expr, bool] | None:
    """Kind, weight operand, and whether it is transposed; None for any other expression."""
    op = op_name(value)
    if op == "relax.nn.conv2d":
        a = value.attrs
        if (str(a.data_layout), str(a.kernel_layout), str(a.out_layout)) != _NCHW:
            return None
        return "conv2d", value.args[1], False
    if op in ("relax.tt.conv2d", "relax.tt.linear"):
        return op.removeprefix("relax."), value.args[1], False
    if op == "relax.matmul":
        right = value.args[1]
        made = bound.get(right) if isinstance(right, relax.Var) else None
        if (
            isinstance(made, relax.Call)
            and op_name(made) == "relax.permute_dims"
            and int(made.args[0].ty.ndim) == 2
        ):
            axes = made.attrs.axes
            if axes is None or [int(a) for a in axes] == [1, 0]:
                return "linear", made.args[0], True
            return None
        if int(right.ty.ndim) == 2:
            return "linear", right, False
    return None


def network_steps(mod: tvm.IRModule) -> int | None:
    """T of the program's attribute ``ttsnn.meta``; None where it is not said."""
    steps = _meta(mod).get("T")
    return None if steps is None else int(steps)


def _meta(mod: tvm.IRModule) -> dict[str, Any]:
    if mod.attrs is None or "ttsnn.meta" not in mod.attrs:
        return {}
    return json.loads(str(mod.attrs["ttsnn.meta"]))


def sizes_for_one_sample(mod: tvm.IRModule) -> tuple[int, Callable[[Any], int]]:
    """The static batch N of the program (1 if symbolic), and a function that evaluates sizes.

    ``ttsnn.meta`` may say which axis of the first input that is (``batch_axis``). Otherwise
    inputs are [N, C, H, W] (or [N, C]) or, with time, [T, N, C, H, W] (or [T, N, C]). A
    symbolic batch is evaluated as 1.
    """
    main = mod["main"]
    shapes = [dims(p) for p in main.params[: num_inputs(main)]]
    analyzer = Analyzer()
    for shape in shapes:
        for size in shape or []:
            if isinstance(size, tvm.tirx.Var):
                analyzer.bind(size, tvm.tirx.IntImm(size.ty.dtype, 1))

    def evaluate(size: Any) -> int:
        return size if isinstance(size, int) else int(analyzer.simplify(size))

    first = next((s for s in shapes if s), None)
    if first is None:
        return 1, evaluate
    axis = _meta(mod).get("batch_axis")
    if axis is None or not 0 <= axis < len(first):
        axis = len(first) % 2 if len(first) > 1 else 0
    return evaluate(first[axis]), evaluate
