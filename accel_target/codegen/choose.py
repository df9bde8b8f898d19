"""How each tensor-train layer is cut into nests: whatever moves the fewest bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import tvm

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.cuts import cut_groups
from ttsnn.accel_target.codegen.fuse import Group, partition
from ttsnn.accel_target.codegen.graph import Graph, Tensor
from ttsnn.accel_target.codegen.importer import import_graph
from ttsnn.accel_target.codegen.options import Options, Variant

__all__ = ["Chosen", "choose"]


@dataclass(frozen=True)
class Chosen:
    """How a program is cut: the variant of each tensor-train layer or of all, and its nests."""

    variants: Mapping[str, Variant] | Variant
    graph: Graph
    groups: list[Group]


def choose(mod: tvm.IRModule, arch: Architecture, options: Options) -> Chosen:
    """The variant of each tensor-train layer, and the groups that become nests.

    Every variant is tried on all layers at once. Where batch norms work on cores, nests have parts
    of two layers, so that all layers get the same variant, but for those that do not fit. Else a
    layer's traffic is that of the nests that have a part of it, and of those that read what these
    make last.

    Args:
        mod: the program.
        arch: the machine.
        options: limits the variants.
    """
    fixed: dict[str, Variant] = {}
    trials = [_Trial.of(mod, arch, options, v) for v in options.cores()]
    best = min(trials, key=lambda t: (len(t.unfit), t.traffic), default=None)
    if best is not None and best.graph.joined:
        if not best.unfit:
            return Chosen(best.variant, best.graph, best.groups)
        fixed = dict.fromkeys(best.layers - best.unfit, best.variant)
    variants = options.variants()
    chosen: Mapping[str, Variant] | Variant = variants[0]
    if len(variants) > 1:
        tried = [(v, _traffic(import_graph(mod, options, v), arch, options)) for v in variants]
        layers = {layer for _, costs in tried for layer, _ in costs}
        chosen = {layer: _best(layer, tried) for layer in layers} | fixed
    graph = import_graph(mod, options, chosen)
    return Chosen(chosen, graph, cut_groups(graph, partition(graph), arch, options)[0])


@dataclass(frozen=True)
class _Trial:
    """A variant on all layers: what it moves, and the layers of nests that do not fit."""

    variant: Variant
    graph: Graph
    groups: list[Group]
    traffic: float
    layers: frozenset[str]
    unfit: frozenset[str]

    @classmethod
    def of(cls, mod: tvm.IRModule, arch: Architecture, options: Options, v: Variant) -> _Trial:
        graph = import_graph(mod, options, v)
        if not graph.joined:
            return cls(v, graph, [], 0.0, frozenset(), frozenset())
        trains = (n for n in graph.nodes if n.chain >= 0 and n.window is not None)
        layers = frozenset(n.tag.layer for n in trains)
        groups, costs = cut_groups(graph, partition(graph), arch, options)
        large = [g for g, cost in zip(groups, costs) if cost == float("inf")]
        unfit = layers & {n.tag.layer for g in large for n in g.nodes}
        total = sum(cost for cost in costs if cost != float("inf"))
        return cls(v, graph, groups, total, layers, unfit)


_Costs = dict[tuple[str, bool], float]
"""(layer, whether it is the backward) → bytes."""


def _best(layer: str, tried: list[tuple[Variant, _Costs]]) -> Variant:
    """The cheapest forward with the cheapest backward, where both are of fused chains."""
    found: list[tuple[float, Variant]] = []
    for forward, costs in tried:
        for backward, others in tried:
            if forward.fused == backward.fused and forward.recompute == backward.recompute:
                cost = costs.get((layer, False), 0.0) + others.get((layer, True), 0.0)
                found.append((cost, replace(backward, again=forward.again)))
    return min(found, key=lambda f: f[0])[1]


def _traffic(graph: Graph, arch: Architecture, options: Options) -> _Costs:
    """Bytes that each tensor-train layer moves; infinite where it does not fit."""
    groups, traffic = cut_groups(graph, partition(graph), arch, options)
    makers: dict[Tensor, str] = {}
    out: _Costs = {}
    for g, cost in zip(groups, traffic):
        layer = _layer(g, makers)
        if layer is None:
            continue
        for n in g.nodes:
            if n.chain >= 0:
                makers.update({i.tensor: layer for i in n.writes()})
        key = layer, g.nodes[0].tag.phase == "backward"
        out[key] = out.get(key, 0.0) + cost
    return out


def _layer(g: Group, makers: dict[Tensor, str]) -> str | None:
    for n in g.nodes:
        if n.chain >= 0 and n.window is not None:
            return n.tag.layer
    for n in g.nodes:
        for i in n.reads():
            if i.tensor in makers:
                return makers[i.tensor]
    return None
