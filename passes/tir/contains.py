"""What a kernel is made of."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.s_tir.stmt import SBlock

__all__ = ["contains", "has_blocks"]


def contains(func: tirx.PrimFunc, kind: type) -> bool:
    """Whether some statement or expression of a kernel is of a kind."""
    found: list[Any] = []
    tvm_ffi.structural_walk(func.body, (kind, found.append))
    return bool(found)


def has_blocks(func: tirx.PrimFunc) -> bool:
    """Whether it is still a schedule with blocks; not where it was written over flat buffers."""
    return contains(func, SBlock)
