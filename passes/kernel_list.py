"""What ``ScheduleKernels`` noted about a module's kernels, as a list."""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from ttsnn.passes.schedule_kernels import FALLBACK, LAYERS, MACS, RULE
from ttsnn.targets import KernelInfo

__all__ = ["kernel_list"]


def kernel_list(lowered: tvm.IRModule) -> list[KernelInfo]:
    """The kernels, in the order in which the module's functions call them first."""
    return [
        KernelInfo(
            name=name,
            rule=str(func.attrs[RULE]),
            layers=tuple(str(n) for n in func.attrs[LAYERS]),
            macs=int(func.attrs[MACS]),
            scheduled=str(func.attrs[RULE]) != FALLBACK,
        )
        for name, func in _called(lowered)
    ]


def _called(mod: tvm.IRModule) -> list[tuple[str, tirx.PrimFunc]]:
    """PrimFuncs in the order of their first call."""
    found: dict[str, tirx.PrimFunc] = {}

    def visit(node) -> None:
        if isinstance(node, tvm.ir.GlobalVar) and isinstance(mod[node], tirx.PrimFunc):
            found.setdefault(node.name_hint, mod[node])

    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            for block in func.body.blocks:
                for binding in block.bindings:
                    relax.analysis.post_order_visit(binding.value, visit)
    return list(found.items())
