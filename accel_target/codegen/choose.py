"""How each tensor-train layer is cut into nests: whatever moves the fewest bytes."""

from __future__ import annotations

from collections.abc import Mapping

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
    best: dict[str, tuple[float, Variant]] = {}
    for variant in variants:
        for layer, cost in _traffic(import_graph(mod, options, variant), arch, options).items():
            if layer not in best or cost < best[layer][0]:
                best[layer] = cost, variant
    return {layer: variant for layer, (_, variant) in best.items()}


def _traffic(graph: Graph, arch: Architecture, options: Options) -> dict[str, float]:
    """Bytes that each tensor-train layer moves; infinite where it does not fit."""
    groups = partition(graph)
    lowering = Lowering(graph, groups, Builder(arch), options)
    makers: dict[Tensor, str] = {}
    out: dict[str, float] = {}
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
        out[layer] = out.get(layer, 0.0) + cost
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
