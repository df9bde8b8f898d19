"""Groups of nodes that are cut in two where that moves fewer bytes: :func:`cut_groups`.

A group becomes one nest, whose values stay on the chip. Where its weights and the sums of their
gradients find no room they are moved again for every strip, which can cost more than to write a
value between two cores to DRAM and read it back.
"""

from __future__ import annotations

from dataclasses import replace

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.builder import Builder
from ttsnn.accel_target.codegen.fuse import Group
from ttsnn.accel_target.codegen.graph import Conv, Graph, Node, Small, Tensor, WGrad
from ttsnn.accel_target.codegen.lower import Lowering
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.codegen.tiling import Plan, plan_nest
from ttsnn.errors import TargetError

__all__ = ["cut_groups"]

_Part = tuple[Group, float]
"""A group and the bytes that it moves."""

_DEEP = 3  # a group is cut into at most 2 ** _DEEP


def cut_groups(
    graph: Graph, groups: list[Group], arch: Architecture, options: Options
) -> tuple[list[Group], list[float]]:
    """Groups, and the bytes that each moves: infinite where even its smallest part does not fit.

    Args:
        graph: the graph.
        groups: its partition, in order.
        arch: the machine.
        options: of the code generator.
    """
    cutter = _Cutter(graph, groups, arch, options)
    out: list[Group] = []
    costs: list[float] = []
    for k, g in enumerate(groups):
        parts = (
            [(g, 0.0)]
            if isinstance(g.nodes[0], Small)
            else cutter.best(k, g, cutter.plan(k, g), _DEEP)
        )
        out += [p for p, _ in parts]
        costs += [c for _, c in parts]
    return out, costs


class _Cutter:
    def __init__(
        self, graph: Graph, groups: list[Group], arch: Architecture, options: Options
    ) -> None:
        self.arch = arch
        self.lowering = Lowering(graph, groups, Builder(arch), options)
        self.fused = options.fusion

    def best(self, number: int, g: Group, plan: Plan | None, deep: int) -> list[_Part]:
        """The cheapest cuts of a group that ``plan`` tiles as it is."""
        cost = plan.traffic if plan is not None else float("inf")
        if not self.fused or not deep or not self.hopeful(plan):
            return [(g, cost)]
        choice: tuple[int, list[Plan | None]] | None = None
        for at in _places(g):
            halves = _halves(g, at)
            numbers = self.lowering.cut(number, g, halves)
            plans = [self.plan(k, half) for k, half in zip(numbers, halves)]
            self.lowering.join(number, g, list(zip(numbers, halves)))
            total = sum(p.traffic if p is not None else 1e15 for p in plans)
            if total < cost:
                choice, cost = (at, plans), total
        if choice is None:
            return [(g, cost)]
        halves = _halves(g, choice[0])
        numbers = self.lowering.cut(number, g, halves)
        return [
            part
            for k, half, p in zip(numbers, halves, choice[1])
            for part in self.best(k, half, p, deep - 1)
        ]

    def plan(self, number: int, g: Group) -> Plan | None:
        """The tiles of a group as it is."""
        try:
            return plan_nest(self.lowering.nest(number, g), self.arch, False)
        except TargetError:
            return None

    def hopeful(self, plan: Plan | None) -> bool:
        """Whether a nest moves something more than once."""
        return plan is None or (bool(plan.streams) and plan.again > 1)


def _halves(g: Group, at: int) -> list[Group]:
    return [replace(g, nodes=nodes) for nodes in (g.nodes[:at], g.nodes[at:])]


def _places(g: Group) -> list[int]:
    """Where a group may be cut: before convolutions, and not between sums of one tensor, nor
    between timesteps of an image that the second half reads whole."""
    out = []
    for at in range(1, len(g.nodes)):
        a, b = g.nodes[:at], g.nodes[at:]
        if not isinstance(b[0], Conv | WGrad) and not isinstance(a[-1], Conv | WGrad):
            continue
        if _made(a) & {t for n in b if not getattr(n, "more", False) for t in n.makes()}:
            continue
        read = {i.tensor for n in b for i in n.reads()}
        if not read & _written(a) & _written(b):
            out.append(at)
    return out


def _written(nodes: list[Node]) -> set[Tensor]:
    return {i.tensor for n in nodes for i in n.writes()}


def _made(nodes: list[Node]) -> set[Tensor]:
    return {t for n in nodes for t in n.makes()}
