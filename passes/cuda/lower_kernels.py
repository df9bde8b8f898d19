"""LowerKernels: kernels bound to the GPU's threads to launches and device code.

TVM's default pipeline serves schedules with blocks. Most of the kernels here are written as
statements over flat buffers: half of that pipeline's passes have nothing to do there, and search
hundreds of statements and arguments for it.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.pipeline import (
    default_s_tir_pipeline,
    finalize_device_passes,
    finalize_host_passes,
)

from ttsnn.passes.tir.contains import contains, has_blocks

__all__ = ["KERNEL_PIPELINE", "LowerKernels"]

KERNEL_PIPELINE = "ttsnn_cuda"
"""Name under which TVM's build finds these passes."""


@tvm.transform.module_pass(opt_level=0, name="LowerKernels")
class LowerKernels:
    """Kernels with blocks by TVM's default pipeline, the others by the part that they need.

    Their checks of arguments go, but for kernels that check something of their own.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        flat, rest, careful = (tvm.IRModule(attrs=mod.attrs) for _ in range(3))
        for gvar, func in mod.functions_items():
            kind = (
                careful if contains(func, tirx.AssertStmt) else rest if has_blocks(func) else flat
            )
            kind.update_func(gvar, func)
        default, *_ = default_s_tir_pipeline()
        out = tvm.transform.Sequential(_flat())(flat)
        out.update(default(rest))
        # the host's checks of every argument, most of its code: the virtual machine checks what
        # comes from outside once, where a function is entered
        out = tirx.transform.SkipAssert()(out)
        # which would drop a kernel's own checks too, of a symbolic batch
        out.update(default(careful))
        return out


def _flat() -> list[tvm.transform.Pass]:
    """Those passes of TVM's default pipeline that change flat kernels."""
    t, s = tirx.transform, s_tir.transform
    return [
        s.UnifyThreadBinding(),
        s.StmtSimplify(),
        s.LowerOpaqueBlock(),
        t.FlattenBuffer(),
        t.BF16ComputeLegalize(),
        t.NarrowDataType(32),
        s.LoopPartition(),
        t.VectorizeLoop(True),
        t.StorageRewrite(),
        t.UnrollLoop(),
        s.RenormalizeSplitPattern(),
        t.RemoveNoOp(),
        s.RewriteUnsafeSelect(),
        t.VerifyMemory(),
        t.AnnotateEntryFunc(),
        s.ThreadSync("shared"),
        s.ThreadSync("warp"),
        s.LowerThreadAllreduce(),
        s.MergeSharedMemoryAllocations(),
        t.SplitHostDevice(),
        t.MakePackedAPI(),
        t.BF16StorageLegalize(),
    ]


tirx.register_tir_pipeline(
    KERNEL_PIPELINE, lambda: (LowerKernels(), finalize_host_passes, finalize_device_passes)
)
