"""Which layers have nothing but a batch norm behind them: :func:`normed_calls`."""

from __future__ import annotations

from collections.abc import Iterator

from tvm import relax

from ttsnn.passes.static_values import op_name
from ttsnn.passes.training.graph import Graph, operands

__all__ = ["normed_calls"]


def normed_calls(graph: Graph) -> set[tuple[relax.Expr, relax.Expr]]:
    """Operand and first core of each ``tt.conv2d`` whose result only a batch norm reads.

    In training that is the batch norm and its gradient, whose result in turn only the gradient of
    the same ``tt.conv2d`` reads.
    """
    users: dict[relax.Expr, list[tuple[relax.Var, relax.Expr]]] = {}
    for var in graph.needed(graph.results):
        for operand in operands(graph.bindings[var]):
            users.setdefault(operand, []).append((var, graph.bindings[var]))
    results = {v for r in graph.results for v in operands(r)}

    def readers(var: relax.Var, index: int | None = None) -> Iterator[relax.Call | None]:
        """Calls that read a value, or a tuple's part, through views; None: something else."""
        if var in results:
            yield None
        for user, value in users.get(var, []):
            if isinstance(value, relax.TupleGetItem):
                if index is None or value.index == index:
                    yield from readers(user)
            elif isinstance(value, relax.Var) or _name(value) == "reshape":
                yield from readers(user, index)
            else:
                yield value if isinstance(value, relax.Call) else None

    out = set()
    for var in graph.needed(graph.results):
        call = graph.bindings[var]
        if not isinstance(call, relax.Call) or _name(call) != "tt.conv2d":
            continue
        own = list(readers(var))
        names = [_name(c) for c in own]
        if names.count("snn.batch_norm_train") != 1:
            continue
        backs = [c for c in own if _name(c) == "snn.batch_norm_train_backward"]
        fine = len(names) == 1 + len(backs) and len(backs) < 2
        for back in backs:
            (result,) = (v for v, value in graph.bindings.items() if value.same_as(back))
            fine &= all(
                c is not None
                and _name(c) == "tt.conv2d_backward"
                and c.args[1].same_as(call.args[1])
                for c in readers(result, 0)
            )
        if fine:
            out.add((call.args[0], call.args[1]))
    return out


def _name(value: relax.Expr | None) -> str:
    return op_name(value).removeprefix("relax.") if isinstance(value, relax.Call) else ""
