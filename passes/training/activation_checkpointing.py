"""Activation checkpointing (Chen et al., 2016): the backward pass computes activations again.

The forward part of a differentiated program is cut into segments. Kept are the values that cross
a cut, and the last segment; the activations of the others are computed a second time, from what
was kept, right before the backward pass first reads one of them. So at any time there are the
kept values and the activations of one segment, for at most one more forward pass of time.

Nobody marks segments: of all places where few bytes are alive (between residual blocks, after a
pool) :func:`_best_cuts` takes those with the smallest estimate of

    Σ bytes of the values that cross a cut + max over the segments of Σ bytes that backward reads

The second computation is the same operators on the same values, so gradients keep their bits.
Results of the program (running statistics of batch norms among them) are those of the first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tvm import relax

from ttsnn.passes.shapes import nbytes
from ttsnn.passes.training.graph import Graph, operands

__all__ = ["Checkpointed", "checkpoint_activations"]

_BUDGETS = 64  # sizes of the largest segment that are tried


@dataclass(frozen=True)
class Checkpointed:
    """A differentiated program that computes activations again.

    Attributes:
        graph: the new graph; arguments and results as before.
        again: variables of the second computation.
        segments: parts that the forward pass was cut into; 1 where a cut would save nothing.
        before: bytes of the activations that backward read.
        after: the estimate above.
    """

    graph: Graph
    again: frozenset[relax.Var]
    segments: int
    before: int
    after: int

    @property
    def options(self) -> dict[str, int]:
        """What a manifest tells of it."""
        return {
            "segments": self.segments,
            "activation_bytes": self.before,
            "checkpointed_bytes": self.after,
        }


def checkpoint_activations(graph: Graph, results: Sequence[relax.Expr]) -> Checkpointed:
    """Compute activations again in the backward pass.

    Args:
        graph: of :func:`ttsnn.passes.training.gradient.gradient_of`.
        results: its results that belong to the forward pass; all others are gradients.
    """
    parts = _Forward(graph, results)
    cuts, after = _best_cuts(parts)
    before = parts.activations(0, len(parts.order))
    if not cuts:
        return Checkpointed(graph, frozenset(), 1, before, before)
    new, again = _rewrite(graph, parts, cuts)
    return Checkpointed(new, again, len(cuts) + 1, before, after)


class _Forward:
    """The forward part of a graph: what is alive where, and what backward reads of it.

    Attributes:
        order: its variables in order of execution.
        index: variable → place in ``order``.
        reads: variables that backward reads.
    """

    def __init__(self, graph: Graph, results: Sequence[relax.Expr]) -> None:
        self.order = graph.needed(results)
        self.index = {v: i for i, v in enumerate(self.order)}
        self.reads = {
            v
            for var in graph.needed(graph.results)
            if var not in self.index
            for v in operands(graph.bindings[var])
            if v in self.index
        }
        # the last reader in the forward part
        self.last = {v: i for i, v in enumerate(self.order)}
        for i, var in enumerate(self.order):
            for v in operands(graph.bindings[var]):
                if v in self.index:
                    self.last[v] = i
        self._nullary = {v for v in self.order if not operands(graph.bindings[v])}
        self._base = {v: _base(graph, v) for v in self.order}
        sizes = np.zeros(len(self.order) + 1, np.int64)
        for base in {self._base[v] for v in self.reads}:
            if base in self.index:  # not a view of an argument
                sizes[self.index[base] + 1] = _bytes(base)
        self._sums = np.cumsum(sizes)

    def activations(self, begin: int, end: int) -> int:
        """Bytes that backward reads of the values ``order[begin:end]``."""
        return int(self._sums[end] - self._sums[begin])

    def alive(self, cut: int) -> list[relax.Var]:
        """Values made before ``order[cut]`` that it or a later one reads."""
        return [v for v in self.order[:cut] if self.last[v] >= cut]

    def crossing(self) -> np.ndarray:
        """Bytes alive at each cut, int64 [len(order) + 1]; views count as what they are of."""
        spans: dict[relax.Var, tuple[int, int]] = {}
        for i, v in enumerate(self.order):
            base = self._base[v]
            free = base not in self.index or base in self._nullary  # zeros
            if not free and self.last[v] > i:
                begin, end = spans.get(base, (i, i))
                spans[base] = (begin, max(end, self.last[v]))
        change = np.zeros(len(self.order) + 2, np.int64)
        for base, (begin, end) in spans.items():
            change[begin + 1] += _bytes(base)
            change[end + 1] -= _bytes(base)
        return np.cumsum(change)[:-1]


_VIEWS = {"relax.reshape", "relax.flatten", "relax.expand_dims", "relax.squeeze"}


def _base(graph: Graph, var: relax.Var) -> relax.Var:
    """The value that a variable is a view of."""
    while True:
        value = graph.bindings.get(var)
        if isinstance(value, relax.Call) and getattr(value.op, "name", "") in _VIEWS:
            value = value.args[0]
        if not isinstance(value, relax.Var):
            return var
        var = value


def _bytes(var: relax.Var) -> int:
    """Of a tensor, or of all tensors of a tuple."""
    types = list(var.ty.fields) if isinstance(var.ty, relax.TupleType) else [var.ty]
    return sum(nbytes(t) for t in types if isinstance(t, relax.TensorType))


def _best_cuts(parts: _Forward) -> tuple[list[int], int]:
    """Where to cut, and the estimate of what is then alive at most."""
    crossing, end = parts.crossing(), len(parts.order)
    # of places with equally many bytes the last: less is computed again behind it
    places = [
        p for p in range(1, end) if crossing[p] <= crossing[p - 1] and crossing[p] < crossing[p + 1]
    ]
    whole = parts.activations(0, end)
    best: tuple[list[int], int] = ([], whole)
    points = [0, *places, end]
    least = max((parts.activations(a, b) for a, b in pairwise(points)), default=0)
    for budget in np.unique(np.geomspace(max(least, 1), max(whole, 1), _BUDGETS).astype(np.int64)):
        cuts = _cheapest_cuts(parts, points, crossing, max(int(budget), least))
        bounds = [0, *cuts, end]
        largest = max(parts.activations(a, b) for a, b in pairwise(bounds))
        total = sum(int(crossing[c]) for c in cuts) + largest
        if (total, len(cuts)) < (best[1], len(best[0])):
            best = (cuts, total)
    return best


def _cheapest_cuts(
    parts: _Forward, points: Sequence[int], crossing: np.ndarray, budget: int
) -> list[int]:
    """The cuts of the fewest bytes that leave no segment with more activations than a budget.

    By dynamic programming over ``points``, whose first and last are the ends.
    """
    costs: list[int] = [0]
    before: list[int] = [0]
    for i in range(1, len(points)):
        options = [
            (costs[j], -j) for j in range(i) if parts.activations(points[j], points[i]) <= budget
        ]
        cost, j = min(options)
        costs.append(cost + (int(crossing[points[i]]) if i < len(points) - 1 else 0))
        before.append(-j)
    cuts, i = [], before[-1]
    while i > 0:
        cuts.append(points[i])
        i = before[i]
    return cuts[::-1]


def _rewrite(
    graph: Graph, parts: _Forward, cuts: Sequence[int]
) -> tuple[Graph, frozenset[relax.Var]]:
    """The graph whose backward part reads values of its own in all segments but the last."""
    kept = {v for cut in cuts for v in parts.alive(cut)}
    wanted = _closure(graph, parts, kept, cuts)
    env: dict[relax.Var, relax.Var] = {}
    bindings: dict[relax.Var, relax.Expr] = {
        v: e for v, e in graph.bindings.items() if v in parts.index
    }
    for var in graph.needed(graph.results):
        if var in parts.index:
            continue
        value = graph.bindings[var]
        for v in operands(value):
            segment = _segment_of(parts, cuts, v)
            for old in wanted.pop(segment, ()):  # the whole segment when its first value is read
                env[old] = relax.Var(f"{old.name}_again", old.ty)
                bindings[env[old]] = _replaced(graph.bindings[old], env)
        bindings[var] = _replaced(value, env)
    return Graph(graph.args, bindings, graph.results), frozenset(env.values())


def _segment_of(parts: _Forward, cuts: Sequence[int], var: relax.Var) -> int | None:
    return bisect_right(cuts, parts.index[var]) if var in parts.index else None


def _closure(
    graph: Graph, parts: _Forward, kept: Collection[relax.Var], cuts: Sequence[int]
) -> dict[int | None, list[relax.Var]]:
    """For each segment but the last, what has to be computed again, in order of execution."""
    found: set[relax.Var] = set()
    stack: list[relax.Var] = list(parts.reads)
    while stack:
        v = stack.pop()
        last = v in parts.index and parts.index[v] >= cuts[-1]
        if v in found or v in kept or last or v not in parts.index:
            continue
        found.add(v)
        stack += operands(graph.bindings[v])
    out: dict[int | None, list[relax.Var]] = {}
    for v in parts.order:
        if v in found:
            out.setdefault(_segment_of(parts, cuts, v), []).append(v)
    return out


def _replaced(expr: relax.Expr, env: Mapping[relax.Var, relax.Var]) -> relax.Expr:
    """An expression with other variables."""

    def replace_all(exprs: Iterable[relax.Expr]) -> list[relax.Expr]:
        return [_replaced(e, env) for e in exprs]

    if isinstance(expr, relax.Var):
        return env.get(expr, expr)
    if isinstance(expr, relax.Call):
        return relax.Call(expr.op, replace_all(expr.args), expr.attrs, expr.ty_args)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple(replace_all(expr.fields))
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(_replaced(expr.tuple_value, env), expr.index)
    return expr
