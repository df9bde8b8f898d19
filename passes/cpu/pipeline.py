"""The CPU target's pipeline, from an imported program to scheduled kernels."""

from __future__ import annotations

from collections.abc import Mapping

import tvm

from ttsnn.passes import pipelines
from ttsnn.passes.cpu.any_alignment import AnyAlignment
from ttsnn.passes.cpu.cost import CpuCost
from ttsnn.passes.cpu.depth_first import DepthFirst
from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.pack_weights import PackWeights, TilesOf
from ttsnn.passes.cpu.rules import RULES
from ttsnn.passes.layers.byte_spikes import ByteSpikes
from ttsnn.passes.layers.expose_rates import ExposeRates
from ttsnn.passes.schedule_kernels import ScheduleKernels

__all__ = ["fuse_passes", "lower_passes"]


def lower_passes(
    target: tvm.target.Target,
    *,
    forms: str | Mapping[str, str] | None = None,
    tiles: TilesOf | None = None,
    expose_rates: bool = False,
) -> list[tvm.transform.Pass]:
    """Program → module of scheduled kernels and a ``main`` that calls them.

    Args:
        target: the CPU.
        forms: forms of TT layers in place of the cheapest, see ``ScheduleContractions``.
        tiles: tiles of layers in place of the defaults, see ``PackWeights``.
        expose_rates: append how often each layer's input spikes to the results.
    """
    return [
        *pipelines.graph_passes(),
        *fuse_passes(target, forms),
        *([ExposeRates()] if expose_rates else []),
        PackWeights(target, tiles),
        # after packing: the groups share their weights, and tiles are those of the whole batch
        DepthFirst(target),
        *pipelines.operator_passes(),
        ScheduleKernels(RULES, target),
        # after the rules, which may make their own functions
        AnyAlignment(),
    ]


def fuse_passes(
    target: tvm.target.Target, forms: str | Mapping[str, str] | None = None
) -> list[tvm.transform.Pass]:
    """From chosen contractions to whole layers, ``relax.snn.layer`` with plain weights."""
    return [
        *pipelines.fuse_passes(CpuCost(lanes=isa_of(target).lanes("float32")), forms),
        # after fusion, which says who emits spikes and who reads them
        ByteSpikes(),
    ]
