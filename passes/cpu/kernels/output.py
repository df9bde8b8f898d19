"""The last stage of a layer's kernel: residual, neuron and stores beside its sums."""

from __future__ import annotations

from tvm.ir import Expr

from ttsnn.passes.cpu.kernels.register_tile import Point, RegisterTile, chunks
from ttsnn.passes.cpu.kernels.stage import StageCall, accumulate, panel_loops
from ttsnn.passes.cpu.kernels.unit import Unit
from ttsnn.passes.tir.body import as_vector, i64, load, splat, vector
from ttsnn.passes.tir.neuron import lif_step

__all__ = ["last_stage", "load_state", "store_state"]


def last_stage(u: Unit, call: StageCall, t0: Expr, steps: int, index: Expr) -> None:
    """The stage whose sums get bias, residual and neuron."""
    b, config, tile = u.body, u.config, call.tile
    same = config.x_T == 1

    def emit(panel: tuple[int, int], i: Expr, row: Expr, column: Expr) -> None:
        start, width = panel
        vectors = chunks(min(width, u.channels - start), u.lanes)
        pixel = (row * u.width + column) * u.channels + start + i * width
        pixel = b.bind(pixel, "pixel")
        v = None
        if config.lif is not None:
            v = RegisterTile(b, config.dtype, (1, tile.height, tile.width), vectors, "v")
        count = 1 if same else u.tiles.time_block // tile.time
        if v is not None and count > 1:
            _load_membrane(u, v, pixel, index)
        with b.loop(count, "t") as t:
            step = 0 if same else t * tile.time
            acc = accumulate(u, call, panel, i, step, row, column, vectors)
            if v is not None and count == 1:
                # not before the sums need the registers
                _load_membrane(u, v, pixel, index)
            with b.loop(steps if same else 1, "t") as s:
                _finish(u, acc, v, t0 + step + s, pixel)
        if v is not None:
            _store_membrane(u, v, pixel, index)

    panel_loops(u, call, i64(0), i64(u.tiles.strip_rows), emit, exact=True)


def _near(u: Unit, pixel: Point, c: int) -> Expr:
    """Distance of channel ``c`` of a tile's pixel from the tile's first element."""
    return (pixel[1] * u.width + pixel[2]) * u.channels + c


def _load_membrane(u: Unit, v: RegisterTile, pixel: Expr, index: Expr) -> None:
    if u.state is not None:
        source, base = u.state, (index % 2) * u.strip + pixel
    elif u.config.v0:
        source, base = u.flat["v0"], u.image_base(None, u.h0) + pixel
    else:
        v.start()
        return
    with v.pixels() as near:
        for c, n in v.vectors:
            v.set(load(source, vector(base + _near(u, near, c), n)), near, c, n)


def _store_membrane(u: Unit, v: RegisterTile, pixel: Expr, index: Expr) -> None:
    if u.state is not None:
        # the other half: a shifted tile at the edge reads some pixels a second time
        target, base = u.state, ((index + 1) % 2) * u.strip + pixel
    elif "v_last" in u.config.emit:
        target, base = u.flat["v_last"], u.image_base(None, u.h0) + pixel
    else:
        return
    with v.pixels() as near:
        for c, n in v.vectors:
            where = vector(base + _near(u, near, c), n)
            u.body.store(target, v.get(near, c, n), where)


def _finish(u: Unit, acc: RegisterTile, v: RegisterTile | None, t: Expr, pixel: Expr) -> None:
    """Residual, neuron and stores for the timesteps of a register tile."""
    b, config = u.body, u.config
    step = u.batch * (u.height * u.width * u.channels)
    base = b.bind(u.image_base(t, u.h0) + pixel, "out_at")
    side, side_step = base, step
    if config.residual and config.residual_T == 1:
        side, side_step = b.bind(u.image_base(0, u.h0) + pixel, "side_at"), i64(0)
    with acc.pixels() as near:
        for c, n in acc.vectors:
            value = acc.get(near, c, n)
            offset = _near(u, near, c)
            if config.residual:
                at = side + near[0] * side_step + offset
                value = value + load(u.flat["residual"], vector(at, n))
            value = b.bind(value, "m")
            out = base + near[0] * step + offset
            if "membrane" in config.emit:
                b.store(u.flat["membrane"], value, vector(out, n))
            if v is not None:
                _neuron(u, value, v, ((i64(0), *near[1:]), c, n), out)


def _neuron(u: Unit, value: Expr, v: RegisterTile, at: tuple[Point, int, int], out: Expr) -> None:
    """One timestep: spikes to their place, the membrane stays in registers."""
    b, config, lanes = u.body, u.config, at[2]
    assert config.lif is not None  # only a layer with a neuron has membranes
    before = b.bind(v.get(*at), "v_before")
    spikes, after = lif_step(config.lif, value, before, config.dtype, lanes)
    if "spikes" in config.emit:
        spikes = spikes.astype(as_vector(config.dtype_of("spikes"), lanes))
        b.store(u.flat["spikes"], spikes, vector(out, lanes))
    v.set(after, *at)


def load_state(u: Unit) -> None:
    """Start the membranes that are kept between blocks of timesteps: v0, or zeros."""
    b, base = u.body, u.image_base(None, u.h0)
    with b.loop(u.strip // u.channels, "pixel") as i:
        for c, n in chunks(u.channels, u.lanes):
            at = i * u.channels + c
            value = splat(0.0, u.config.dtype, n)
            if u.config.v0:
                value = load(u.flat["v0"], vector(base + at, n))
            b.store(u.state, value, vector(at, n))


def store_state(u: Unit, blocks: int) -> None:
    """Copy the membranes after the last of ``blocks`` blocks to the result v_last."""
    b, base = u.body, u.image_base(None, u.h0)
    with b.loop(u.strip // u.channels, "pixel") as i:
        for c, n in chunks(u.channels, u.lanes):
            at = i * u.channels + c
            value = load(u.state, vector((blocks % 2) * u.strip + at, n))
            b.store(u.flat["v_last"], value, vector(base + at, n))
