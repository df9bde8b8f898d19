"""Tile parameters of a layer's kernel, and the defaults chosen from shapes and instruction set.

The kernel is a function of the config and of these few numbers, so a tuner may search them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from ttsnn.errors import PassError
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.geometry import Region, chain_regions, copies_input
from ttsnn.passes.cpu.kernels.pack import panel_vectors
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_channels, panels

__all__ = [
    "LayerTiles",
    "StageTile",
    "check_tiles",
    "default_tiles",
    "layer_panels",
    "least_rows",
    "register_rows",
    "tile_shapes",
    "tiles_cost",
    "whole_image_tiles",
]


@dataclass(frozen=True)
class StageTile:
    """Register tile and loop order of one stage.

    Attributes:
        time, height, width: timesteps and output pixels whose sums one register tile holds.
        k_unroll: input channels a step of the inner loop.
        panels_outer: walk all pixels for one panel of weights before the next panel (weights
            are read once), instead of all panels for one tile of pixels.
    """

    time: int
    height: int
    width: int
    k_unroll: int
    panels_outer: bool


@dataclass(frozen=True)
class LayerTiles:
    """All tile parameters of a layer.

    Attributes:
        strip_rows: output rows of a work unit; units run in parallel.
        time_block: timesteps for which each stage runs before the next stage does; it must
            divide ``timesteps`` and ``T - timesteps``.
        stages, half_stages: one tile for each stage.
        panel_vectors: vectors in the widest panel of packed weights; None: as many as
            ``pack.panel_vectors`` says. Weights have to be packed for it.
        events: whether a chain's first stage adds the weights of the channels that spike, bit by
            bit (:mod:`~ttsnn.passes.cpu.kernels.events`), instead of multiplying by zeros too.
            Its register tile is then not asked.
    """

    strip_rows: int
    time_block: int
    stages: tuple[StageTile, ...]
    half_stages: tuple[StageTile, ...]
    panel_vectors: int | None = None
    events: bool = False

    def to_json(self) -> str:
        """Compact JSON, for attributes and databases."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> LayerTiles:
        """Inverse of :meth:`to_json`.

        Raises:
            PassError: the text is nothing of the kind.
        """
        try:
            d = json.loads(text)
            for key in ("stages", "half_stages"):
                d[key] = tuple(StageTile(**s) for s in d[key])
            return cls(**d)
        except (ValueError, TypeError, KeyError) as error:
            raise PassError(f"no tiles of a layer: {text[:100]!r} ({error})") from error


def layer_panels(config: LayerConfig, stage: Stage, isa: Isa) -> list[tuple[int, int]]:
    """(first channel, width) of a stage's panels of output channels, packed or plain."""
    if config.packing is not None:
        return panels(stage.out_channels, *config.packing)
    full = panels(stage.out_channels, isa.lanes(config.dtype), panel_vectors(isa))
    return [(a, min(n, stage.out_channels - a)) for a, n in full]


