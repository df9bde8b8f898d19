"""A chain of tap convolutions in training: as the fused layer, and intermediate results are kept.

Strips of the output run in parallel, each through all links while its intermediate results are in
the cache; those are stored too, since weight gradients read them. The same kernel with transposed
weights is the gradient to the input. Spikes that are stored as bytes become numbers on the way
into the strip's workspace.
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.geometry import Region, chain_regions, clip, leaves_image
from ttsnn.passes.cpu.kernels.output import last_stage
from ttsnn.passes.cpu.kernels.stage import StageCall, inner_stage
from ttsnn.passes.cpu.kernels.stream import for_channels
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, check_tiles
from ttsnn.passes.cpu.kernels.unit import Unit
from ttsnn.passes.cpu.kernels.workspace import Array, workspaces
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.layers.panels import packed_channels
from ttsnn.passes.layers.signature import layer_params
from ttsnn.passes.tir.body import Body, at_most, i64, load, vector
from ttsnn.passes.tir.finished import finished

__all__ = ["kept_shapes", "train_chain"]


def kept_shapes(config: LayerConfig, images: int, first: int = 0) -> list[tuple[int, ...]]:
    """Shapes [1, images, H, W, C] of intermediate results from the ``first``-th on.

    C is whole half vectors.
    """
    assert config.packing is not None  # training packs all weights
    return [
        (1, images, *s.out_size, packed_channels(s.out_channels, config.packing[0]))
        for s in config.stages[first:-1]
    ]


def train_chain(
    config: LayerConfig,
    images: int,
    isa: Isa,
    tiles: LayerTiles,
    x_type: tuple[str, int],
    first: int = 0,
) -> PrimFunc:
    """The function (x, packed weights…, y, intermediate results…).

    Args:
        config: the chain, without bias, residual and neuron, of one timestep; a link reads its
            ``in_channels`` first channels of what the one before it gives.
        images: number of images, all timesteps together.
        isa: vector width and registers.
        tiles: strip and register tiles.
        x_type: dtype and channels of x [1, images, H, W, channels].
        first: the first intermediate result that is one of the function's.
    """
    check_tiles(config, tiles)
    b, p = Body(), layer_params(config, images)
    dtype, channels = x_type
    shape = (1, images, *config.stages[0].in_size, channels)
    p.operands["x"] = _argument("x", shape, dtype)
    kept = {
        f"kept{i}": _argument(f"kept{i}", kept_shape, config.dtype)
        for i, kept_shape in enumerate(kept_shapes(config, images, first), first)
    }
    flat = {
        key: b.view(buffer, math.prod(buffer.shape), str(buffer.dtype), f"{key}_flat")
        for key, buffer in {**p.operands, **p.results, **kept}.items()
    }
    height, rows = config.stages[-1].out_size[0], tiles.strip_rows
    strips = -(-height // rows)
    with b.loop(images * strips, "unit", "parallel") as unit:
        n = b.bind(unit // strips if strips > 1 else unit, "n")
        h0: Expr = i64(0)
        if strips > 1:
            h0 = (unit % strips) * rows
            h0 = b.bind(at_most(h0, height - rows) if height % rows else h0, "h0")
        _unit(Unit(b, config, isa, tiles, flat, i64(images), n, h0), dtype, channels)
    macs = images * sum(map(stage_macs, config.stages))
    return finished(b, [*p.all, *kept.values()], "layer", macs)


def _argument(name: str, shape: tuple[int, ...], dtype: str) -> Var:
    return tirx.decl_buffer([i64(s) for s in shape], dtype, name)


def _unit(u: Unit, dtype: str, channels: int) -> None:
    """All links of one strip."""
    stages = u.config.stages
    regions = chain_regions(stages, u.tiles.strip_rows)
    # a first link without padding: what the workspaces are for is in the others
    works = workspaces(u, stages)
    works[0] = _input(u, works[0], regions[0], dtype, channels)
    for i, stage in enumerate(stages):
        call = StageCall(stage, u.tiles.stages[i], f"w{i}", works[i], regions[i + 1], False)
        if i == len(stages) - 1:
            last_stage(u, call, i64(0), 1, i64(0))
        else:
            inner_stage(u, call, works[i + 1])
            if f"kept{i}" in u.flat:
                _keep(u, works[i + 1], regions[i + 1], u.flat[f"kept{i}"])


def _input(u: Unit, work: Array, region: Region, dtype: str, channels: int) -> Array:
    """What the first link reads: x itself, or a copy of the strip's rows as numbers."""
    bordered = leaves_image(u.config.stages[0])
    own = u.config.stages[0].in_channels
    row = region.width * channels
    image = u.n * (region.height * row)
    low, high = clip(region, u.h0)
    if not bordered:
        base = u.body.bind(image + region.start(u.h0) * row, "x_at")
        if dtype == u.config.dtype:
            return Array(u.flat["x"], base, 0, region.width, 0, channels)
        buffer = u.body.alloc(region.rows * row, u.config.dtype, "work0")
        # rows of the region outside the image are not read, and are not there
        with u.body.loop(high - low, "r", start=low) as r:
            at = u.body.bind(r * row, "to")
            _copy(u, u.flat["x"], base + at, buffer, at, row)
        return Array(buffer, i64(0), 0, region.width, 0, channels)
    with u.body.loop(high - low, "r", start=low) as r:
        source = u.body.bind(image + (region.start(u.h0) + r) * row, "from")
        target = u.body.bind(work.at(0, r, 0), "to")
        if own == channels:
            _copy(u, u.flat["x"], source, work.buffer, target, row)
        else:
            with u.body.loop(region.width, "column") as c:
                at = target + c * own
                _copy(u, u.flat["x"], source + c * channels, work.buffer, at, own)
    return work


def _copy(u: Unit, source: Var, base: Expr, target: Var, at: Expr, count: int) -> None:
    """Copy neighbouring elements, as numbers of the chain's dtype."""
    cast = str(source.dtype) != u.config.dtype

    def some(i: Expr, n: int) -> None:
        value = load(source, vector(base + i, n))
        if cast:
            value = value.astype(u.config.dtype if n == 1 else f"{u.config.dtype}x{n}")
        u.body.store(target, value, vector(at + i, n))

    for_channels(u.body, count, u.lanes, some)


def _keep(u: Unit, work: Array, region: Region, kept: Var) -> None:
    """Store a strip's intermediate result; rows that two strips share are stored by both."""
    b, row = u.body, region.width * work.channels
    low, high = clip(region, u.h0)
    image = u.n * (region.height * row)
    with b.loop(high - low, "r", start=low) as r:
        at = b.bind(image + (region.start(u.h0) + r) * row, "kept_at")
        source = b.bind(work.at(0, r, 0), "from")
        _copy(u, work.buffer, source, kept, at, row)
