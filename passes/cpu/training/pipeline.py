"""The CPU pipeline of training programs."""

from __future__ import annotations

import tvm

from ttsnn.passes import pipelines
from ttsnn.passes.cpu.any_alignment import AnyAlignment
from ttsnn.passes.cpu.rules import RULES
from ttsnn.passes.cpu.training.to_kernels import ToTrainingKernels
from ttsnn.passes.schedule_kernels import ScheduleKernels

__all__ = ["training_passes"]


def training_passes(target: tvm.target.Target, functions: list[str]) -> list[tvm.transform.Pass]:
    """Training program → module of scheduled kernels and the functions that call them.

    Args:
        target: the CPU.
        functions: names of the program's functions.
    """
    return [
        *pipelines.wanted_passes(functions),
        ToTrainingKernels(target),
        *pipelines.training_operator_passes(functions),
        ScheduleKernels(RULES, target),
        AnyAlignment(),
    ]
