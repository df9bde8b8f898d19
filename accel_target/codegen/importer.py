"""Relax programs, of inference or of a training step, as graphs of the accelerator's nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.ir import GenericConst

from ttsnn.accel_target.codegen.axes import (
    frames_of,
    image_axes,
    is_flat,
    shape_of,
    text_of,
    weight_shape,
)
from ttsnn.accel_target.codegen.elementwise import BINARY, UNARY, ElementwiseImport
from ttsnn.accel_target.codegen.graph import Graph, Image, Map, Tensor
from ttsnn.accel_target.codegen.importing import Value
from ttsnn.accel_target.codegen.neurons import NeuronImport
from ttsnn.accel_target.codegen.options import Options, Variant
from ttsnn.accel_target.codegen.pools import PoolImport
from ttsnn.accel_target.codegen.products import ProductImport
from ttsnn.accel_target.codegen.views import ViewImport
from ttsnn.accel_target.isa import Format, Op, Vec
from ttsnn.errors import TargetError
from ttsnn.passes.static_values import op_name
from ttsnn.passes.training.manifest import Manifest
from ttsnn.program import layer_name, params_of

__all__ = ["import_graph"]


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


class _Importer(ViewImport, NeuronImport, PoolImport, ProductImport, ElementwiseImport):
    """Arguments, results, and each binding by the method of its operator."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.new_weights: set[int] = set()
        self.renewed: dict[int, str] = {}

    def run(self) -> Graph:
        names = list(params_of(self.mod))
        if not self.inference:
            signature = Manifest.of(self.mod).functions["main"]
            self.new_weights = set(signature.named("results", "param").values())
            for i, slot in enumerate(signature.results):
                if slot.role in ("param", "buffer", "optimizer"):
                    self.renewed[i] = slot.name
        for i, arg in enumerate(self.relax.args):
            if i < self.count:
                self.env[arg] = self._input(arg)
            else:
                name = names[i - self.count]
                self.env[arg] = self._param(name, arg)
                self.layer_of[self.env[arg]] = layer_name(name).removesuffix(".cores")
        self.updates = self.relax.dependent(
            [a for a in self.relax.args if a.name in {"lr", "step"} or self._is_state(a)]
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
        shape = shape_of(arg)
        if not shape:
            t = Tensor(arg.name, (1, 1, 1, 1), Format.STATISTIC, "input", (), ())
            self.graph.inputs.append(t)
            return t
        fmt = Format.STATISTIC if len(shape) < 3 else Format.ACTIVATION
        t = Tensor(arg.name, frames_of(shape), fmt, "input", tuple(shape), image_axes(len(shape)))
        self.graph.inputs.append(t)
        return Image(t, 0, t.shape[0] // self.N)

    def _param(self, name: str, arg: relax.Var) -> Tensor:
        shape = tuple(shape_of(arg))
        fmt = Format.WEIGHT if len(shape) > 1 and not is_flat(shape) else Format.STATISTIC
        if name.endswith((".momentum_buffer", ".exp_avg", ".exp_avg_sq")) and len(shape) > 1:
            fmt = Format.GRADIENT
        t = Tensor(name, weight_shape(shape), fmt, "input", shape, tuple(range(len(shape)))[::-1])
        if len(shape) == 4:
            t.host_axes = (2, 3, 1, 0)
        if is_flat(shape):
            t.host_axes = tuple(range(len(shape)))
        self.graph.inputs.append(t)
        return t

    def _output(self, i: int, expr: relax.Expr) -> Image:
        value = self.get(expr)
        shape = tuple(shape_of(expr))
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
        if i in self.new_weights and t.format == Format.GRADIENT:
            t.format = Format.WEIGHT
        t.host_axes = (
            image_axes(len(shape)) if isinstance(value, Image) else tuple(range(len(shape)))
        )
        if i in self.renewed:  # as the old value is
            (old,) = (o for o in self.graph.inputs if o.name == self.renewed[i])
            t.host_view, t.host_axes = old.host_view, old.host_axes
        t.name = f"{i}:{t.name}"
        return Image(t, 0, max(1, t.shape[0] // self.N))

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
        if handler is None and name in BINARY | UNARY:
            handler = self._elementwise
        if handler is None:
            raise TargetError(
                f"target ttsnn-accel: operator {name} (result {text_of(value)}) after layer "
                f"{self.layer!r} cannot be executed; compile for cpu"
            )
        self.env[var] = handler(value)
