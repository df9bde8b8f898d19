"""Functions of training programs as lists of bindings, taken apart and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tvm import relax

from ttsnn.errors import PassError
from ttsnn.ops.types import as_int, shape_text

__all__ = ["Emitter", "Graph", "fresh_vars", "operands", "require_static"]


@dataclass(frozen=True)
class Graph:
    """A Relax function of one dataflow block.

    Attributes:
        args: its arguments.
        bindings: variable → expression, in order of execution.
        results: its results; a tuple, nested or not, is flattened.
    """

    args: list[relax.Var]
    bindings: dict[relax.Var, relax.Expr]
    results: list[relax.Expr]

    @classmethod
    def of(cls, func: relax.Function) -> Graph:
        """Take a function apart.

        Raises:
            PassError: for control flow or match casts.
        """
        bindings: dict[relax.Var, relax.Expr] = {}
        for block in func.body.blocks:
            for binding in block.bindings:
                if isinstance(binding, relax.MatchCast) or isinstance(binding.value, relax.If):
                    raise PassError(
                        f"training: {binding.var.name} is a branch or a match_cast, which cannot "
                        "be trained through; import the model with a fixed batch size"
                    )
                bindings[binding.var] = binding.value
        return cls(list(func.params), bindings, _leaves(func.body.body, bindings))

    def needed(self, roots: Iterable[relax.Expr]) -> list[relax.Var]:
        """Bound variables that the roots depend on, in order of execution."""
        live: set[relax.Var] = set()
        stack = [v for r in roots for v in operands(r)]
        while stack:
            var = stack.pop()
            if var in live or var not in self.bindings:
                continue
            live.add(var)
            stack += operands(self.bindings[var])
        return [v for v in self.bindings if v in live]

    def dependent(self, sources: Iterable[relax.Var]) -> set[relax.Var]:
        """The sources and all bound variables that depend on some of them."""
        found = set(sources)
        for var, value in self.bindings.items():
            if any(v in found for v in operands(value)):
                found.add(var)
        return found


def _leaves(expr: relax.Expr, bindings: Mapping[relax.Var, relax.Expr]) -> list[relax.Expr]:
    """The tensors that a result is made of."""
    while isinstance(expr, relax.Var) and isinstance(bindings.get(expr), relax.Var | relax.Tuple):
        expr = bindings[expr]
    if isinstance(expr, relax.Tuple):
        return [leaf for f in expr.fields for leaf in _leaves(f, bindings)]
    if isinstance(expr.ty, relax.TupleType):
        fields = range(len(expr.ty.fields))
        return [leaf for i in fields for leaf in _leaves(relax.TupleGetItem(expr, i), bindings)]
    return [expr]


def operands(expr: relax.Expr) -> list[relax.Var]:
    """Variables that an expression reads."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Call):
        return [v for a in expr.args for v in operands(a)]
    if isinstance(expr, relax.Tuple):
        return [v for f in expr.fields for v in operands(f)]
    if isinstance(expr, relax.TupleGetItem):
        return operands(expr.tuple_value)
    return []


class Emitter:
    """Builds one function; expressions of graphs are translated through ``self.env``.

    ``args`` are its arguments, variables of its own; ``env`` maps variables of a graph to
    expressions over them. :meth:`build` runs a callback that emits the body.
    """

    def __init__(
        self,
        name: str,
        args: Sequence[relax.Var],
        env: Mapping[relax.Var, relax.Expr] | None = None,
    ) -> None:
        self.bb = relax.BlockBuilder()
        self.env: dict[relax.Var, relax.Expr] = dict(env or {})
        self.name = name
        self.args = list(args)

    def get(self, expr: relax.Expr) -> relax.Expr:
        """An expression of a graph over this function's variables."""
        if isinstance(expr, relax.Var):
            return self.env[expr]
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [self.get(a) for a in expr.args], expr.attrs, expr.ty_args)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.get(f) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self.get(expr.tuple_value), expr.index)
        return expr

    def emit(self, expr: relax.Expr, name: str = "lv") -> relax.Var:
        """Bind an expression over this function's variables."""
        return expr if isinstance(expr, relax.Var) else self.bb.emit(expr, name)

    def emit_graph(self, graph: Graph, roots: Iterable[relax.Expr]) -> list[relax.Var]:
        """Emit what the roots of a graph need and isn't there yet; returns the roots' values."""
        roots = list(roots)
        for var in self._missing(graph, roots):
            self.env[var] = self.emit(self.get(graph.bindings[var]), var.name)
        return [self.emit(self.get(r)) for r in roots]

    def _missing(self, graph: Graph, roots: list[relax.Expr]) -> list[relax.Var]:
        live: set[relax.Var] = set()
        stack = [v for r in roots for v in operands(r)]
        while stack:
            var = stack.pop()
            if var in live or var in self.env:
                continue
            if var not in graph.bindings:
                raise PassError(f"training: {var.name} is neither bound nor an argument")
            live.add(var)
            stack += operands(graph.bindings[var])
        return [v for v in graph.bindings if v in live]

    def build(
        self,
        body: Callable[[], Sequence[relax.Expr]],
        attrs: Mapping[str, object] | None = None,
    ) -> relax.Function:
        """The function whose results are the list that ``body()`` returns, as one tuple."""
        with self.bb.function(self.name, self.args):
            with self.bb.dataflow():
                out = [self.bb.emit_output(r) for r in body()]
            self.bb.emit_func_output(relax.Tuple(out))
        func = self.bb.get()[self.name].with_attr("global_symbol", self.name)
        for key, value in (attrs or {}).items():
            func = func.with_attr(key, value)
        return func


def fresh_vars(args: Iterable[relax.Var]) -> dict[relax.Var, relax.Var]:
    """New variables of the same names and types: functions must not share theirs."""
    return {a: relax.Var(a.name, a.ty) for a in args}


def require_static(func: relax.Function) -> None:
    """Refuse symbolic sizes.

    Raises:
        PassError: naming the argument.
    """
    for arg in func.params:
        shape = getattr(arg.ty, "shape", None)
        if isinstance(shape, relax.ShapeExpr) and any(as_int(s) is None for s in shape.values):
            raise PassError(
                f"training: argument {arg.name} {shape_text(arg.ty)} has a size that varies; "
                "import the model with a fixed batch size (dynamic_batch=False)"
            )
