"""Parameters and FLOPs of a program by the counting rule of :mod:`ttsnn.plans.counting`."""

from __future__ import annotations

import math
from typing import Any

import tvm

from ttsnn.ops import tt_conv_attrs_of
from ttsnn.passes.layer_calls import LayerCall, layer_calls
from ttsnn.passes.layer_infos import layer_infos, runs_per_sample
from ttsnn.passes.static_values import static_shape
from ttsnn.plans import LayerCost, LayerInfo, NetworkCost, TTLayer, layer_cost
from ttsnn.program import params_of

__all__ = ["count"]


def count(mod: tvm.IRModule) -> NetworkCost:
    """Counts of a program, decomposed or not, layer by layer in network order.

    A tensor train's dense counts are those of the layer that it stands for. Call it before
    passes that fold batch norms or merge cores, since those change the parameters.
    """
    dense = {info.name: info for info in layer_infos(mod)}
    costs: list[LayerCost] = []
    for name, calls in layer_calls(mod).items():
        if name in dense:
            costs.append(layer_cost(dense[name]))
        else:
            costs.append(layer_cost(*_tensor_train(mod, name, calls)))
    return NetworkCost(tuple(costs))


def _tensor_train(
    mod: tvm.IRModule, name: str, calls: list[LayerCall]
) -> tuple[LayerInfo, TTLayer]:
    """The dense layer and the plan that a layer's calls stand for."""
    runs = [runs_per_sample(mod, c) for c in calls]
    steps = sum(s for s, _ in runs)
    bias = params_of(mod).get(f"{name}.bias")
    shapes: list[tuple[int, ...]] = [static_shape(a) or () for a in calls[0].call.args[1:]]
    common: dict[str, Any] = {
        "name": name,
        "out_size": runs[0][1],
        "steps": steps,
        "calls": len(calls),
        "bias": 0 if bias is None else int(bias.size),
    }
    if calls[0].kind == "tt.linear":
        m, n = tuple(s[1] for s in shapes), tuple(s[2] for s in shapes)
        layer = TTLayer("linear", "tt", tuple(s[0] for s in shapes[1:]), None, m, n)
        size = (math.prod(m), math.prod(n))
        return LayerInfo(kind="linear", weight_shape=size, **common), layer
    g1, g2, g3, g4 = shapes
    attrs = tt_conv_attrs_of(calls[0].call)
    info = LayerInfo(
        kind="conv2d",
        weight_shape=(g4[0], g1[1], g2[2], g3[2]),
        strides=attrs.strides,
        padding=attrs.padding,
        dilation=attrs.dilation,
        **common,
    )
    full = 0
    for call, (run, _) in zip(calls, runs):
        a = tt_conv_attrs_of(call.call)
        full += run if a.mode != "htt" or a.timesteps < 0 else min(a.timesteps, run)
    mode, timesteps = attrs.mode, None
    if full < steps or mode == "htt":
        mode, timesteps = "htt", full
    return info, TTLayer("conv2d", mode, (g1[0], g2[0], g4[1]), timesteps)
