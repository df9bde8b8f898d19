"""Weights in the order in which the kernels read them.

A *panel* is a group of neighbouring output channels that one register tile covers. A packed
weight is flat: panel after panel, each as [taps, Cin, width]; the last panel is filled up with
zero channels to a multiple of half a vector. So a kernel reads each panel front to back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tvm

from ttsnn.errors import PassError
from ttsnn.passes.cpu.isa import Isa, isa_of
from ttsnn.passes.layers.config import LayerConfig, Stage, useful_taps
from ttsnn.passes.layers.panels import packed_channels, panels

__all__ = [
    "pack_layer_weights",
    "pack_weight",
    "packed_config",
    "panel_vectors",
]


def panel_vectors(isa: Isa) -> int:
    """Vectors in the widest panel: with 32 registers 4 of them × 5 rows, with 16 3 × 3."""
    return 4 if isa.registers >= 32 else 3


def pack_weight(stage: Stage, weight: np.ndarray, lanes: int, max_vectors: int) -> np.ndarray:
    """Pack one weight [taps, Cin, Cout]; the result is flat.

    Raises:
        PassError: if the weight has another shape than the stage says.
    """
    shape = (len(stage.taps), stage.in_channels, stage.out_channels)
    if weight.shape != shape:
        raise PassError(f"weight of shape {weight.shape} for a stage that takes {shape}")
    full = np.zeros((*shape[:2], packed_channels(shape[2], lanes)), weight.dtype)
    full[:, :, : shape[2]] = weight
    parts = [full[:, :, a : a + n].ravel() for a, n in panels(shape[2], lanes, max_vectors)]
    return np.concatenate(parts)


def packed_config(config: LayerConfig, isa: Isa, vectors: int | None = None) -> LayerConfig:
    """A layer whose weights are packed, without taps that never meet the image.

    Args:
        config: the layer with plain weights.
        isa: vector width and registers.
        vectors: in the widest panel; None takes :func:`panel_vectors`.
    """

    def trim(stage: Stage) -> Stage:
        return replace(stage, taps=tuple(stage.taps[k] for k in useful_taps(stage)))

    return replace(
        config,
        stages=tuple(trim(s) for s in config.stages),
        half_stages=tuple(trim(s) for s in config.half_stages),
        packing=(isa.lanes(config.dtype), vectors or panel_vectors(isa)),
    )


def pack_layer_weights(
    config: LayerConfig,
    weights: Sequence[np.ndarray],
    target: tvm.target.Target,
    vectors: int | None = None,
) -> tuple[LayerConfig, list[np.ndarray]]:
    """Pack all weights of a layer for a target, without taps that never meet the image.

    Args:
        config: the layer; its weights are plain.
        weights: arrays [taps, Cin, Cout] of ``stages``, then of ``half_stages``.
        target: the CPU that the kernel is for.
        vectors: in the widest panel; None takes :func:`panel_vectors`.

    Returns:
        The config that says how the weights are packed (and has fewer taps, where an image is
        so small that some read zeros only), and the weights, each flat: operands of
        ``relax.snn.layer`` in place of the plain ones.
    """
    isa = isa_of(target)
    after = packed_config(config, isa, vectors)
    packing = isa.lanes(config.dtype), vectors or panel_vectors(isa)
    stages = (*config.stages, *config.half_stages)
    if len(stages) != len(weights):
        raise PassError(f"layer {config.name}: {len(weights)} weights for {len(stages)} stages")
    packed = []
    for stage, used, weight in zip(stages, (*after.stages, *after.half_stages), weights):
        if len(weight) != len(stage.taps):
            raise PassError(f"layer {config.name}: {len(weight)} taps of {len(stage.taps)}")
        packed.append(pack_weight(used, weight[useful_taps(stage)], *packing))
    return after, packed
