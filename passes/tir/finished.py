"""Functions that are written by hand and need no rule any more."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx import PrimFunc, Var

from ttsnn.passes.schedule_kernels import LAYERS, MACS, RULE
from ttsnn.passes.tir.body import Body

__all__ = ["finished", "marked"]


def finished(body: Body, params: Sequence[Var], rule: str, macs: int = 0) -> PrimFunc:
    """The function of a body, with what ``ScheduleKernels`` would note about it.

    Args:
        body: its statements.
        params: its arguments, results last.
        rule: kind of the kernel, for reports.
        macs: multiply-accumulates of one call.
    """
    return marked(body.function(params, rule, {"op_pattern": 8}), rule, macs)


def marked(func: PrimFunc, rule: str, macs: int = 0) -> PrimFunc:
    """A function that ``ScheduleKernels`` leaves as it is."""
    func = func.without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
    return func.with_attr(RULE, rule).with_attr(MACS, macs).with_attr(LAYERS, [])
