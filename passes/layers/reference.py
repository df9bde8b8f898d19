"""A layer as plain loops: slow, obviously right, for any CPU; the schedule rule replaces it."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import panels
from ttsnn.passes.layers.signature import CONFIG_ATTR, LayerParams, layer_params
from ttsnn.passes.tir.body import Body, flat_index, i64, load, splat
from ttsnn.passes.tir.neuron import lif_step

__all__ = ["reference_layer"]


def reference_layer(config: LayerConfig, batch: int | None, name: str) -> PrimFunc:
    """The function of a layer, one scalar at a time, parallel over images."""
    b = Body()
    p = layer_params(config, batch)
    last = config.stages[-1]
    size = last.out_size[0] * last.out_size[1] * last.out_channels
    with b.loop(p.batch, "n", "parallel") as n:
        membrane = b.alloc(size, config.dtype, "v")
        index = (last.out_size[0], last.out_size[1], last.out_channels)
        with _grid(b, index) as (h, w, c):
            v = load(p.operands["v0"], n, h, w, c) if config.v0 else splat(0.0, config.dtype, 1)
            b.store(membrane, v, flat_index((h, w, c), index))
        for stages, prefix, start, stop in (
            (config.stages, "w", 0, config.timesteps),
            (config.half_stages, "half_w", config.timesteps, config.T),
        ):
            if stop > start:
                with b.loop(stop - start, "t") as step:
                    _timestep(b, config, p, stages, prefix, step + start, n, membrane)
        if "v_last" in config.emit:
            with _grid(b, index) as (h, w, c):
                v = load(membrane, flat_index((h, w, c), index))
                b.store(p.results["v_last"], v, n, h, w, c)
    attrs = {CONFIG_ATTR: config.to_json(), "op_pattern": 8}
    return b.function(p.all, name, attrs)


class _grid:
    """Nested serial loops as one ``with`` block."""

    def __init__(self, body: Body, extents: tuple[int, ...]) -> None:
        self.loops = [body.loop(e, f"i{k}") for k, e in enumerate(extents)]

    def __enter__(self) -> list[Expr]:
        return [loop.__enter__() for loop in self.loops]

    def __exit__(self, *exc: object) -> None:
        for loop in reversed(self.loops):
            loop.__exit__(*exc)


def _weight(config: LayerConfig, stage: Stage, w: Var, k: Expr, ci: Expr, co: Expr) -> Expr:
    """Element (k, ci, co) of a weight, packed or plain."""
    if config.packing is None:
        return load(w, k, ci, co)
    rows = len(stage.taps) * stage.in_channels
    row = k * stage.in_channels + ci
    at: Expr | None = None
    for start, width in reversed(panels(stage.out_channels, *config.packing)):
        here = i64(rows * start) + row * width + (co - start)
        at = here if at is None else tirx.if_then_else(co < start + width, here, at)
    return load(w, at)


def _timestep(
    b: Body,
    config: LayerConfig,
    p: LayerParams,
    stages: tuple[Stage, ...],
    prefix: str,
    t: Expr,
    n: Expr,
    membrane: Var,
) -> None:
    """One step of one image: the chain, then bias, residual and the neuron."""
    dtype = config.dtype
    source = None
    for i, stage in enumerate(stages):
        (hi, wi), (ho, wo) = stage.in_size, stage.out_size
        out = b.alloc(ho * wo * stage.out_channels, dtype, f"y{i}")
        with _grid(b, (ho, wo, stage.out_channels)) as (h, w, co):
            at = flat_index((h, w, co), (ho, wo, stage.out_channels))
            b.store(out, splat(0.0, dtype, 1), at)
            for k, (dh, dw) in enumerate(stage.taps):
                y, x = h * stage.strides[0] + dh, w * stage.strides[1] + dw
                inside = tirx.all(y >= 0, y < hi, x >= 0, x < wi)
                with b.when(inside), b.loop(stage.in_channels, "ci") as ci:
                    if source is None:
                        value = load(p.operands["x"], t if config.x_T > 1 else 0, n, y, x, ci)
                        value = tirx.Cast(dtype, value) if config.byte_x else value
                    else:
                        value = load(source, flat_index((y, x, ci), (hi, wi, stage.in_channels)))
                    weight = _weight(config, stage, p.operands[f"{prefix}{i}"], i64(k), ci, co)
                    b.store(out, load(out, at) + value * weight, at)
        source = out
    last = stages[-1]
    shape = (*last.out_size, last.out_channels)
    with _grid(b, shape) as (h, w, c):
        at = flat_index((h, w, c), shape)
        value = load(source, at)
        if config.bias:
            value = value + load(p.operands["bias"], c)
        if config.residual:
            tr = t if config.residual_T > 1 else 0
            value = value + load(p.operands["residual"], tr, n, h, w, c)
        value = b.bind(value, "m")
        if "membrane" in config.emit:
            b.store(p.results["membrane"], value, t, n, h, w, c)
        if config.lif is not None:
            v = b.bind(load(membrane, at), "v_before")
            spikes, after = lif_step(config.lif, value, v, dtype, 1)
            if "spikes" in config.emit:
                spikes = spikes.astype(config.dtype_of("spikes"))
                b.store(p.results["spikes"], spikes, t, n, h, w, c)
            b.store(membrane, after, at)
