"""What the tuner's cost model is told of a candidate: the numbers that decide its speed.

MetaSchedule's own features are read off the loops of a schedule. The layer's kernel has none
before it is built, and thousands of unrolled statements after; but it is a function of a few
numbers, which say more.
"""

from __future__ import annotations

from math import log2, prod

import numpy as np

from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.cpu.event_choice import event_limit
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.geometry import chain_regions
from ttsnn.passes.cpu.kernels.pack import packed_config
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, StageTile, layer_panels, tiles_cost
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.layers.panels import packed_channels

__all__ = ["features_of"]

STAGES = 4
"""Stages that have features of their own; an stt chain has no more."""


def features_of(
    config: LayerConfig,
    batch: int,
    isa: Isa,
    threads: int,
    tiles: LayerTiles,
    rate: float | None = None,
) -> np.ndarray:
    """One row of numbers, float64 [1, …], of a layer in one form with its tiles."""
    packed = packed_config(config, isa, tiles.panel_vectors)
    stages, lanes = packed.stages, isa.lanes(packed.dtype)
    regions = chain_regions(stages, tiles.strip_rows)
    strips = -(-stages[-1].out_size[0] // tiles.strip_rows)
    work = sum(map(stage_macs, stages))
    model = tiles_cost(packed, isa, tiles.strip_rows, tiles.time_block, batch, threads)
    row = [
        *_log(batch, packed.T, work, model, tiles.strip_rows, strips, tiles.time_block),
        *_log(strips * batch / (-(-strips * batch // threads) * threads)),
        *(float(x) for x in (packed.x_T == 1, packed.residual, packed.v0, len(packed.emit))),
        float(tiles.panel_vectors or 0),
        float(len(stages)),
        float(len(packed.half_stages)),
        float(tiles.events),
        *_log(rate or 1.0, event_limit(config, isa) / (rate or 1.0) if tiles.events else 1.0),
    ]
    for i in range(STAGES):
        if i >= len(stages):
            row += [0.0] * 14
            continue
        stage, region, tile = stages[i], regions[i + 1], tiles.stages[i]
        width = packed_channels(stage.out_channels, lanes)
        vectors = -(-max(n for _, n in layer_panels(packed, stage, isa)) // lanes)
        size = 8 if packed.dtype == "float64" else 4
        row += [
            *_log(stage.in_channels, stage.out_channels, len(stage.taps)),
            *_log(region.rows, region.width, tile.time, tile.height, tile.width),
            *_log(tile.k_unroll, len(stage.taps) * stage.in_channels * width * size),
            float(tile.panels_outer),
            float(vectors),
            float(_registers(tile, vectors)),
            _covered(tile, region.rows, region.width),
        ]
    return np.array([row])


def _log(*values: float) -> list[float]:
    return [log2(max(v, 1e-6)) for v in values]


def _registers(tile: StageTile, vectors: int) -> int:
    """Vectors that the sums of a register tile take."""
    return prod((tile.time, tile.height, tile.width, vectors))


def _covered(tile: StageTile, rows: int, width: int) -> float:
    """Part of what the register tiles of a region compute that lies inside it."""
    across, down = -(-width // tile.width), -(-rows // tile.height)
    return rows * width / (across * tile.width * down * tile.height)
