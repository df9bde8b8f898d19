"""One candidate of the tuner as machine code."""

from __future__ import annotations

from typing import Any

import tvm

from ttsnn.passes.cpu.any_alignment import AnyAlignment
from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.kernels.fused import fused_layer
from ttsnn.passes.cpu.kernels.pack import packed_config
from ttsnn.passes.cpu.lower_kernels import KERNEL_PIPELINE
from ttsnn.passes.cpu.tuning.choice import LayerChoice
from ttsnn.passes.cpu.tuning.forms import forms_of_layer
from ttsnn.passes.cpu.tuning.workload import layer_of, measured_params
from ttsnn.passes.schedule_kernels import RULE

__all__ = ["CHOICE", "build_candidate", "candidate_kernel", "choice_of"]

CHOICE = "ttsnn.choice"
"""Annotation of a candidate's block: its LayerChoice as JSON."""


def choice_of(mod: tvm.IRModule) -> LayerChoice:
    """The choice that a candidate carries."""
    return LayerChoice.from_json(str(mod["main"].body.block.annotations[CHOICE]))


def candidate_kernel(mod: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """The layer's kernel as the network will have it, on the workload's arguments.

    Args:
        mod: a workload with its choice.
        target: the CPU.
    """
    config, batch, _, rate = layer_of(mod)
    choice, isa = choice_of(mod), isa_of(target)
    form = packed_config(forms_of_layer(config)[choice.form], isa, choice.tiles.panel_vectors)
    params = measured_params(config, batch, isa, rate)
    func = fused_layer(form, batch, isa, choice.tiles, "main", params)
    func = func.with_attr("tirx.is_scheduled", True).with_attr(RULE, "layer")
    return AnyAlignment()(tvm.IRModule({"main": func}))


def build_candidate(mod: tvm.IRModule, target: tvm.target.Target) -> Any:
    """Machine code of a candidate."""
    with target:
        return tvm.tirx.build(candidate_kernel(mod, target), target, pipeline=KERNEL_PIPELINE)
