"""Rule for matrix products that are no layer: TVM's dlight."""

from __future__ import annotations

import tvm
from tvm.s_tir import Schedule
from tvm.s_tir import dlight as dl
from tvm.tirx import PrimFunc

from ttsnn.passes.cuda.rules.dlight import by_dlight
from ttsnn.passes.schedule_kernels import product_macs

__all__ = ["matmul_rule"]


def matmul_rule(func: PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Schedule a matrix product; None where ``func`` is something else."""
    if not product_macs(func):
        return None
    for rule in (dl.gpu.Matmul(), dl.gpu.GEMV()):
        sch = by_dlight(rule, func, target)
        if sch is not None:
            return sch
    return None
