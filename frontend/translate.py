"""torch.fx graph of an ``ExportedProgram`` → one Relax dataflow block.

Converters (the ``aten_*`` modules and ``dialect``) translate one ATen operator each. What
PyTorch's tracer recorded about a node's result (its fake tensor) is held against the Relax type
after every converter: a wrong shape is an error, a dtype is cast, so that an operator is
imported rightly or refused, and float64 is never narrowed on the way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy
import torch
import tvm
from torch import fx
from tvm import relax, tirx
from tvm.sym import Analyzer

from ttsnn.errors import ModelImportError
from ttsnn.frontend.describe import describe_node, problem_report
from ttsnn.ops.types import dims

__all__ = [
    "Converter",
    "ScatterWrites",
    "Translator",
    "Unsupported",
    "dtype_name",
    "dtype_of",
    "registrar",
    "same_shape",
    "sizes_of",
]

Converter = Callable[..., Any]

_DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


class Unsupported(Exception):
    """Raised by a converter: this use of the operator cannot be imported, and why."""


def dtype_name(dtype: torch.dtype) -> str:
    """TVM's name of a torch dtype; raises :class:`Unsupported` where TVM has none."""
    if dtype not in _DTYPES:
        raise Unsupported(f"dtype {dtype} is not supported")
    return _DTYPES[dtype]


@dataclass
class ScatterWrites:
    """What a tensor is made of after ``out[i] = s`` writes: a base and the slices over it."""

    base: relax.Expr
    dim: int
    writes: dict[int, relax.Expr] = field(default_factory=dict)