def register_rows(isa: Isa, vectors: int) -> int:
    """Rows of a register tile ``vectors`` wide.

    Registers hold the sums, a row of weights and inputs. With 32 of them LLVM loads the inputs
    of all rows first, and spills sums where there is no room; with 16 it loads one at a time.
    """
    if isa.registers >= 32:
        return max(1, (isa.registers - vectors) // (vectors + 1))
    return max(1, min(8, (isa.registers - vectors - 1) // vectors))


def default_tiles(config: LayerConfig, batch: int | None, isa: Isa, threads: int) -> LayerTiles:
    """Tiles by a small cost model: multiply-adds with their halo, weight traffic, idle threads."""
    steps = math.gcd(config.timesteps, config.T - config.timesteps)
    if config.x_T == 1:
        steps = 1
    height = config.stages[-1].out_size[0]
    best: tuple[float, int, int] | None = None
    for block in (d for d in range(steps, 0, -1) if steps % d == 0):
        for strips in range(1, height + 1):
            rows = -(-height // strips)
            if best is not None and strips > 1 and rows == -(-height // (strips - 1)):
                continue
            cost = tiles_cost(config, isa, rows, block, batch, threads)
            if best is None or cost < best[0] * 0.999:
                best = (cost, rows, block)
    assert best is not None
    _, rows, block = best
    return LayerTiles(
        rows,
        block,
        _chain_tiles(config, config.stages, isa, rows, block),
        _chain_tiles(config, config.half_stages, isa, rows, block),
    )


def whole_image_tiles(config: LayerConfig, isa: Isa) -> LayerTiles:
    """Default tiles of a layer of one timestep whose work unit is an image."""
    rows = config.stages[-1].out_size[0]
    return LayerTiles(rows, 1, _chain_tiles(config, config.stages, isa, rows, 1), ())


def tiles_cost(
    config: LayerConfig, isa: Isa, rows: int, block: int, batch: int | None, threads: int
) -> float:
    """Estimated cycles of a layer for one image and all timesteps."""
    lanes, size = isa.lanes(config.dtype), 8 if config.dtype == "float64" else 4
    stages = config.stages
    regions = chain_regions(stages, rows)
    work = workspace = weights = 0.0
    for i, (stage, region) in enumerate(zip(stages, regions[1:])):
        channels = packed_channels(stage.out_channels, lanes)
        taps = len(stage.taps) * stage.in_channels
        work += min(region.rows, region.height) * region.width * taps * channels / lanes
        weights += taps * channels * size
        if i < len(stages) - 1:
            workspace += region.rows * region.padded_width * channels * size
    if copies_input(config, stages[0]):
        copied = regions[0].rows * regions[0].padded_width * stages[0].in_channels
        workspace += copied * size
        work += copied / 4
    workspace *= block
    steps = 1 if config.x_T == 1 else config.T
    blocks = steps // block
    if blocks > 1 and config.lif is not None:
        work += regions[-1].rows * regions[-1].width * stages[-1].out_channels / lanes * 4
    weight_speed = 32.0 if weights + workspace < isa.l2_bytes else 10.0
    unit = steps * work + blocks * weights / weight_speed
    if workspace > isa.l2_bytes / 2:
        unit *= 1.0 + 0.2 * (workspace / (isa.l2_bytes / 2) - 1.0)
    strips = -(-config.stages[-1].out_size[0] // rows)
    if batch is None or batch >= threads:
        return unit * strips
    return unit * -(-strips * batch // threads)


def _chain_tiles(
    config: LayerConfig, stages: tuple[Stage, ...], isa: Isa, rows: int, block: int
) -> tuple[StageTile, ...]:
    if not stages:
        return ()
    out = []
    regions = chain_regions(stages, rows)
    last_start = regions[-1].height - rows
    lanes, size = isa.lanes(config.dtype), 8 if config.dtype == "float64" else 4
    for stage, region in zip(stages, regions[1:]):
        widest = max(n for _, n in layer_panels(config, stage, isa))
        vectors = -(-widest // lanes)
        height = least_rows(region, last_start)
        tile = tile_shapes(region, height, block, vectors, register_rows(isa, vectors))[0]
        weight = len(stage.taps) * stage.in_channels * stage.out_channels * size
        out.append(StageTile(*tile, 4, weight > isa.l2_bytes // 8))
    return tuple(out)


def tile_shapes(
    region: Region, height: int, block: int, vectors: int, limit: int
) -> list[tuple[int, int, int]]:
    """All (time, height, width) of at most ``limit`` rows, those that cover a region fastest first.

    ``height`` is the least number of the region's rows that lie inside the image.
    """
    found: list[tuple[float, tuple[int, int, int]]] = []
    for across in range(1, region.width + 1):
        w = -(-region.width // across)
        for down in range(1, height + 1):
            h = -(-height // down)
            for t in (d for d in range(1, block + 1) if block % d == 0):
                if w * h * t > limit or (h > 1 and w < region.width):
                    continue
                if t > 1 and (w < region.width or h < height):
                    continue
                tiles = -(-region.width // w) * -(-region.rows // h) * (block // t)
                found.append((tiles * (w * h * t * vectors + 1.0), (t, h, w)))
    found.sort(key=lambda entry: entry[0])  # of equals the first stays first
    return list(dict.fromkeys(shape for _, shape in found))


def least_rows(region: Region, last_start: int) -> int:
    """Fewest rows of a region inside the image, over strips from row 0 to ``last_start``."""
    starts = (int(region.start(0)), int(region.start(last_start)))
    return min(min(region.rows, region.height - s) - max(0, -s) for s in starts)


def check_tiles(config: LayerConfig, tiles: LayerTiles) -> None:
    """Refuse tiles that do not fit a layer.

    Raises:
        PassError: naming the layer and the parameter.
    """

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise PassError(f"layer {config.name}: {what} in {tiles}; choose another tile")

    block, height = tiles.time_block, config.stages[-1].out_size[0]
    if tiles.panel_vectors is not None and config.packing is not None:
        packed = config.packing[1]
        require(tiles.panel_vectors == packed, f"weights are packed in panels of {packed} vectors")
    if tiles.events:
        require(config.byte_x, "events are for an input of spikes as bytes")
    require(1 <= tiles.strip_rows <= height, f"strip_rows must be 1…{height}")
    if config.x_T == 1:
        require(block == 1, "time_block must be 1 where the input does not change with time")
    steps = (config.timesteps, config.T - config.timesteps)
    require(block >= 1 and all(s % block == 0 for s in steps), f"time_block must divide {steps}")
    for stages, chosen in ((config.stages, tiles.stages), (config.half_stages, tiles.half_stages)):
        require(len(stages) == len(chosen), "one tile for each stage")
        if not stages:
            continue
        regions = chain_regions(stages, tiles.strip_rows)
        for region, tile in zip(regions[1:], chosen):
            rows = least_rows(region, height - tiles.strip_rows)
            require(1 <= tile.height <= rows, f"height of a tile must be 1…{rows}")
            require(1 <= tile.width <= region.width, f"width must be 1…{region.width}")
            require(tile.time >= 1 and block % tile.time == 0, f"time must divide {block}")
            require(tile.k_unroll >= 1, "k_unroll must be positive")
