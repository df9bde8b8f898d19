"""The GPU pipeline of training programs."""

from __future__ import annotations

import tvm
from tvm import relax

from ttsnn.passes.cpu.schedule_kernels import ScheduleKernels
from ttsnn.passes.cuda.rules import RULES
from ttsnn.passes.cuda.training.to_kernels import ToCudaTrainingKernels

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
    t = relax.transform
    return [
        # aliases and what nothing reads: the conversion asks which results are wanted
        t.CanonicalizeBindings(),
        t.DeadCodeElimination(functions),
        ToCudaTrainingKernels(target, precision),
        # no elimination of common subexpressions: checkpointed values are meant to be computed
        # twice
        t.DecomposeOpsForInference(),
        # reshapes stay operators: they become views
        t.LegalizeOps({"relax.reshape": lambda _bb, call: call}),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.FuseOps(),
        t.FuseTIR(),
        t.CanonicalizeBindings(),
        t.DeadCodeElimination(functions),
        ScheduleKernels(RULES, target),
    ]
