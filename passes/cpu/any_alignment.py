"""AnyAlignment: kernels take tensors wherever they lie in memory."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Var

from ttsnn.passes.module_pass import ModulePass

__all__ = ["ALIGNMENT", "AnyAlignment"]

ALIGNMENT = 4
"""Bytes that kernels assume data to be aligned to."""


@tvm.transform.module_pass(opt_level=0, name="AnyAlignment")
class AnyAlignment(ModulePass):
    """Declare the arguments of all kernels as aligned to 4 bytes instead of 64.

    TVM lets LLVM assume 64 bytes, and a vector load from an array of NumPy's, which has 16,
    crashes. Unaligned vector loads cost nothing where the data is aligned after all.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        out = tvm.IRModule(dict(mod.functions_items()), attrs=mod.attrs)
        for gvar, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                out.update_func(gvar, _declare(func))
        return out


def _declare(func: tirx.PrimFunc) -> tirx.PrimFunc:
    new = {}
    for param in func.params:
        if isinstance(param.ty, tirx.BufferType):
            size = min(ALIGNMENT, tvm.DataType(str(param.dtype)).itemsize)
            new[param] = tirx.decl_buffer(param.shape, param.dtype, param.name, data_alignment=size)
    return tvm_ffi.structural_map(func, (Var, lambda var: new.get(var, var)))
