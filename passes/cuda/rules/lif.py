"""Rule for ``relax.snn.lif`` on its own: a thread for each neuron, over all timesteps."""

from __future__ import annotations

import json

from tvm.s_tir import Schedule
from tvm.target import Target
from tvm.tirx import PrimFunc

from ttsnn.lif_attrs import LifAttrs
from ttsnn.ops.legalize_lif import ATTRS
from ttsnn.passes.cpu.rules.replace import replaced
from ttsnn.passes.cuda.kernels.lif import lif_function

__all__ = ["lif_rule"]


def lif_rule(func: PrimFunc, _target: Target) -> Schedule | None:
    """The kernel of a neuron, or None where ``func`` is none."""
    if func.attrs is None or ATTRS not in func.attrs:
        return None
    attrs = LifAttrs.from_dict(json.loads(str(func.attrs[ATTRS])))
    return replaced(func, lif_function(attrs, list(func.params), "lif"))
