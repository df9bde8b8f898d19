"""How each tensor-train layer is cut into nests: whatever moves the fewest bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import tvm

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.builder import Builder
from ttsnn.accel_target.codegen.fuse import Group, partition
from ttsnn.accel_target.codegen.graph import Graph, Tensor
from ttsnn.accel_target.codegen.importer import import_graph
from ttsnn.accel_target.codegen.lower import Lowering
from ttsnn.accel_target.codegen.options import Options, Variant
from ttsnn.accel_target.codegen.tiling import plan_nest
from ttsnn.errors import TargetError

__all__ = ["choose_variants"]


def choose_variants(
    mod: tvm.IRModule, arch: Architecture, options: Options
) -> Mapping[str, Variant] | Variant:
    """The variant of each tensor-train layer, by its name.

    Every variant is tried on all layers at once. A layer's traffic is that of the nests that have
    a part of it, and of those that read what these make last.

    Args:
        mod: the program.
        arch: the machine.
        options: limits the variants.
    """
    variants = options.variants()
    if len(variants) == 1:
        return variants[0]
    tried = [(v, _traffic(import_graph(mod, options, v), arch, options)) for v in variants]
    layers = {layer for _, costs in tried for layer, _ in costs}
    return {layer: _best(layer, tried) for layer in layers}


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
    groups = partition(graph)
    lowering = Lowering(graph, groups, Builder(arch), options)
    makers: dict[Tensor, str] = {}
    out: _Costs = {}
    for k, g in enumerate(groups):
        layer = _layer(g, makers)
        if layer is None:
            continue
        for n in g.nodes:
            if n.chain >= 0:
                makers.update({i.tensor: layer for i in n.writes()})
        try:
            cost = plan_nest(lowering.nest(k, g), arch, False).traffic
        except TargetError:
            cost = float("inf")
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
