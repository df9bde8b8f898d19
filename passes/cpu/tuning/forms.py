"""The forms of a layer: an unmerged chain of stages → every chain that merging makes of it.

``ScheduleContractions`` chooses a form before layers are fused; a tuner compares whole layers,
neuron included. So it starts from the fused layer of the unmerged chain, and merges its stages:
geometry alone, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np

from ttsnn.passes.contraction import CHAINS, Contraction, Form, contract, form_text, forms_of
from ttsnn.passes.cpu.cost import CpuCost
from ttsnn.passes.layers.config import LayerConfig, Stage

__all__ = ["cheapest_form", "form_costs", "forms_of_layer"]

_KINDS = {len(names): kind for kind, names in CHAINS.items()}


@lru_cache(maxsize=256)
def forms_of_layer(config: LayerConfig) -> Mapping[str, LayerConfig]:
    """Form as text → the layer in this form; ``{"": config}`` where there is nothing to merge.

    Args:
        config: a layer whose weights are plain and whose chain is unmerged.
    """
    if len(config.stages) not in _KINDS:
        return {"": config}
    full = _merged(config.stages)
    half = _merged(config.half_stages) if config.half_stages else {"": ()}
    return {
        ";".join(filter(None, (a, b))): replace(config, stages=stages, half_stages=rest)
        for (a, stages), (b, rest) in product(full.items(), half.items())
    }


def form_costs(config: LayerConfig, cost: CpuCost) -> dict[str, float]:
    """Form → its cost by the target's model, for one image and all timesteps."""

    def total(c: LayerConfig) -> float:
        full, half = (sum(map(cost.stage, s)) for s in (c.stages, c.half_stages))
        return full * c.timesteps + half * (c.T - c.timesteps)

    return {text: total(c) for text, c in forms_of_layer(config).items()}


def cheapest_form(config: LayerConfig, cost: CpuCost) -> str:
    """The form that ``ScheduleContractions`` chooses by the same model, kind by kind."""
    if len(config.stages) not in _KINDS:
        return ""
    chosen = []
    for stages in filter(None, (config.stages, config.half_stages)):
        merged = _merged(stages)
        chosen.append(min(merged, key=lambda text: sum(map(cost.stage, merged[text]))))
    return ";".join(chosen)


def _merged(stages: tuple[Stage, ...]) -> dict[str, tuple[Stage, ...]]:
    """``kind=form`` → the stages of a chain in that form."""
    kind = _KINDS[len(stages)]
    chain: dict[str, Contraction] = {
        name: (stage, np.ones((len(stage.taps), 1, 1)))
        for name, stage in zip(CHAINS[kind], stages, strict=True)
    }
    return {f"{kind}={form_text(f)}": _stages(chain, f) for f in forms_of(kind)}


def _stages(chain: dict[str, Contraction], form: Form) -> tuple[Stage, ...]:
    return tuple(stage for stage, _ in contract(chain, form))
