"""Rule for ``relax.snn.lif`` on its own: replaces the reference function by a vectorised one."""

from __future__ import annotations

import json

from tvm import s_tir
from tvm.target import Target
from tvm.tirx import PrimFunc

from ttsnn.lif_attrs import LifAttrs
from ttsnn.ops.legalize_lif import ATTRS
from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.kernels.lif import lif_function
from ttsnn.passes.cpu.rules.replace import replaced

__all__ = ["lif_rule"]


def lif_rule(func: PrimFunc, target: Target) -> s_tir.Schedule | None:
    """The kernel of a neuron, or None where ``func`` is none."""
    if func.attrs is None or ATTRS not in func.attrs:
        return None
    attrs = LifAttrs.from_dict(json.loads(str(func.attrs[ATTRS])))
    kernel = lif_function(attrs, list(func.params), isa_of(target), "lif")
    return replaced(func, kernel)
