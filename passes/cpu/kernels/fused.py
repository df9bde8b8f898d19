"""The fast form of a layer: strips of the output in parallel, stages through a small workspace.

A work unit is one strip of output rows of one image, for all timesteps. Each stage of the chain
but the last writes into a workspace with zeros around it, so that the next stage reads its taps
without bounds checks; the last stage's register tile gets bias, residual and neuron, whose
membrane stays in registers over the timesteps of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.geometry import Region, chain_regions, clip, leaves_image
from ttsnn.passes.cpu.kernels.neuron import lif_step
from ttsnn.passes.cpu.kernels.pack import packed_channels
from ttsnn.passes.cpu.kernels.register_tile import Point, RegisterTile, chunks
from ttsnn.passes.cpu.kernels.signature import CONFIG_ATTR, LayerParams, layer_params
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, StageTile, check_tiles, layer_panels
from ttsnn.passes.cpu.kernels.tir import Body, at_most, fold, i64, load, splat, vector
from ttsnn.passes.cpu.layer_config import LayerConfig, Stage

__all__ = ["fused_layer"]


@dataclass(frozen=True)
class _Array:
    """A flat buffer that holds rows of an image for several timesteps.

    ``base + ((t · time_stride) + (row · width + column) · channels + c)`` is an element; row and
    column are relative to the region, columns start at ``left`` zeros.
    """

    buffer: Var
    base: Expr
    time_stride: int | Expr
    width: int
    left: int
    channels: int

    def at(self, t: Expr | int, row: Expr | int, column: Expr | int) -> Expr:
        pixel = (i64(row) * self.width + (column + self.left)) * self.channels
        return self.base + t * self.time_stride + pixel

    @property
    def row_stride(self) -> int:
        return self.width * self.channels

    def offset(self, t: Expr, row: Expr, column: Expr) -> Expr:
        """Distance between two elements."""
        return t * self.time_stride + row * self.row_stride + column * self.channels


def fused_layer(
    config: LayerConfig, batch: int | None, isa: Isa, tiles: LayerTiles, name: str
) -> PrimFunc:
    """The function of a layer, equal to the reference up to rounding.

    Args:
        config: what to compute; weights should be packed for the same ``isa``.
        batch: number of images, None for a symbolic one.
        isa: vector width and registers.
        tiles: strip, block and register tiles.
        name: name of the function.

    Raises:
        PassError: if the tiles do not fit the layer.
    """
    check_tiles(config, tiles)
    return _Emitter(config, batch, isa, tiles).function(name)


class _Emitter:
    def __init__(self, config: LayerConfig, batch: int | None, isa: Isa, tiles: LayerTiles) -> None:
        self.config, self.isa, self.tiles = config, isa, tiles
        self.lanes = isa.lanes(config.dtype)
        self.p: LayerParams = layer_params(config, batch)
        self.body = Body()
        self.last = config.stages[-1]
        self.height, self.width = self.last.out_size
        self.channels = self.last.out_channels
        self.segments = [
            (stages, tile, prefix, start, stop)
            for stages, tile, prefix, start, stop in (
                (config.stages, tiles.stages, "w", 0, config.timesteps),
                (config.half_stages, tiles.half_stages, "half_w", config.timesteps, config.T),
            )
            if stop > start
        ]
        per_segment = [
            1 if config.x_T == 1 else (b - a) // tiles.time_block for *_, a, b in self.segments
        ]
        self.blocks = sum(per_segment)

    def function(self, name: str) -> PrimFunc:
        b, config = self.body, self.config
        strips = -(-self.height // self.tiles.strip_rows)
        self.flat = {
            key: b.view(buffer, math.prod(buffer.shape), config.dtype, f"{key}_flat")
            for key, buffer in {**self.p.operands, **self.p.results}.items()
        }
        with b.loop(self.p.batch * strips, "unit", "parallel") as unit:
            self.n = b.bind(unit // strips if strips > 1 else unit, "n")
            h0: Expr = i64(0)
            if strips > 1:
                h0 = (unit % strips) * self.tiles.strip_rows
                if self.height % self.tiles.strip_rows:
                    h0 = at_most(h0, self.height - self.tiles.strip_rows)
            self.h0 = b.bind(h0, "h0")
            self._unit()
        return b.function(self.p.all, name, {CONFIG_ATTR: config.to_json(), "op_pattern": 8})

    def _unit(self) -> None:
        b, config = self.body, self.config
        self.state: Var | None = None
        self.strip = self.tiles.strip_rows * self.width * self.channels
        if self.blocks > 1 and config.lif is not None:
            self.state = b.alloc(2 * self.strip, config.dtype, "state")
            self._copy("v0" if config.v0 else None, self.state, i64(0), self.h0)
        done = 0
        for stages, tile, prefix, start, stop in self.segments:
            count = 1 if config.x_T == 1 else (stop - start) // self.tiles.time_block
            works = self._workspaces(stages)
            with b.loop(count, "block") as block:
                t0 = start + block * self.tiles.time_block
                self._block(stages, tile, prefix, works, t0, stop - start, done + block)
            done += count
        if self.state is not None and "v_last" in config.emit:
            out = self._image_base(None, self.h0)
            with b.loop(self.strip // self.channels, "pixel") as i:
                for c, n in chunks(self.channels, self.lanes):
                    at = i * self.channels + c
                    value = load(self.state, vector((self.blocks % 2) * self.strip + at, n))
                    b.store(self.flat["v_last"], value, vector(out + at, n))

    def _copy(self, source: str | None, to: Var, to_base: Expr, row: Expr) -> None:
        """Fill a strip with an operand's rows, or with zeros."""
        b = self.body
        base = self._image_base(None, row)
        with b.loop(self.strip // self.channels, "pixel") as i:
            for c, n in chunks(self.channels, self.lanes):
                at = i * self.channels + c
                value = splat(0.0, self.config.dtype, n)
                if source is not None:
                    value = load(self.flat[source], vector(base + at, n))
                b.store(to, value, vector(to_base + at, n))

    def _image_base(self, t: Expr | int | None, row: Expr) -> Expr:
        """Offset of row ``row`` in an array like the output ([N, …], or [T, N, …] at step t)."""
        image = self.n if t is None else t * self.p.batch + self.n
        return (image * self.height + row) * (self.width * self.channels)

    # -- workspaces -------------------------------------------------------------------------

    def _workspaces(self, stages: tuple[Stage, ...]) -> list[_Array]:
        """The chain's input (the operand, or a bordered copy) and intermediate results."""
        b, block = self.body, self.tiles.time_block
        regions = chain_regions(stages, self.tiles.strip_rows)
        out: list[_Array] = []
        for i, region in enumerate(regions[:-1]):
            channels = stages[0].in_channels
            if i == 0 and not leaves_image(stages[0]):
                image = region.height * region.width * channels
                base = (self.n * region.height + region.start(self.h0)) * (region.width * channels)
                base = b.bind(base, "x_at")
                stride = self.p.batch * image
                out.append(_Array(self.flat["x"], base, stride, region.width, 0, channels))
                continue
            if i > 0:
                channels = self._work_channels(stages[i - 1])
            size = region.rows * region.padded_width * channels
            buffer = b.alloc(block * size, self.config.dtype, f"work{i}")
            array = _Array(buffer, i64(0), size, region.padded_width, region.left, channels)
            self._zero_border(array, region)
            out.append(array)
        return out

    def _work_channels(self, stage: Stage) -> int:
        if self.config.packing is None:
            return stage.out_channels
        return packed_channels(stage.out_channels, self.config.packing[0])

    def _zero_border(self, array: _Array, region: Region) -> None:
        b = self.body
        low, high = clip(region, self.h0)
        sides = ((0, region.left), (region.left + region.width, region.right))
        with b.loop(self.tiles.time_block, "t") as t, b.loop(region.rows, "r") as r:
            row = array.at(t, r, -array.left)
            outside = tirx.Or(r < low, r >= high)
            if (fold(low), fold(high)) != (0, region.rows):
                with b.when(outside):
                    self._zero(array.buffer, row, region.padded_width * array.channels)
            for start, columns in sides:
                if columns:
                    at = row + start * array.channels
                    self._zero(array.buffer, at, columns * array.channels)

    def _zero(self, buffer: Var, base: Expr, count: int) -> None:
        whole = count // self.lanes
        with self.body.loop(whole, "i") as i:
            value = splat(0.0, self.config.dtype, self.lanes)
            if whole:
                self.body.store(buffer, value, vector(base + i * self.lanes, self.lanes))
        for c, n in chunks(count - whole * self.lanes, self.lanes):
            at = vector(base + whole * self.lanes + c, n)
            self.body.store(buffer, splat(0.0, self.config.dtype, n), at)

    def _copy_input(self, stage: Stage, to: _Array, region: Region, t0: Expr) -> None:
        """Copy the input's rows of a strip between the zeros of a workspace."""
        b = self.body
        low, high = clip(region, self.h0)
        row_size = region.width * stage.in_channels
        with b.loop(self.tiles.time_block, "t") as t, b.loop(high - low, "r", start=low) as r:
            image = self._x_time(t0 + t) * self.p.batch + self.n
            source = (image * region.height + region.start(self.h0) + r) * row_size
            source, target = b.bind(source, "from"), b.bind(to.at(t, r, 0), "to")
            whole = row_size // self.lanes
            if whole:
                with b.loop(whole, "i") as i:
                    at = i * self.lanes
                    value = load(self.flat["x"], vector(source + at, self.lanes))
                    b.store(to.buffer, value, vector(target + at, self.lanes))
            for c, n in chunks(row_size - whole * self.lanes, self.lanes):
                at = whole * self.lanes + c
                value = load(self.flat["x"], vector(source + at, n))
                b.store(to.buffer, value, vector(target + at, n))

    def _x_time(self, t: Expr) -> Expr:
        return t if self.config.x_T > 1 else i64(0)

    # -- stages -----------------------------------------------------------------------------

    def _block(
        self,
        stages: tuple[Stage, ...],
        tiles: tuple[StageTile, ...],
        prefix: str,
        works: list[_Array],
        t0: Expr,
        steps: int,
        index: Expr,
    ) -> None:
        """All stages for one block of timesteps."""
        regions = chain_regions(stages, self.tiles.strip_rows)
        if leaves_image(stages[0]):
            self._copy_input(stages[0], works[0], regions[0], t0)
        else:
            moved = works[0].base + self._x_time(t0) * works[0].time_stride
            x = works[0]
            works = [
                _Array(x.buffer, moved, x.time_stride, x.width, x.left, x.channels),
                *works[1:],
            ]
        for i, stage in enumerate(stages):
            last = i == len(stages) - 1
            bias = last and self.config.bias
            call = _StageCall(stage, tiles[i], f"{prefix}{i}", works[i], regions[i + 1], bias)
            if not last:
                self._inner_stage(call, works[i + 1])
            else:
                self._last_stage(call, t0, steps, index)

    def _panel_loops(self, call: _StageCall, low: Expr, high: Expr, emit) -> None:
        """Loops over pixel tiles and panels, in the order that the tile asks for."""
        groups: list[list[tuple[int, int]]] = []
        for panel in layer_panels(self.config, call.stage, self.isa):
            if groups and groups[-1][0][1] == panel[1]:
                groups[-1].append(panel)
            else:
                groups.append([panel])
        pixels = _Pixels(self.body, call.tile, low, high, call.region.width)
        if not call.tile.panels_outer:
            with pixels as (row, column):
                for group in groups:
                    with self.body.loop(len(group), "panel") as i:
                        emit(group[0], i, row, column)
        else:
            for group in groups:
                with self.body.loop(len(group), "panel") as i, pixels as (row, column):
                    emit(group[0], i, row, column)

    def _accumulate(
        self,
        call: _StageCall,
        panel: tuple[int, int],
        index: Expr,
        t: Expr | int,
        row: Expr,
        column: Expr,
        vectors: list[tuple[int, int]],
    ) -> RegisterTile:
        """A register tile with the sums of one panel, from pixel (row, column) on."""
        stage, tile, source = call.stage, call.tile, call.source
        start, width = panel
        sh, sw = stage.strides
        top = min(tap[0] for tap in stage.taps)
        taps = [(dh - top) * source.row_stride + dw * source.channels for dh, dw in stage.taps]
        shape = (tile.time, tile.height, tile.width)
        acc = RegisterTile(self.body, self.config.dtype, shape, vectors)
        channel = start + index * width
        acc.start(self.flat["bias"] if call.adds_bias else None, channel)
        taps_channels = len(stage.taps) * stage.in_channels
        if self.config.packing is None:
            weight_base, stride = channel, stage.out_channels
        else:
            weight_base, stride = taps_channels * channel, width
        acc.accumulate(
            source.buffer,
            self.body.bind(source.at(t, row * sh, column * sw), "in_at"),
            lambda dt, dy, dx: source.offset(dt, dy * sh, dx * sw),
            taps,
            stage.in_channels,
            self.flat[call.weight],
            self.body.bind(i64(weight_base), "weight_at"),
            stride,
            tile.k_unroll,
        )
        return acc

    def _inner_stage(self, call: _StageCall, to: _Array) -> None:
        """A stage whose sums go to the next workspace."""
        b, tile = self.body, call.tile
        low, high = clip(call.region, self.h0)

        def emit(panel: tuple[int, int], index: Expr, row: Expr, column: Expr) -> None:
            with b.loop(self.tiles.time_block // tile.time, "t") as t:
                vectors = chunks(panel[1], self.lanes)
                acc = self._accumulate(call, panel, index, t * tile.time, row, column, vectors)
                base = to.at(t * tile.time, row, column) + panel[0] + index * panel[1]
                base = b.bind(base, "out_at")
                with acc.pixels() as pixel:
                    for c, n in vectors:
                        target = vector(base + to.offset(*pixel) + c, n)
                        b.store(to.buffer, acc.get(pixel, c, n), target)

        self._panel_loops(call, low, high, emit)

    def _last_stage(self, call: _StageCall, t0: Expr, steps: int, index: Expr) -> None:
        """The stage whose sums get bias, residual and neuron."""
        b, config, tile = self.body, self.config, call.tile
        same = config.x_T == 1

        def emit(panel: tuple[int, int], i: Expr, row: Expr, column: Expr) -> None:
            start, width = panel
            vectors = chunks(min(width, self.channels - start), self.lanes)
            pixel = (row * self.width + column) * self.channels + start + i * width
            pixel = b.bind(pixel, "pixel")
            v = None
            if config.lif is not None:
                shape = (1, tile.height, tile.width)
                v = RegisterTile(b, config.dtype, shape, vectors, "v")
                self._load_membrane(v, pixel, index)
            if same:
                acc = self._accumulate(call, panel, i, 0, row, column, vectors)
                with b.loop(steps, "t") as t:
                    self._finish(acc, v, t0 + t, pixel)
            else:
                with b.loop(self.tiles.time_block // tile.time, "t") as t:
                    step = t * tile.time
                    acc = self._accumulate(call, panel, i, step, row, column, vectors)
                    self._finish(acc, v, t0 + step, pixel)
            if v is not None:
                self._store_membrane(v, pixel, index)

        self._panel_loops(call, i64(0), i64(self.tiles.strip_rows), emit)

    def _near(self, pixel: Point, c: int) -> Expr:
        """Distance of channel ``c`` of a tile's pixel from the tile's first element."""
        return (pixel[1] * self.width + pixel[2]) * self.channels + c

    def _load_membrane(self, v: RegisterTile, pixel: Expr, index: Expr) -> None:
        if self.state is not None:
            source, base = self.state, (index % 2) * self.strip + pixel
        elif self.config.v0:
            source, base = self.flat["v0"], self._image_base(None, self.h0) + pixel
        else:
            v.start()
            return
        with v.pixels() as near:
            for c, n in v.vectors:
                v.set(load(source, vector(base + self._near(near, c), n)), near, c, n)

    def _store_membrane(self, v: RegisterTile, pixel: Expr, index: Expr) -> None:
        if self.state is not None:
            # the other half: a shifted tile at the edge reads some pixels a second time
            target, base = self.state, ((index + 1) % 2) * self.strip + pixel
        elif "v_last" in self.config.emit:
            target, base = self.flat["v_last"], self._image_base(None, self.h0) + pixel
        else:
            return
        with v.pixels() as near:
            for c, n in v.vectors:
                where = vector(base + self._near(near, c), n)
                self.body.store(target, v.get(near, c, n), where)

    def _finish(self, acc: RegisterTile, v: RegisterTile | None, t: Expr, pixel: Expr) -> None:
        """Residual, neuron and stores for the timesteps of a register tile."""
        b, config = self.body, self.config
        step = self.p.batch * (self.height * self.width * self.channels)
        base = b.bind(self._image_base(t, self.h0) + pixel, "out_at")
        side, side_step = base, step
        if config.residual and config.residual_T == 1:
            side, side_step = b.bind(self._image_base(0, self.h0) + pixel, "side_at"), i64(0)
        with acc.pixels() as near:
            for c, n in acc.vectors:
                value = acc.get(near, c, n)
                offset = self._near(near, c)
                if config.residual:
                    at = side + near[0] * side_step + offset
                    value = value + load(self.flat["residual"], vector(at, n))
                value = b.bind(value, "m")
                out = base + near[0] * step + offset
                if "membrane" in config.emit:
                    b.store(self.flat["membrane"], value, vector(out, n))
                if v is not None:
                    self._neuron(value, v, ((i64(0), *near[1:]), c, n), out)

    def _neuron(self, value: Expr, v: RegisterTile, at: tuple[Point, int, int], out: Expr) -> None:
        """One timestep: spikes to their place, the membrane stays in registers."""
        b, config, lanes = self.body, self.config, at[2]
        before = b.bind(v.get(*at), "v_before")
        spikes, after = lif_step(config.lif, value, before, config.dtype, lanes)
        if "spikes" in config.emit:
            b.store(self.flat["spikes"], spikes, vector(out, lanes))
        v.set(after, *at)


@dataclass(frozen=True)
class _StageCall:
    """One stage with everything that it reads, and the region of its output."""

    stage: Stage
    tile: StageTile
    weight: str
    source: _Array
    region: Region
    adds_bias: bool


class _Pixels:
    """Loops over the register tiles of a region; the last of a row is shifted to end inside."""

    def __init__(self, body: Body, tile: StageTile, low: Expr, high: Expr, width: int) -> None:
        self.body, self.tile, self.low, self.high, self.width = body, tile, low, high, width

    def __enter__(self) -> tuple[Expr, Expr]:
        b, tile = self.body, self.tile
        rows = fold(self.high - self.low)
        count = (rows + tile.height - 1) // tile.height
        self.loops = [
            b.loop(fold(count), "y"),
            b.loop(-(-self.width // tile.width), "x"),
        ]
        i, j = (loop.__enter__() for loop in self.loops)
        row, column = i * tile.height, j * tile.width
        if self.width % tile.width:
            column = at_most(column, self.width - tile.width)
        if not isinstance(rows, int) or rows % tile.height:
            row = at_most(row, rows - tile.height)
        return b.bind(fold(self.low + row), "row"), b.bind(column, "column")

    def __exit__(self, *exc: object) -> None:
        for loop in reversed(self.loops):
            loop.__exit__(*exc)
