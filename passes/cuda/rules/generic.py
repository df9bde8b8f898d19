"""Rules for kernels that are no layer: elementwise, transposes, reductions, pools, and the rest."""

from __future__ import annotations

from math import prod

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir import dlight as dl
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.tirx import PrimFunc

from ttsnn.errors import PassError
from ttsnn.passes.cuda.rules.dlight import by_dlight

__all__ = ["elementwise_rule", "fallback_rule", "reduction_rule"]

FEW_OUTPUTS = 2048
"""Results of a reduction up to which a block, rather than a thread, computes each."""

LONG_SUM = 128
"""Terms of a sum from which a block computes it, where there are few of them."""


def elementwise_rule(func: PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Pointwise functions, transposes, concatenations, padding: inlined, a thread an element."""
    kinds = _kinds(func)
    if kinds is None or any(set(k) - {"S"} for k, _ in kinds):
        return None
    return by_dlight(dl.gpu.Fallback(), func, target)


def reduction_rule(func: PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Sums, means, extrema and pools, with pointwise functions around them.

    Few long sums get a block of threads each, others a thread.
    """
    kinds = _kinds(func)
    if kinds is None or any(set(k) - {"S", "R"} for k, _ in kinds):
        return None
    long = [(_size(k, e, "S"), _size(k, e, "R")) for k, e in kinds if "R" in k]
    if long and all(s <= FEW_OUTPUTS and r >= LONG_SUM for s, r in long):
        for rule in (dl.gpu.Reduction(), dl.gpu.GeneralReduction()):
            sch = by_dlight(rule, func, target)
            if sch is not None:
                return sch
    return by_dlight(dl.gpu.Fallback(), func, target)


def fallback_rule(func: PrimFunc, target: tvm.target.Target) -> Schedule:
    """Anything: a thread for each element of the outer loops.

    Raises:
        PassError: where even that leaves a loop to the host.
    """
    sch = by_dlight(dl.gpu.Fallback(), func, target)
    if sch is None:
        name = func.attrs.get("global_symbol", "of the network") if func.attrs else "of the network"
        raise PassError(f"kernel {name} cannot run on a GPU: no rule binds its loops to threads")
    return sch


def _kinds(func: PrimFunc) -> list[tuple[str, list[int]]] | None:
    """Kinds (S, R, O) and sizes of each block's axes; None where it is not made of blocks."""
    try:
        sch = Schedule(func, error_render_level="none")
        infos = normalize_prim_func(sch)
    except Exception:  # whatever TVM says of a function without blocks
        return None
    if not infos:
        return None
    return [
        (info.dom_kind(), [_extent(sch.get(loop)) for loop in sch.get_loops(info.block_rv)])
        for info in infos
    ]


def _extent(loop: tirx.For) -> int:
    return int(loop.extent) if isinstance(loop.extent, tirx.IntImm) else 8


def _size(kinds: str, extents: list[int], wanted: str) -> int:
    return prod(e for k, e in zip(kinds, extents) if k == wanted)
