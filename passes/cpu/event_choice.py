"""Which layers run event-driven, from how often their inputs spike.

The numbers of the model fit what ``benchmarks/event_driven.py`` measured on an Intel Xeon with
AVX-512 and 2 MiB of second-level cache, for its AVX-512, AVX2 and SSE2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.masks import mask_words
from ttsnn.passes.cpu.kernels.pack import packed_config
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, default_tiles
from ttsnn.passes.cpu.pack_weights import TilesOf
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_channels

__all__ = ["EventChoice", "event_limit"]

MARGIN = 0.8
"""How far below the rate where both forms take the same time the choice changes: other inputs
than those of the calibration may spike more, and the model is a model."""

WORD_CYCLES = 16.0
"""Finding the bits of one word and leaving the loop over them, which is predicted wrongly."""

EVENT_CYCLES = 2.0
"""The least that adding one row takes."""

DENSE_CYCLES, DENSE_CYCLES_WITHOUT_FMA = 0.53, 0.8
"""Multiplying one channel of a pixel with one vector of weights."""

ADD_CYCLES = 0.75
"""Adding one vector of weights, where memory gives it as fast as it is added."""

LINE_CYCLES = ((32 << 10, 0.75), (1 << 20, 1.4))
"""Reading 64 bytes of a weight that has at most so many bytes: in the first-level cache, in the
second-level one."""

FAR_LINE_CYCLES = 4.7
"""The same from further away. The dense form reads such a weight once for several pixels."""


def event_limit(config: LayerConfig, isa: Isa) -> float:
    """Share of ones in a layer's input below which it is made event-driven; 0: never.

    From a model in cycles a pixel of the first stage, dense against event-driven:
    ``depth · vectors · DENSE = words · WORD + rate · depth · max(EVENT, vectors · ADD or READ)``.
    """
    if not config.byte_x:
        return 0.0
    dense = words = rows = 0.0
    for chain, steps in (
        (config.stages, config.timesteps),
        (config.half_stages, config.T - config.timesteps),
    ):
        if chain and steps:
            costs = _cycles(chain[0], config.dtype, isa)
            dense, words, rows = (a + steps * b for a, b in zip((dense, words, rows), costs))
    return round(max(0.0, min(1.0, MARGIN * (dense - words) / rows)), 3) if rows else 0.0


def _cycles(stage: Stage, dtype: str, isa: Isa) -> tuple[float, float, float]:
    """Cycles of an output pixel: dense, the words of its spikes, and rows if all were added."""
    lanes, taps = isa.lanes(dtype), len(stage.taps)
    vectors = -(-packed_channels(stage.out_channels, lanes) // lanes)
    depth = taps * stage.in_channels
    weight = depth * vectors * isa.vector_bytes
    line = next((c for size, c in LINE_CYCLES if weight <= size), FAR_LINE_CYCLES)
    row = max(EVENT_CYCLES, vectors * max(ADD_CYCLES, line * isa.vector_bytes / 64))
    dense = DENSE_CYCLES_WITHOUT_FMA if isa.name == "generic" else DENSE_CYCLES
    words = WORD_CYCLES * (taps * mask_words(stage.in_channels) + 1)
    return depth * vectors * dense, words, depth * row


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
        if rate is None or rate >= event_limit(config, self.isa):
            return chosen
        if chosen is None:
            packed = packed_config(config, self.isa)
            chosen = default_tiles(packed, batch, self.isa, self.threads)
        return replace(chosen, events=True)
