"""LowerKernels: scheduled kernels to what LLVM's code generator takes, by the passes they need.

TVM's default pipeline serves every backend; on the kernels of a layer, thousands of unrolled
statements each, more than half of its time goes to passes for GPUs and to shrinking buffers that
have the right size already.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from ttsnn.passes.tir.contains import has_blocks

__all__ = ["KERNEL_PIPELINE", "LowerKernels"]

KERNEL_PIPELINE = "ttsnn_cpu"
"""Name under which TVM's build finds these passes."""


@tvm.transform.module_pass(opt_level=0, name="LowerKernels")
class LowerKernels:
    """Blocks, buffers, vectors and loops lowered as TVM's default pipeline for a CPU does."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        flat, rest = tvm.IRModule(attrs=mod.attrs), tvm.IRModule(attrs=mod.attrs)
        for gvar, func in mod.functions_items():
            (rest if has_blocks(func) else flat).update_func(gvar, func)
        flat.update(tvm.transform.Sequential(_blocks())(rest))
        return tvm.transform.Sequential(_loops())(flat)


def _blocks() -> list[tvm.transform.Pass]:
    """Blocks become loops over buffers of the size that they need."""
    t = s_tir.transform
    return [
        t.CanonicalizeLoop(),
        t.LowerInitBlock(),
        t.PlanAndUpdateBufferAllocationLocation(),
        t.ConvertBlocksToOpaque(),
        t.CompactBufferAllocation(),
        t.LowerMatchBuffer(),
        t.StmtSimplify(),
    ]


def _loops() -> list[tvm.transform.Pass]:
    t = tirx.transform
    return [
        s_tir.transform.LowerOpaqueBlock(),
        t.FlattenBuffer(),
        t.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        t.VectorizeLoop(True),
        t.StorageRewrite(),
        t.UnrollLoop(),
        t.StmtSimplify(),
        t.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        t.VerifyMemory(),
        t.AnnotateEntryFunc(),
        t.SplitHostDevice(),
        t.MakePackedAPI(),
        # its checks of every argument, half of a small kernel's code: the virtual machine checks
        # what comes from outside once, where a function is entered
        t.SkipAssert(),
    ]


def _finish() -> tvm.transform.Pass:
    t = tirx.transform
    return tvm.transform.Sequential([t.LowerTVMBuiltin(), t.LowerIntrin()])


tirx.register_tir_pipeline(KERNEL_PIPELINE, lambda: (LowerKernels(), _finish, _finish))
