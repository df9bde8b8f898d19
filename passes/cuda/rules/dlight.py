"""Rules of TVM's dlight as rules of ours."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.s_tir import Schedule
from tvm.tirx import PrimFunc

from ttsnn.passes.cuda.rules.bound import all_bound

__all__ = ["by_dlight"]


def by_dlight(rule: Any, func: PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """What a rule of dlight's makes of a function; None where it refuses, or leaves loops unbound.

    Its rules assert what they expect of a function rather than ask; an error is a refusal.
    """
    try:
        with target:
            found = rule.apply(func, target, False)
    except Exception:
        return None
    sch = found[0] if isinstance(found, list) and found else found
    if not isinstance(sch, Schedule):
        return None
    (scheduled,) = (f for _, f in sch.mod.functions_items())
    return sch if all_bound(scheduled) else None