class Translator:
    """Translates one graph, node by node.

    Args:
        converters: ATen operator name (``"add.Tensor"``) → converter, called as
            ``converter(translator, *args)`` with every argument of the operator's schema,
            defaults filled in, tensors as Relax expressions.
        symbols: sympy symbol name of the graph → name of the size in Relax.
    """

    def __init__(
        self, converters: Mapping[str, Converter], symbols: Mapping[str, str] | None = None
    ) -> None:
        self.converters = converters
        self.bb = relax.BlockBuilder()
        self.env: dict[fx.Node, Any] = {}
        self.node: fx.Node | None = None
        self.problems: list[str] = []
        self.scatters: dict[relax.Expr, ScatterWrites] = {}
        self.timesteps: list[int] = []
        self._reshaped: dict[relax.Expr, relax.Expr] = {}
        self._symbol_names = dict(symbols or {})
        self._symbols: dict[str, tirx.Var] = {}

    # -- sizes -------------------------------------------------------------------------------

    def dim(self, size: Any) -> Any:
        """A size of torch (int or SymInt) as an int or a TIR expression."""
        if isinstance(size, torch.SymInt):
            return Analyzer().simplify(tvm.runtime.convert(self._sympy(size.node.expr)))
        return int(size)

    def _sympy(self, expr: Any) -> Any:
        if expr.is_Integer:
            return int(expr)
        if expr.is_Symbol:
            name = self._symbol_names.get(str(expr), str(expr))
            return self._symbols.setdefault(name, tirx.Var(name, "int64"))
        args = [self._sympy(a) for a in expr.args]
        kind = type(expr).__name__
        if isinstance(expr, sympy.Add):
            return sum(args[1:], args[0])
        if isinstance(expr, sympy.Mul):
            out = args[0]
            for a in args[1:]:
                out = out * a
            return out
        if kind in ("FloorDiv", "CleanDiv", "IntTrueDiv"):
            return tirx.floordiv(*(tvm.runtime.convert(a) for a in args))
        if kind in ("Mod", "PythonMod"):
            return tirx.floormod(*(tvm.runtime.convert(a) for a in args))
        raise Unsupported(f"a size depends on the batch as {expr}")

    def shape(self, value: torch.Tensor) -> list[Any]:
        """Sizes of a traced tensor."""
        return [self.dim(s) for s in value.shape]

    @property
    def current(self) -> fx.Node:
        """The node that is being translated; only between the first node and the last."""
        assert self.node is not None
        return self.node

    def val(self, node: fx.Node | None = None) -> Any:
        """What the tracer recorded about a node's result (default: the current node)."""
        return (node or self.current).meta.get("val")

    def tensor_type(self, value: torch.Tensor) -> relax.TensorType:
        """Relax type of a traced tensor."""
        return relax.TensorType(self.shape(value), dtype_name(value.dtype))

    # -- what converters use -----------------------------------------------------------------

    @property
    def out_shape(self) -> list[Any]:
        """Shape of the current node's result."""
        return self.shape(self.val())

    @property
    def out_dtype(self) -> str:
        """dtype of the current node's result."""
        return dtype_name(self.val().dtype)

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Bind an expression; the variable is named after the node."""
        return self.bb.emit(expr, name_hint=self.node.name if self.node is not None else "")

    def const(self, value: Any, dtype: str) -> relax.Constant:
        """A constant of exactly this dtype."""
        return relax.const(np.asarray(value, dtype=dtype), dtype)

    def cast(self, x: relax.Expr, dtype: str) -> relax.Expr:
        """``x`` in another dtype; ``x`` itself where it has it already."""
        return x if dtype_of(x) == dtype else self.emit(relax.op.astype(x, dtype))

    def tensor(self, x: Any, dtype: str) -> relax.Expr:
        """A tensor operand or a Python number, in ``dtype``."""
        if isinstance(x, bool | int | float):
            return self.const(x, dtype)
        if isinstance(x, relax.Expr) and isinstance(x.ty, relax.TensorType):
            return self.cast(x, dtype)
        raise Unsupported("arithmetic between a tensor and a size that varies with the batch")

    def reshape(self, x: relax.Expr, shape: list[Any]) -> relax.Expr:
        """``x`` in another shape; a reshape that undoes one before it gives back its operand."""
        source = self._reshaped.get(x, x)
        if same_shape(sizes_of(source), shape):
            return source
        out = self.emit(relax.op.reshape(source, relax.ShapeExpr(shape)))
        self._reshaped[out] = source
        return out

    # -- running -----------------------------------------------------------------------------

    def run_node(self, node: fx.Node) -> None:
        """Translate a ``call_function`` node; record why where that is not possible."""
        self.node = node
        try:
            self.env[node] = self._checked(node, self._convert(node))
        except Unsupported as err:
            self._refuse(node, str(err))
        except (ModelImportError, KeyboardInterrupt, MemoryError):
            raise
        except Exception as err:  # TVM raises its own many kinds
            self._refuse(node, f"cannot be imported: {_first_line(err)}")

    def _convert(self, node: fx.Node) -> Any:
        target = node.target
        if target is operator.getitem:
            return self.value(node.args[0])[node.args[1]]
        if not isinstance(target, torch._ops.OpOverload):
            return self._size_arithmetic(node)
        name = operator_name(target)
        if name not in self.converters:
            raise Unsupported("operator is not supported")
        args: list[Any] = []
        schema = target._schema.arguments
        for i, arg in enumerate(schema):
            if not arg.kwarg_only and i < len(node.args):
                args.append(self.value(node.args[i]))
            elif arg.name in node.kwargs:
                args.append(self.value(node.kwargs[arg.name]))
            else:
                args.append(arg.default_value if arg.has_default_value() else None)
        return self.converters[name](self, *args)

    def _size_arithmetic(self, node: fx.Node) -> Any:
        value = self.val(node)
        if isinstance(value, torch.SymInt):
            return self.dim(value)
        if isinstance(value, bool | int | float) or value is None:
            return value
        if isinstance(value, torch.SymBool):  # a guard on sizes, checked by the tracer
            return None
        raise Unsupported(f"operator {getattr(node.target, '__name__', node.target)} on sizes")

    def value(self, arg: Any) -> Any:
        """An argument of a node with nodes replaced by what they became."""
        if isinstance(arg, fx.Node):
            return self.env[arg]
        if isinstance(arg, list | tuple):
            return [self.value(a) for a in arg]
        if isinstance(arg, torch.SymInt):
            return self.dim(arg)
        return arg

    def _checked(self, node: fx.Node, result: Any) -> Any:
        val = self.val(node)
        if isinstance(val, torch.Tensor):
            return self._fit(result, val)
        if isinstance(val, list | tuple) and isinstance(result, list | tuple):
            return [
                self._fit(r, v) if isinstance(v, torch.Tensor) and r is not None else r
                for r, v in zip(result, val, strict=False)
            ]
        return result

    def _fit(self, result: relax.Expr, val: torch.Tensor) -> relax.Expr:
        want = self.shape(val)
        if result is None:
            raise Unsupported("this result of it (indices, statistics) is not supported")
        got = dims(result.ty)
        if got is None or not same_shape(got, want):
            raise Unsupported(f"imports with shape {got} in place of {want}")
        return self.cast(result, dtype_name(val.dtype))

    def _refuse(self, node: fx.Node, why: str) -> None:
        self.problems.append(describe_node(node, why))
        try:
            self.env[node] = self._stand_in(node, self.val(node))
        except Unsupported:
            self.env[node] = None

    def _stand_in(self, node: fx.Node, val: Any) -> Any:
        """A variable of the result's type, so that the remaining nodes can be checked too."""
        if isinstance(val, torch.Tensor):
            return relax.Var(node.name, self.tensor_type(val))
        if isinstance(val, list | tuple):
            return [self._stand_in(node, v) for v in val]
        return val

    def raise_problems(self, what: str) -> None:
        """One ``ModelImportError`` with everything that was refused."""
        if self.problems:
            raise ModelImportError(problem_report(what, self.problems))


def sizes_of(x: relax.Expr) -> list[Any]:
    """Sizes of a Relax tensor: ints, or TIR expressions where they vary.

    Raises:
        Unsupported: where they are not known.
    """
    sizes = dims(x.ty)
    if sizes is None:
        raise Unsupported(f"an operand {x.ty} has no known shape")
    return sizes


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are provably equal."""
    if len(a) != len(b):
        return False
    analyzer = Analyzer()
    return all(
        x == y if isinstance(x, int) and isinstance(y, int) else analyzer.can_prove_equal(x, y)
        for x, y in zip(a, b, strict=True)
    )


def registrar(table: dict[str, Converter]) -> Callable[..., Callable[[Converter], Converter]]:
    """Decorator that enters a converter into a table under the operators' names."""

    def register(*names: str) -> Callable[[Converter], Converter]:
        def add(fn: Converter) -> Converter:
            for name in names:
                table[name] = fn
            return fn

        return add

    return register


def dtype_of(x: relax.Expr) -> str:
    """dtype of a Relax tensor."""
    return str(x.ty.dtype)


def operator_name(target: torch._ops.OpOverload) -> str:
    """``aten.add.Tensor`` → ``"add.Tensor"``; other namespaces keep theirs in front."""
    namespace, _, name = target._schema.name.partition("::")
    name = f"{name}.{target._overloadname}"
    return name if namespace == "aten" else f"{namespace}::{name}"


def _first_line(err: Exception) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0] if lines else type(err).__name__
