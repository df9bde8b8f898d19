"""Dense layers of a program, as planning wants them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm

from ttsnn.errors import PassError
from ttsnn.passes.layer_calls import LayerCall, layer_calls, network_steps, sizes_for_one_sample
from ttsnn.passes.shapes import dims
from ttsnn.plans import LayerInfo
from ttsnn.program import param_names, params_of

__all__ = ["called_each_step", "layer_infos", "runs_per_sample"]


def layer_infos(mod: tvm.IRModule) -> list[LayerInfo]:
    """The convolutions and linear layers of an imported program, in network order.

    Layers are named by their weight's parameter. ``steps`` counts how often one runs for a
    sample: T where it runs on every timestep, folded into the batch or called T times. Tensor
    trains are left out.
    """
    values, names = params_of(mod), param_names(mod)
    return [
        _describe(mod, name, calls, values, names)
        for name, calls in layer_calls(mod).items()
        if calls[0].kind in ("conv2d", "linear")
    ]


def called_each_step(mod: tvm.IRModule) -> list[str]:
    """Names of the layers that the program calls once a timestep, rather than once for all."""
    return [i.name for i in layer_infos(mod) if i.calls > 1 and i.calls == network_steps(mod)]


def _describe(
    mod: tvm.IRModule, name: str, calls: Sequence[LayerCall], values: dict, names: dict
) -> LayerInfo:
    first = calls[0]
    weight = values[names[first.weight]]
    if first.kind == "linear" and not first.transposed:
        weight = weight.T
    runs = [runs_per_sample(mod, c) for c in calls]
    bias = values.get(f"{name}.bias")
    common = {
        "name": name,
        "weight_shape": weight.shape,
        "out_size": runs[0][1],
        "steps": sum(steps for steps, _ in runs),
        "calls": len(calls),
        "bias": 0 if bias is None else int(bias.size),
        "weight": weight,
    }
    if first.kind == "linear":
        return LayerInfo(kind="linear", **common)
    a = first.call.attrs
    top, left, bottom, right = (int(p) for p in a.padding)
    return LayerInfo(
        kind="conv2d",
        strides=(int(a.strides[0]), int(a.strides[1])),
        padding=(top, left, bottom, right),
        dilation=(int(a.dilation[0]), int(a.dilation[1])),
        groups=int(a.groups),
        **common,
    )


def runs_per_sample(mod: tvm.IRModule, call: LayerCall) -> tuple[int, tuple[int, int]]:
    """How many timesteps of one sample a call computes, and the size of one step's output:
    (Hout, Wout), or (1, vectors) for a linear layer.

    Raises:
        PassError: the output does not hold a whole number of steps of the batch.
    """
    batch, evaluate = sizes_for_one_sample(mod)
    shape = dims(call.call)
    if shape is None:
        raise PassError(f"layer {call.name!r}: {call.call.op.name} has no known output shape")
    sizes = [evaluate(s) for s in shape]
    convolution = call.kind.endswith("conv2d")
    lead = math.prod(sizes[:-3] if convolution else sizes[:-1])
    if lead % batch:
        raise PassError(
            f"layer {call.name!r}: {call.call.op.name} runs on {lead} images or vectors, not a "
            f"multiple of the batch {batch}; the first input's axes must be [N, …] or [T, N, …]"
        )
    rows = lead // batch
    if convolution:
        return rows, (sizes[-2], sizes[-1])
    T = network_steps(mod)
    steps = T if T is not None and rows % T == 0 else 1 if T is not None else rows
    return steps, (1, rows // steps)
