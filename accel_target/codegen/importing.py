"""What all parts of the importer share: values, names, and the graph that they add to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.ir import GenericConst

from ttsnn.accel_target.codegen.axes import shape_of
from ttsnn.accel_target.codegen.graph import Graph, Image, Node, Tensor
from ttsnn.accel_target.codegen.options import Options, Variant
from ttsnn.accel_target.events import Tag
from ttsnn.accel_target.isa import Flag, Format
from ttsnn.errors import TargetError
from ttsnn.passes.training.graph import Graph as Relax
from ttsnn.passes.training.manifest import MANIFEST
from ttsnn.program import num_inputs

__all__ = ["Importing", "Value"]

Value = Image | Tensor
"""Images have frames; tensors are parameters."""


class Importing:
    """One import. Subclasses have a method for each operator of a kind, called by its name.

    Args:
        mod: the program.
        options: of the code generator.
        variants: how tensor-train layers are cut, for all or by the layer's name.
    """

    def __init__(
        self,
        mod: tvm.IRModule,
        options: Options,
        variants: Mapping[str, Variant] | Variant | None,
    ) -> None:
        self.mod, self.options = mod, options
        self.variants = variants or options.variants()[0]
        self.inference = MANIFEST not in (mod.attrs or {})
        self.relax = Relax.of(mod["main"])
        self.count = num_inputs(mod["main"])
        self.T, self.N = self._time()
        self.graph = Graph(self.T, self.N)
        self.env: dict[relax.Var, Any] = {}
        self.layer, self.phase, self.chain = "input", "forward", 0
        self.layer_of: dict[Any, str] = {}
        self.names: set[str] = set()

    def _time(self) -> tuple[int, int]:
        """Timesteps and images of the program's first input."""
        attrs = self.mod.attrs or {}
        meta = json.loads(str(attrs["ttsnn.meta"])) if "ttsnn.meta" in attrs else {}
        first = self.relax.args[0] if self.relax.args else None
        if first is None or not self.count:
            raise TargetError("target ttsnn-accel: the program has no input")
        shape = shape_of(first)
        if len(shape) == 5:
            return shape[0], shape[1]
        return int(meta.get("T") or 1), shape[0]

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

    def _binary(self, x: Image) -> int:
        """The flag of products with an image of spikes."""
        return int(Flag.BINARY) if x.tensor.name.partition(".spikes")[1] else 0
