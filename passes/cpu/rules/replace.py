"""Handing back a kernel that a rule wrote anew."""

from __future__ import annotations

from tvm import s_tir
from tvm.tirx import PrimFunc

__all__ = ["replaced"]


def replaced(old: PrimFunc, new: PrimFunc) -> s_tir.Schedule:
    """A schedule of ``new`` with the attributes (and the name, if any) of ``old``."""
    out = new.without_attr("global_symbol")
    for key, value in old.attrs.items():
        out = out.with_attr(key, value)
    return s_tir.Schedule(out.with_attr("tirx.is_scheduled", True))
