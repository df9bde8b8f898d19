"""``relax.transform.Gradient`` on one function, made fit for whole networks."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax
from tvm.ir import Op

from ttsnn.passes.training import gradients  # noqa: F401  registers them
from ttsnn.passes.training.graph import Emitter, Graph, fresh_vars

__all__ = ["gradient_of"]

_NO_GRAD = "relax.grad.no_grad"


def gradient_of(func: relax.Function, wrt: Sequence[relax.Var], target: int = 0) -> Graph:
    """Differentiate one scalar result of a function.

    Gradient walks back through everything, also through what no wanted gradient flows into
    (labels, the input's own preprocessing, initial membranes), and fails there on operators that
    have none. So values that do not depend on ``wrt`` are cut off first.

    Args:
        func: of one dataflow block; its results are flattened.
        wrt: arguments whose gradients are wanted.
        target: which of the results, a scalar.

    Returns:
        A graph with the same arguments (new variables) whose results are those of the function,
        then the gradients in the order of ``wrt``.
    """
    mod = tvm.IRModule({"main": _cut(func, wrt)})
    new = [mod["main"].params[list(func.params).index(v)] for v in wrt]
    adjoint = relax.transform.Gradient("main", new, target)(mod)["main_adjoint"]
    return _simplified(Graph.of(adjoint))


def _is_no_grad(value: relax.Expr) -> bool:
    return isinstance(value, relax.Call) and isinstance(value.op, Op) and value.op.name == _NO_GRAD


def _cut(func: relax.Function, wrt: Sequence[relax.Var]) -> relax.Function:
    """The function with ``no_grad`` where a wanted gradient meets a value without one."""
    graph = Graph.of(func)
    active = graph.dependent(wrt)
    args = fresh_vars(graph.args)
    e = Emitter("main", list(args.values()), args)
    cuts: dict[relax.Var, relax.Var] = {}

    def replace(expr: relax.Expr) -> relax.Expr:
        """An operand, cut off from the gradient where it is inactive."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([replace(f) for f in expr.fields])
        if not isinstance(expr, relax.Var) or expr in active or expr not in graph.bindings:
            return e.get(expr)
        if isinstance(expr.ty, relax.TupleType):
            return e.get(expr)
        if expr not in cuts:
            cuts[expr] = e.emit(relax.op.grad.no_grad(e.get(expr)))
        return cuts[expr]

    def body() -> list[relax.Expr]:
        for var in graph.needed(graph.results):
            value = graph.bindings[var]
            if var in active and isinstance(value, relax.Call):
                args = [replace(a) for a in value.args]
                new: relax.Expr = relax.Call(value.op, args, value.attrs, value.ty_args)
            elif var in active and isinstance(value, relax.Tuple):
                new = replace(value)
            else:
                new = e.get(value)
            # a variable of its own, also for a mere alias
            e.env[var] = e.emit(new, var.name)
        return [e.get(r) for r in graph.results]

    return e.build(body)


def _simplified(graph: Graph) -> Graph:
    """The graph with ``no_grad(x)`` replaced by x, and fields of known tuples by themselves."""
    bindings: dict[relax.Var, relax.Expr] = {}
    for var, value in graph.bindings.items():
        if _is_no_grad(value):
            value = value.args[0]
        if isinstance(value, relax.TupleGetItem):
            known = bindings.get(value.tuple_value, value.tuple_value)
            if isinstance(known, relax.Tuple):
                value = known.fields[value.index]
        bindings[var] = value
    return Graph(graph.args, bindings, graph.results)
