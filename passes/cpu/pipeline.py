"""The CPU target's pipeline, from an imported program to scheduled kernels."""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax

from ttsnn.passes.cpu.any_alignment import AnyAlignment
from ttsnn.passes.cpu.byte_spikes import ByteSpikes
from ttsnn.passes.cpu.channels_last import ToChannelsLast
from ttsnn.passes.cpu.cost import CpuCost
from ttsnn.passes.cpu.fuse_layers import FuseLayers
from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.pack_weights import PackWeights, TilesOf
from ttsnn.passes.cpu.rules import RULES
from ttsnn.passes.cpu.schedule_kernels import ScheduleKernels
from ttsnn.passes.fold_batch_norm import FoldBatchNorm
from ttsnn.passes.hoist_time_invariant import HoistTimeInvariant
from ttsnn.passes.prune import Prune
from ttsnn.passes.schedule_contractions import ScheduleContractions

__all__ = ["build_passes", "fuse_passes", "graph_passes", "lower_passes"]


def lower_passes(
    target: tvm.target.Target,
    *,
    forms: str | Mapping[str, str] | None = None,
    tiles: TilesOf | None = None,
) -> list[tvm.transform.Pass]:
    """Program → module of scheduled kernels and a ``main`` that calls them.

    Args:
        target: the CPU.
        forms: forms of TT layers in place of the cheapest, see ``ScheduleContractions``.
        tiles: tiles of layers in place of the defaults, see ``PackWeights``.
    """
    t = relax.transform
    return [
        *graph_passes(),
        *fuse_passes(target, forms),
        PackWeights(target, tiles),
        # of a reshape of a reshape the last is enough
        t.RemoveRedundantReshape(),
        # batch norms that were not folded
        t.DecomposeOpsForInference(),
        t.LegalizeOps(),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.FuseOps(),
        t.FuseTIR(),
        # reshapes that stand alone become views, after fusion had its choice
        t.RewriteDataflowReshape(),
        Prune(),
        ScheduleKernels(RULES, target),
        # after the rules, which may make their own functions
        AnyAlignment(),
    ]


def graph_passes() -> list[tvm.transform.Pass]:
    """What is done to a program before contractions are chosen."""
    return [
        Prune(),
        # before hoisting: a batch norm of a static image folds like any other
        FoldBatchNorm(),
        HoistTimeInvariant(),
    ]


def fuse_passes(
    target: tvm.target.Target, forms: str | Mapping[str, str] | None = None
) -> list[tvm.transform.Pass]:
    """From there to whole layers, ``relax.cpu.layer`` with plain weights."""
    cost = CpuCost(lanes=isa_of(target).lanes("float32"))
    return [
        # after folding: merged cores take the folded scale with them
        ScheduleContractions(cost, forms),
        ToChannelsLast(),
        # what the conversion computes twice: transposes of a value with several readers
        relax.transform.EliminateCommonSubexpr(),
        FuseLayers(),
        # after fusion, which says who emits spikes and who reads them
        ByteSpikes(),
    ]


def build_passes() -> list[tvm.transform.Pass]:
    """Module of scheduled kernels → what the virtual machine's code generator takes."""
    t = relax.transform
    return [
        t.ToNonDataflow(),
        t.RemovePurityChecking(),
        t.CallTIRRewrite(),
        # reuse of buffers: after calls have explicit destinations
        t.StaticPlanBlockMemory(),
        t.LowerAllocTensor(),
        t.KillAfterLastUse(),
        t.LowerRuntimeBuiltin(),
        t.ComputePrimValue(),
        t.VMShapeLower(),
        t.AttachGlobalSymbol(),
    ]
