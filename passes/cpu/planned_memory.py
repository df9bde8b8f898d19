"""How much memory a lowered module's functions ask for."""

from __future__ import annotations

import tvm
from tvm import relax

from ttsnn.passes.plan_memory import PlanMemory

__all__ = ["planned_bytes"]

_STORAGE = "relax.memory.alloc_storage"


def planned_bytes(mod: tvm.IRModule) -> dict[str, int]:
    """Function → bytes of the buffers between its kernels, after reuse of those that are free.

    Results are not among them, nor what kernels hold inside.

    Args:
        mod: of :meth:`ttsnn.passes.cpu.target.CpuTarget.lower_training`: all sizes are known.
    """
    t = relax.transform
    for step in (
        t.ToNonDataflow(),
        t.RemovePurityChecking(),
        t.CallTIRRewrite(),
        PlanMemory(),
    ):
        mod = step(mod)
    return {
        gvar.name_hint: sum(
            int(binding.value.args[0].values[0])
            for block in func.body.blocks
            for binding in block.bindings
            if _is_storage(binding.value)
        )
        for gvar, func in mod.functions_items()
        if isinstance(func, relax.Function)
    }


def _is_storage(value: relax.Expr) -> bool:
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == _STORAGE
