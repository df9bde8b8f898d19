"""The CUDA target's pipeline, from an imported program to kernels with their threads bound."""

from __future__ import annotations

from collections.abc import Mapping

import tvm

from ttsnn.passes import pipelines
from ttsnn.passes.cuda.cost import CudaCost
from ttsnn.passes.cuda.layers_to_kernels import LayersToKernels
from ttsnn.passes.cuda.rules import RULES
from ttsnn.passes.schedule_kernels import ScheduleKernels

__all__ = ["lower_passes"]


def lower_passes(
    target: tvm.target.Target,
    *,
    forms: str | Mapping[str, str] | None = None,
    precision: str = "fp32",
) -> list[tvm.transform.Pass]:
    """Program → module of kernels and a ``main`` that calls them.

    Args:
        target: the GPU.
        forms: forms of TT layers in place of the cheapest, see ``ScheduleContractions``.
        precision: of products, see ``LayersToKernels``.
    """
    return [
        *pipelines.graph_passes(),
        *pipelines.fuse_passes(CudaCost(), forms),
        # after fusion: the last stage of a chain takes bias, residual and neuron along
        LayersToKernels(target, precision),
        *pipelines.operator_passes(),
        ScheduleKernels(RULES, target),
    ]
