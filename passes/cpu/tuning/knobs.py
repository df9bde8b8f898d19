"""The numbers that the tuner may turn in one form of a layer, and the tiles that they mean.

Knobs are independent: any combination of their values is a kernel. So what depends on another
number is counted in ranks: ``shape0`` is the rank of the first stage's register tile among those
that are possible for the strip and block, best first by the analytic model. A value of every
knob's gives the analytic default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ttsnn.passes.cpu.event_choice import event_limit
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.geometry import Region, chain_regions
from ttsnn.passes.cpu.kernels.pack import packed_config, panel_vectors
from ttsnn.passes.cpu.kernels.tiles import (
    LayerTiles,
    StageTile,
    default_tiles,
    layer_panels,
    least_rows,
    register_rows,
    tile_shapes,
)
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import panels

__all__ = ["Knob", "knobs_of", "tiles_of"]

SHAPES = 6
"""How many register tiles of a stage are tried."""

LARGER_SHAPES = 2
"""How many beside them that are larger than the registers should hold: the count is a model."""

UNROLL = (2, 4, 8)


@dataclass(frozen=True)
class Knob:
    """One number to choose.

    Attributes:
        name: ``strip_rows``, ``time_block``, ``panel_vectors``, ``events``, and with the stage's
            place ``shape0``, ``unroll0``, ``outer0``.
        values: in order, so that neighbours are alike.
        default: the analytic default, one of them.
    """

    name: str
    values: tuple[int, ...]
    default: int


@lru_cache(maxsize=256)
def knobs_of(
    config: LayerConfig, batch: int, isa: Isa, threads: int, rate: float | None = None
) -> tuple[Knob, ...]:
    """The knobs of a layer in one form.

    Args:
        config: the layer in that form, weights plain.
        batch: images.
        isa, threads: of the CPU.
        rate: share of ones in its input; None: not known, and it is never event-driven.
    """
    packed = packed_config(config, isa)
    tiles = default_tiles(packed, batch, isa, threads)
    height = packed.stages[-1].out_size[0]
    strips = sorted({-(-height // count) for count in range(1, height + 1)})
    steps = 1 if config.x_T == 1 else math.gcd(config.timesteps, config.T - config.timesteps)
    out = [
        Knob("strip_rows", tuple(strips), tiles.strip_rows),
        Knob("time_block", tuple(_divisors(steps)), tiles.time_block),
        Knob("panel_vectors", _panel_widths(packed, isa), panel_vectors(isa)),
    ]
    if rate is not None and config.byte_x:
        out.append(Knob("events", (0, 1), int(rate < event_limit(config, isa))))
    for i, tile in enumerate((*tiles.stages, *tiles.half_stages)):
        out.append(Knob(f"shape{i}", tuple(range(SHAPES + LARGER_SHAPES)), 0))
        out.append(Knob(f"unroll{i}", UNROLL, tile.k_unroll))
        out.append(Knob(f"outer{i}", (0, 1), int(tile.panels_outer)))
    return tuple(k for k in out if len(k.values) > 1)


def tiles_of(
    config: LayerConfig,
    batch: int,
    isa: Isa,
    threads: int,
    values: Mapping[str, int],
    rate: float | None = None,
) -> LayerTiles:
    """The tiles that values of knobs mean; knobs without a value have their default.

    An event-driven stage has a register tile of its own; what knobs say of it does not count, and
    is left out, so that equal kernels are equal choices.
    """
    default = {k.name: k.default for k in knobs_of(config, batch, isa, threads, rate)}
    given = default | dict(values)
    events = bool(given.get("events", 0))
    vectors = given.get("panel_vectors", panel_vectors(isa))
    packed = packed_config(config, isa, vectors)
    rows, block = given.get("strip_rows", 1), given.get("time_block", 1)
    at = 0

    def chain(stages: tuple[Stage, ...]) -> tuple[StageTile, ...]:
        nonlocal at
        out = []
        regions = chain_regions(stages, rows) if stages else []
        for place, (stage, region) in enumerate(zip(stages, regions[1:])):
            height = least_rows(region, regions[-1].height - rows)
            shapes = _shapes(packed, stage, isa, region, height, block)
            said = default if events and place == 0 else given
            t, h, w = shapes[min(said[f"shape{at}"], len(shapes) - 1)]
            out.append(StageTile(t, h, w, said[f"unroll{at}"], bool(said[f"outer{at}"])))
            at += 1
        return tuple(out)

    full, half = chain(packed.stages), chain(packed.half_stages)
    return LayerTiles(rows, block, full, half, vectors, events)


def _shapes(
    packed: LayerConfig, stage: Stage, isa: Isa, region: Region, height: int, block: int
) -> list[tuple[int, int, int]]:
    """Register tiles of a stage: those that fit, then some that are a little too large."""
    lanes = isa.lanes(packed.dtype)
    vectors = -(-max(n for _, n in layer_panels(packed, stage, isa)) // lanes)
    limit = register_rows(isa, vectors)
    fitting = tile_shapes(region, height, block, vectors, limit)[:SHAPES]
    larger = tile_shapes(region, height, block, vectors, limit + 2)
    larger = [s for s in larger if math.prod(s) > limit][:LARGER_SHAPES]
    return [*fitting, *larger]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _panel_widths(packed: LayerConfig, isa: Isa) -> tuple[int, ...]:
    """Most vectors in a panel: only counts that split some stage in another way."""
    lanes, most = isa.lanes(packed.dtype), panel_vectors(isa)
    stages = (*packed.stages, *packed.half_stages)
    out: dict[tuple, int] = {}
    for vectors in range(most, 0, -1):
        split = tuple(tuple(panels(s.out_channels, lanes, vectors)) for s in stages)
        out.setdefault(split, vectors)
    return tuple(sorted(out.values()))
