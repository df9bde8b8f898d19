"""From what was measured to a lowering: forms for ``ScheduleContractions``, tiles for kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import tvm

from ttsnn.passes.cpu.kernels.tiles import LayerTiles
from ttsnn.passes.cpu.tuning.choice import LayerChoice
from ttsnn.passes.cpu.tuning.forms import forms_of_layer
from ttsnn.passes.cpu.tuning.task import unmerged_layers
from ttsnn.passes.layers.config import LayerConfig

__all__ = ["BestOf", "TunedLayers", "tuned_layers"]

BestOf = Callable[[LayerConfig, "int | None"], "tuple[LayerChoice, Mapping[str, Any]] | None"]
"""Best choice for an unmerged layer and a batch, with what the manifest says of it: among others
``firing_rate``, where the choice was measured at that of the layer's input."""


@dataclass(frozen=True)
class TunedLayers:
    """What tuning found for a program.

    Attributes:
        forms: layer → form, for ``ScheduleContractions``.
        table: tiles of the kernels, by config and batch as ``PackWeights`` asks for them.
        events: layers of which it was measured whether they are faster event-driven.
        layers: layer → what was chosen, for the manifest.
    """

    forms: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[tuple[str, int | None], LayerTiles] = field(default_factory=dict)
    events: Collection[str] = ()
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def tiles(self, config: LayerConfig, batch: int | None) -> LayerTiles | None:
        """Tiles of a layer in its form; None where it was not tuned."""
        return self.table.get((config.to_json(), batch))


def tuned_layers(mod: tvm.IRModule, target: tvm.target.Target, best: BestOf) -> TunedLayers:
    """Look every layer of a program up.

    Args:
        mod: a program as ``CpuTarget.lower`` takes it.
        target: the CPU.
        best: the database.
    """
    forms, table, layers = {}, {}, {}
    events: dict[str, bool] = {}
    for config, batch in unmerged_layers(mod, target):
        found, name = best(config, batch), config.name
        measured = found is not None and found[1].get("firing_rate") is not None
        events[name] = events.get(name, True) and measured
        if found is None:
            continue
        choice, note = found
        if choice.form:
            forms[name] = choice.form
        merged = forms_of_layer(config)[choice.form]
        table[merged.to_json(), batch] = choice.tiles
        count = 1
        while name in layers:  # a convolution that several neurons read is computed for each
            count += 1
            name = f"{config.name} ({count})"
        layers[name] = {"form": choice.form, "tiles": choice.tiles.to_json(), **note}
    return TunedLayers(forms, table, frozenset(n for n, sure in events.items() if sure), layers)
