"""Rule for matrix products that are no layer: TVM's dlight."""

from __future__ import annotations

from dataclasses import replace

import tvm
import tvm_ffi
from tvm.s_tir import Schedule
from tvm.s_tir import dlight as dl
from tvm.s_tir.stmt import SBlock
from tvm.tirx import PrimFunc

from ttsnn.passes.cuda.rules.dlight import by_dlight
from ttsnn.passes.schedule_kernels import product_macs

__all__ = ["matmul_rule"]


def matmul_rule(func: PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Schedule a matrix product; None where ``func`` is something else.

    dlight's rule for products with a vector is not asked: it writes behind the result where the
    rows don't fill its blocks.
    """
    if not product_macs(func):
        return None
    return by_dlight(_Scalar() if _has_bools(func) else dl.gpu.Matmul(), func, target)


class _Scalar(dl.gpu.Matmul):
    """Without vectors: TVM's CUDA code takes two bytes for each truth value of a vector."""

    def get_configs(self, target: tvm.target.Target) -> dl.gpu.Matmul.Config:
        return replace(super().get_configs(target), vector_size=1)


def _has_bools(func: PrimFunc) -> bool:
    """Whether truth values are read or written."""
    blocks: list[SBlock] = []
    tvm_ffi.structural_walk(func.body, (SBlock, blocks.append))
    touched = [region.source for block in blocks for region in (*block.reads, *block.writes)]
    return any(str(buffer.dtype) == "bool" for buffer in touched)
