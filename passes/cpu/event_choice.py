"""Which layers run event-driven, from how often their inputs spike.

Measured by ``benchmarks/event_driven.py``; see ``docs/cpu-target.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.pack import packed_config
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, default_tiles
from ttsnn.passes.cpu.pack_weights import TilesOf
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_channels

__all__ = ["EventChoice", "break_even"]


def break_even(config: LayerConfig, isa: Isa) -> float:
    """Share of ones in a layer's input up to which the event-driven form is the faster one.

    0 where it never is, or the input is not spikes as bytes.
    """
    if not config.byte_x:
        return 0.0
    return 0.25


@dataclass(frozen=True)
class EventChoice:
    """Tiles of layers, event-driven where that pays; for ``PackWeights``.

    Attributes:
        rates: layer → share of ones in its input.
        isa, threads: of the CPU.
        tiles: tiles that were chosen before; None: the defaults.
    """

    rates: Mapping[str, float]
    isa: Isa
    threads: int
    tiles: TilesOf | None = None

    def __call__(self, config: LayerConfig, batch: int | None) -> LayerTiles | None:
        """Tiles of a layer; None: the defaults."""
        chosen = None if self.tiles is None else self.tiles(config, batch)
        rate = self.rates.get(config.name)
        if rate is None or rate >= break_even(config, self.isa):
            return chosen
        if chosen is None:
            packed = packed_config(config, self.isa)
            chosen = default_tiles(packed, batch, self.isa, self.threads)
        return replace(chosen, events=True)
