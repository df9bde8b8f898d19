"""The fast form of a layer: strips of the output in parallel, stages through a small workspace.

A work unit is one strip of output rows of one image, for all timesteps. Each stage of the chain
but the last writes into a workspace with zeros around it, so that the next stage reads its taps
without bounds checks; the last stage's register tile gets bias, residual and neuron, whose
membrane stays in registers over the timesteps of a block.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

from tvm.ir import Expr
from tvm.tirx import PrimFunc

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.events import ONE_PIXEL
from ttsnn.passes.cpu.kernels.geometry import chain_regions, copies_input
from ttsnn.passes.cpu.kernels.output import last_stage, load_state, store_state
from ttsnn.passes.cpu.kernels.stage import StageCall, inner_stage
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, StageTile, check_tiles
from ttsnn.passes.cpu.kernels.unit import Unit
from ttsnn.passes.cpu.kernels.workspace import Array, copy_input, copy_spikes, workspaces
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.signature import CONFIG_ATTR, LayerParams, layer_params
from ttsnn.passes.tir.body import Body, at_most, i64

__all__ = ["fused_layer"]


def fused_layer(
    config: LayerConfig,
    batch: int | None,
    isa: Isa,
    tiles: LayerTiles,
    name: str,
    params: LayerParams | None = None,
) -> PrimFunc:
    """The function of a layer, equal to the reference up to rounding.

    Args:
        config: what to compute; weights should be packed for the same ``isa``.
        batch: number of images, None for a symbolic one.
        isa: vector width and registers.
        tiles: strip, block and register tiles.
        name: name of the function.
        params: its arguments, where they are not exactly the layer's: weights may be longer,
            and there may be more of them. An x of [inputs, x_T, N, H, W, C] has the layer
            computed for each of the inputs in turn, all into the same results.

    Raises:
        PassError: if the tiles do not fit the layer.
    """
    check_tiles(config, tiles)
    b, p = Body(), params or layer_params(config, batch)
    height, rows = config.stages[-1].out_size[0], tiles.strip_rows
    strips = -(-height // rows)
    flat = {
        key: b.view(buffer, math.prod(buffer.shape), str(buffer.dtype), f"{key}_flat")
        for key, buffer in {**p.operands, **p.results}.items()
    }
    *several, _, _, _, _, _ = p.operands["x"].shape
    with (
        b.loop(math.prod(several), "input") as turn,
        b.loop(p.batch * strips, "unit", "parallel") as unit,
    ):
        n = b.bind(unit // strips if strips > 1 else unit, "n")
        h0: Expr = i64(0)
        if strips > 1:
            h0 = (unit % strips) * rows
            # the last strip is shifted to end with the image: some rows are computed twice
            h0 = b.bind(at_most(h0, height - rows) if height % rows else h0, "h0")
        _unit(Unit(b, config, isa, tiles, flat, p.batch, n, h0, x_start=turn * config.x_T))
    return b.function(p.all, name, {CONFIG_ATTR: config.to_json(), "op_pattern": 8})


def _unit(u: Unit) -> None:
    """All timesteps of one strip."""
    config, tiles = u.config, u.tiles
    segments = [
        (stages, chosen, prefix, start, stop)
        for stages, chosen, prefix, start, stop in (
            (config.stages, tiles.stages, "w", 0, config.timesteps),
            (config.half_stages, tiles.half_stages, "half_w", config.timesteps, config.T),
        )
        if stop > start
    ]
    blocks = sum(u.blocks(start, stop) for *_, start, stop in segments)
    if blocks > 1 and config.lif is not None:
        u = replace(u, state=u.body.alloc(2 * u.strip, config.dtype, "state"))
        load_state(u)
    done = 0
    for stages, chosen, prefix, start, stop in segments:
        works = workspaces(u, stages)
        with u.body.loop(u.blocks(start, stop), "block") as block:
            t0 = start + block * tiles.time_block
            _block(u, stages, chosen, prefix, works, t0, stop - start, done + block)
        done += u.blocks(start, stop)
    if u.state is not None and "v_last" in config.emit:
        store_state(u, blocks)


def _block(
    u: Unit,
    stages: tuple[Stage, ...],
    tiles: tuple[StageTile, ...],
    prefix: str,
    works: list[Array],
    t0: Expr,
    steps: int,
    index: Expr,
) -> None:
    """All stages for one block of timesteps, the ``index``-th of the unit."""
    regions = chain_regions(stages, u.tiles.strip_rows)
    if u.tiles.events:
        copy_spikes(u, stages[0], works[0], regions[0], t0)
    elif copies_input(u.config, stages[0]):
        copy_input(u, stages[0], works[0], regions[0], t0)
    else:
        x = works[0]
        works = [replace(x, base=x.base + u.x_time(t0) * x.time_stride), *works[1:]]
    for i, stage in enumerate(stages):
        last = i == len(stages) - 1
        bias = last and u.config.bias
        events = i == 0 and u.tiles.events
        tile = ONE_PIXEL if events else tiles[i]
        call = StageCall(stage, tile, f"{prefix}{i}", works[i], regions[i + 1], bias, events)
        if last:
            last_stage(u, call, t0, steps, index)
            return
        # apart from the others: beside its loops LLVM finds no good registers for theirs
        with u.body.outlined(call.weight) if events else nullcontext():
            inner_stage(u, call, works[i + 1])
