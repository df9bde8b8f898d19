"""Rules of TVM's dlight as rules of ours."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm.s_tir import Schedule
from tvm.s_tir.stmt import SBlock
from tvm.tirx import BufferStore, IntImm, IterVar, PrimFunc

from ttsnn.passes.cuda.rules.bound import all_bound

__all__ = ["by_dlight"]


def by_dlight(rule: Any, func: PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """What a rule of dlight's makes of a function; None where it refuses, or leaves loops unbound.

    Its rules assert what they expect of a function rather than ask; an error is a refusal.
    """
    try:
        with target:
            found = rule.apply(_without_sums_of_one(func), target, False)
    except Exception:
        return None
    sch = found[0] if isinstance(found, list) and found else found
    if not isinstance(sch, Schedule):
        return None
    (scheduled,) = (f for _, f in sch.mod.functions_items())
    return sch if all_bound(scheduled) else None


def _without_sums_of_one(func: PrimFunc) -> PrimFunc:
    """Reductions of one term are that term.

    dlight takes such a block for a pointwise one and puts what follows into it, start value and
    all, so that ``c - sum`` would become ``c - ((c - 0) + term)``.
    """
    return tvm_ffi.structural_map(func, (SBlock, _term))


def _term(block: SBlock) -> SBlock:
    axes = [v for v in block.iter_vars if int(v.iter_type) == int(IterVar.CommReduce)]
    if block.init is None or not all(_is_one(v.dom.extent) for v in axes):
        return block
    body = block.body
    if not isinstance(body, BufferStore) or not hasattr(body.value, "b"):
        return block
    return SBlock(
        [IterVar(v.dom, v.var, IterVar.DataPar) for v in block.iter_vars],
        block.reads,
        block.writes,
        block.name_hint,
        BufferStore(body.buffer, body.value.b, body.indices),  # value: of the sum so far, and b
        None,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )


def _is_one(extent: Any) -> bool:
    return isinstance(extent, IntImm) and int(extent) == 1
