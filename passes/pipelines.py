"""What the pipelines of the CPU and of the GPU have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tvm
from tvm import relax

from ttsnn.passes.fold_batch_norm import FoldBatchNorm
from ttsnn.passes.hoist_time_invariant import HoistTimeInvariant
from ttsnn.passes.layers.channels_last import ToChannelsLast
from ttsnn.passes.layers.fuse_layers import FuseLayers
from ttsnn.passes.plan_memory import PlanMemory
from ttsnn.passes.prune import Prune
from ttsnn.passes.schedule_contractions import CostModel, ScheduleContractions

__all__ = [
    "all_checked",
    "build_passes",
    "fuse_passes",
    "graph_passes",
    "operator_passes",
    "training_operator_passes",
    "wanted_passes",
]

Passes = list[tvm.transform.Pass]


def graph_passes() -> Passes:
    """What is done to a program before contractions are chosen."""
    return [
        Prune(),
        # before hoisting: a batch norm of a static image folds like any other
        FoldBatchNorm(),
        HoistTimeInvariant(),
    ]


def fuse_passes(cost: CostModel, forms: str | Mapping[str, str] | None = None) -> Passes:
    """From there to whole layers, ``relax.snn.layer`` with plain weights."""
    return [
        # after folding: merged cores take the folded scale with them
        ScheduleContractions(cost, forms),
        ToChannelsLast(),
        # what the conversion computes twice: transposes of a value with several readers
        relax.transform.EliminateCommonSubexpr(),
        FuseLayers(),
    ]


def operator_passes() -> Passes:
    """What is no layer becomes fused functions, still without schedules."""
    t = relax.transform
    return [
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
    ]


def wanted_passes(functions: list[str]) -> Passes:
    """Drop aliases and what nothing reads, of a training program: conversions ask which results
    are wanted."""
    return [
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(functions),
    ]


def training_operator_passes(
    functions: list[str], legalise: Mapping[str, Callable] | None = None
) -> Passes:
    """As :func:`operator_passes`, for a training program's functions.

    ``legalise`` has what is not left to TVM: operator → ``(builder, call) -> expression``.
    """
    t = relax.transform
    return [
        # no elimination of common subexpressions: checkpointed values are meant to be computed
        # twice
        t.DecomposeOpsForInference(),
        # reshapes stay operators: they become views
        t.LegalizeOps({"relax.reshape": lambda _bb, call: call, **(legalise or {})}),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.FuseOps(),
        t.FuseTIR(),
        *wanted_passes(functions),
    ]


def all_checked(mod: tvm.IRModule) -> tvm.IRModule:
    """The module, for a virtual machine that checks shapes and dtypes of all arguments of its
    functions: with ``num_input`` it leaves out the weights, and kernels check nothing."""
    out = tvm.IRModule(dict(mod.functions_items()), attrs=mod.attrs)
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function) and "num_input" in (func.attrs or {}):
            out.update_func(gvar, func.without_attr("num_input"))
    return out


def build_passes(*, cuda_graph: bool = False, plan_memory: bool = True) -> Passes:
    """Module of scheduled kernels → what the virtual machine's code generator takes.

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
        *([PlanMemory()] if plan_memory else []),
        # after the plan: only buffers of fixed size can be captured
        *([t.RewriteCUDAGraph()] if cuda_graph else []),
        t.LowerAllocTensor(),
        t.KillAfterLastUse(),
        t.LowerRuntimeBuiltin(),
        t.ComputePrimValue(),
        t.VMShapeLower(),
        t.AttachGlobalSymbol(),
    ]
