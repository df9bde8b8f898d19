"""How much memory a lowered module's functions ask for."""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from ttsnn.passes.plan_memory import PlanMemory
from ttsnn.passes.static_values import op_name

__all__ = ["planned_bytes"]

_STORAGE = "relax.memory.alloc_storage"


def planned_bytes(mod: tvm.IRModule) -> dict[str, int]:
    """Function → bytes of the buffers between its kernels, after reuse of those that are free.

    Results are not among them, nor what kernels hold inside.

    Args:
        mod: scheduled kernels. Functions with sizes that are not known are left out.
    """
    t = relax.transform
    for step in (
        t.ToNonDataflow(),
        t.RemovePurityChecking(),
        t.CallTIRRewrite(),
        PlanMemory(),
    ):
        mod = step(mod)
    found = {}
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function):
            sizes = [
                binding.value.args[0].values[0]
                for block in func.body.blocks
                for binding in block.bindings
                if op_name(binding.value) == _STORAGE
            ]
            if all(isinstance(size, tirx.IntImm) for size in sizes):
                found[gvar.name_hint] = sum(map(int, sizes))
    return found
