"""``relax.snn.layer``: a chain of tap convolutions, bias, residual and LIF as one kernel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NoReturn

import tvm
from tvm import relax, tirx

from ttsnn.errors import PassError
from ttsnn.ops.registry import make_call, register_attr, register_op
from ttsnn.ops.types import as_int, differ, dims, known_dims, shape_text
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.layers.reference import reference_layer
from ttsnn.passes.layers.signature import TILES_ATTR, operand_shapes, result_shapes

__all__ = ["OP", "layer_call", "layer_config_of"]

OP = "relax.snn.layer"


def layer_config_of(call: tvm.ir.Call) -> LayerConfig:
    """The config that a call of ``relax.snn.layer`` carries."""
    return LayerConfig.from_json(str(call.attrs["config"]))


def layer_call(
    config: LayerConfig, operands: Sequence[relax.Expr], tiles: str | None = None
) -> tvm.ir.Call:
    """A call of ``relax.snn.layer``.

    Args:
        config: what the layer computes.
        operands: x [x_T, N, H, W, C] (uint8 with ``byte_x``), weights of ``stages``, of
            ``half_stages``, then bias [Cout], residual [residual_T, N, Ho, Wo, Cout] and v0
            [N, Ho, Wo, Cout] where ``config`` has them. Weights are [taps, Cin, Cout], or flat
            where packed.
        tiles: those of the CPU's kernel, as JSON; None leaves them to the schedule rule.

    Raises:
        PassError: if config and operands do not fit together.
    """
    _check(config)
    attrs = {"config": config.to_json()}
    if tiles is not None:
        attrs["tiles"] = tiles
    return make_call(OP, operands, attrs)


def _fail(config: LayerConfig, message: str) -> NoReturn:
    raise PassError(f"{OP} ({config.name}): {message}")


def _check(config: LayerConfig) -> None:
    """Refuse a config that contradicts itself."""
    if not config.stages or not config.emit:
        _fail(config, "needs a stage and something to emit")
    if config.half_stages and not 0 <= config.timesteps <= config.T:
        _fail(config, f"timesteps {config.timesteps} out of 0…{config.T}")
    if not config.half_stages and config.timesteps != config.T:
        _fail(config, f"timesteps {config.timesteps} must be T = {config.T} without half_stages")
    if {config.x_T, config.residual_T} - {1, config.T}:
        _fail(config, f"x_T and residual_T must be 1 or T = {config.T}")
    if config.lif is None and (config.v0 or set(config.emit) != {"membrane"}):
        _fail(config, "without a neuron it takes no v0 and emits its membrane only")
    if set(config.emit) - {"membrane", "spikes", "v_last"} or len(set(config.emit)) < len(
        config.emit
    ):
        _fail(config, f"cannot emit {config.emit}")
    ends = {(c[0].in_size, c[0].in_channels) for c in (config.stages, config.half_stages) if c}
    outs = {(c[-1].out_size, c[-1].out_channels) for c in (config.stages, config.half_stages) if c}
    if len(ends) > 1 or len(outs) > 1:
        _fail(config, "stages and half_stages must have the same input and output")
    for chain in (config.stages, config.half_stages):
        for a, b in itertools.pairwise(chain):
            if (a.out_size, a.out_channels) != (b.in_size, b.in_channels):
                _fail(config, f"stage {b} does not take what {a} gives")


def _infer(call: tvm.ir.Call, _: relax.BlockBuilder) -> tvm.ir.Type:
    config = layer_config_of(call)
    _check(config)
    types = [arg.ty for arg in call.args]
    if not types or not all(isinstance(ty, relax.TensorType) for ty in types):
        _fail(config, "all operands must be tensors")
    x = dims(types[0])
    if x is None or len(x) != 5:
        _fail(config, f"x must be [T, N, H, W, C], got {shape_text(types[0])}")
    expected = operand_shapes(config, x[1])
    if len(types) != len(expected):
        names = ", ".join(name for name, _ in expected)
        _fail(config, f"takes {len(expected)} operands ({names}), got {len(types)}")
    for (name, shape), ty in zip(expected, types):
        got = dims(ty)
        if got is None or len(got) != len(shape) or any(map(differ, shape, got)):
            _fail(config, f"{name} must be {shape_text(shape)}, got {shape_text(ty)}")
        if str(ty.dtype) != config.dtype_of(name):
            _fail(config, f"{name} must be {config.dtype_of(name)}, got {ty.dtype}")
    out = _result_types(config, x[1])
    return out[0] if len(out) == 1 else relax.TupleType(out)


def _result_types(config: LayerConfig, batch: int | tirx.Expr) -> list[relax.TensorType]:
    return [
        relax.TensorType(shape, config.dtype_of(name))
        for name, shape in result_shapes(config, batch)
    ]


def _legalize(builder: relax.BlockBuilder, call: tvm.ir.Call) -> tvm.ir.Call:
    config = layer_config_of(call)
    batch = known_dims(OP, "x", call.args[0].ty)[1]
    name = "layer_" + "".join(c if c.isalnum() else "_" for c in config.name)
    func = reference_layer(config, as_int(batch), name).without_attr("global_symbol")
    if "tiles" in call.attrs:
        func = func.with_attr(TILES_ATTR, call.attrs["tiles"])
    out = _result_types(config, batch)
    gvar = builder.add_func(func, name)
    return relax.call_tir(gvar, relax.Tuple(call.args), out[0] if len(out) == 1 else out)


register_op(OP, _infer, ["x", "operands…"], "Chain of tap convolutions, bias, residual, LIF.")
register_attr(OP, "FLegalize", _legalize)
