"""The GPU pipeline of training programs."""

from __future__ import annotations

import tvm

from ttsnn.passes import pipelines
from ttsnn.passes.cuda.horizontal_fusion import HorizontalFusion
from ttsnn.passes.cuda.rules import RULES
from ttsnn.passes.cuda.training.pool_grad import max_pool2d_backward
from ttsnn.passes.cuda.training.to_kernels import ToCudaTrainingKernels
from ttsnn.passes.schedule_kernels import ScheduleKernels

__all__ = ["training_passes"]


def training_passes(
    target: tvm.target.Target, functions: list[str], precision: str = "fp32"
) -> list[tvm.transform.Pass]:
    """Training program → module of kernels and the functions that call them.

    Args:
        target: the GPU.
        functions: names of the program's functions.
        precision: of the products of convolutions and of gradients to their inputs.
    """
    return [
        *pipelines.wanted_passes(functions),
        ToCudaTrainingKernels(target, precision),
        *pipelines.training_operator_passes(
            functions, {"relax.grad.max_pool2d_backward": max_pool2d_backward}
        ),
        ScheduleKernels(RULES, target),
        # after schedules: launches are put side by side, not loops
        HorizontalFusion(functions),
    ]
