"""From what was measured to a lowering: forms for ``ScheduleContractions``, tiles for kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tvm

from ttsnn.passes.cpu.kernels.tiles import LayerTiles
from ttsnn.passes.cpu.tuning.choice import LayerChoice
from ttsnn.passes.cpu.tuning.forms import forms_of_layer
from ttsnn.passes.cpu.tuning.task import unmerged_layers
from ttsnn.passes.cpu.tuning.workload import workload_key
from ttsnn.passes.layers.config import LayerConfig

__all__ = ["BestOf", "TunedLayers", "tuned_layers"]

BestOf = Callable[[LayerConfig, "int | None"], "tuple[LayerChoice, Mapping[str, Any]] | None"]
"""Best choice for an unmerged layer and a batch, with what the manifest says of it."""


@dataclass(frozen=True)
class TunedLayers:
    """What tuning found for a program.

    Attributes:
        forms: layer → form, for ``ScheduleContractions``.
        tiles: tiles of the kernels, by layer and batch as ``PackWeights`` asks for them.
        layers: layer → what was chosen, for the manifest.
    """

    forms: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, LayerTiles] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def tiles(self, config: LayerConfig, batch: int | None) -> LayerTiles | None:
        """Tiles of a layer in its form; None where it was not tuned."""
        return self.table.get(workload_key(config, batch))


def tuned_layers(mod: tvm.IRModule, target: tvm.target.Target, best: BestOf) -> TunedLayers:
    """Look every layer of a program up.

    Args:
        mod: a program as ``CpuTarget.lower`` takes it.
        target: the CPU.
        best: the database.
    """
    forms, table, layers = {}, {}, {}
    for config, batch in unmerged_layers(mod, target):
        found = best(config, batch)
        if found is None:
            continue
        choice, note = found
        if choice.form:
            forms[config.name] = choice.form
        merged = forms_of_layer(config)[choice.form]
        table[workload_key(merged, batch)] = choice.tiles
        name, count = config.name, 1
        while name in layers:  # a convolution that several neurons read is computed for each
            count += 1
            name = f"{config.name} ({count})"
        layers[name] = {"form": choice.form, "tiles": choice.tiles.to_json(), **note}
    return TunedLayers(forms, table, layers)
