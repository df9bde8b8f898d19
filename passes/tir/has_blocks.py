"""Whether a kernel is still a schedule with blocks."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.s_tir.stmt import SBlock

__all__ = ["has_blocks"]


def has_blocks(func: tirx.PrimFunc) -> bool:
    """False for kernels that were written as loops over flat buffers."""
    found: list[SBlock] = []
    tvm_ffi.structural_walk(func.body, (SBlock, found.append))
    return bool(found)
