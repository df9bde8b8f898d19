"""The CUDA target's pipeline, from an imported program to kernels with their threads bound."""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax

from ttsnn.passes.cpu.channels_last import ToChannelsLast
from ttsnn.passes.cpu.fuse_layers import FuseLayers
from ttsnn.passes.cpu.schedule_kernels import ScheduleKernels
from ttsnn.passes.cuda.cost import CudaCost
from ttsnn.passes.cuda.layers_to_kernels import LayersToKernels
from ttsnn.passes.cuda.rules import RULES
from ttsnn.passes.fold_batch_norm import FoldBatchNorm
from ttsnn.passes.hoist_time_invariant import HoistTimeInvariant
from ttsnn.passes.prune import Prune
from ttsnn.passes.schedule_contractions import ScheduleContractions

__all__ = ["build_passes", "lower_passes"]


def lower_passes(
    target: tvm.target.Target,
    *,
    forms: str | Mapping[str, str] | None = None,
    precision: str = "fp32",
) -> list[tvm.transform.Pass]:
    """Program → module of kernels and a ``main`` that calls them.

    Args:
        target: the GPU.
        forms: forms of TT layers in place of the cheapest, see ``ScheduleContractions``.
        precision: of products, see ``LayersToKernels``.
    """
    t = relax.transform
    return [
        Prune(),
        # before hoisting: a batch norm of a static image folds like any other
        FoldBatchNorm(),
        HoistTimeInvariant(),
        # after folding: merged cores take the folded scale with them
        ScheduleContractions(CudaCost(), forms),
        ToChannelsLast(),
        # what the conversion computes twice: transposes of a value with several readers
        t.EliminateCommonSubexpr(),
        FuseLayers(),
        # after fusion: the last stage of a chain takes bias, residual and neuron along
        LayersToKernels(target, precision),
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
    ]


def build_passes(*, cuda_graph: bool, plan_memory: bool = True) -> list[tvm.transform.Pass]:
    """Module of kernels → what the virtual machine's code generator takes.

    Args:
        cuda_graph: whether kernels between the first and the last are captured as a CUDA graph.
        plan_memory: whether tensors share buffers where their lives allow it.
    """
    t = relax.transform
    return [
        t.ToNonDataflow(),
        t.RemovePurityChecking(),
        t.CallTIRRewrite(),
        # reuse of buffers: after calls have explicit destinations
        *([t.StaticPlanBlockMemory()] if plan_memory else []),
        # after the plan: only buffers of fixed size can be captured
        *([t.RewriteCUDAGraph()] if cuda_graph else []),
        t.LowerAllocTensor(),
        t.KillAfterLastUse(),
        t.LowerRuntimeBuiltin(),
        t.ComputePrimValue(),
        t.VMShapeLower(),
        t.AttachGlobalSymbol(),
    ]
