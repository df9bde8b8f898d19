"""How much a lowered program's kernels compute and touch, call by call."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import tvm
from tvm import tirx

from ttsnn.passes.schedule_kernels import MACS, RULE
from ttsnn.passes.shapes import nbytes
from ttsnn.passes.static_values import op_name

__all__ = ["Traffic", "traffic"]


@dataclass(frozen=True)
class Traffic:
    """All calls of one kernel in one function.

    Attributes:
        kernel: its name.
        rule: that made it.
        calls: how often it is called.
        macs: multiply-accumulates of all calls.
        bytes: sizes of operands and results of all calls: what must cross the memory bus at
            least, where no cache holds it from an earlier kernel.
    """

    kernel: str
    rule: str
    calls: int
    macs: int
    bytes: int

    def seconds(self, macs_rate: float, bytes_rate: float, launch: float = 0.0) -> float:
        """A time that all calls cannot beat: the longer of computing and moving, and launches.

        Args:
            macs_rate: multiply-accumulates a second.
            bytes_rate: bytes a second.
            launch: seconds that a call takes however little it does.
        """
        return max(self.macs / macs_rate, self.bytes / bytes_rate, self.calls * launch)


def traffic(lowered: tvm.IRModule, function: str = "main") -> list[Traffic]:
    """The kernels that a function calls, in the order of their first call.

    Sizes must be static.
    """
    calls: dict[tvm.ir.GlobalVar, list[int]] = defaultdict(list)
    for block in lowered[function].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if op_name(value) == "relax.call_tir":
                touched = nbytes(value.ty) + sum(nbytes(a.ty) for a in value.args[1].fields)
                calls[value.args[0]].append(touched)
    out = []
    for gvar, sizes in calls.items():
        func = lowered[gvar]
        assert isinstance(func, tirx.PrimFunc)
        rule, macs = str(func.attrs[RULE]), int(func.attrs[MACS])
        out.append(Traffic(gvar.name_hint, rule, len(sizes), len(sizes) * macs, sum(sizes)))
    return out
