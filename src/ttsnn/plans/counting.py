"""Parameters and FLOPs of a network and of its plan, counted from shapes alone.

The rule: parameters are the weights and biases of convolutions and linear layers (batch norm
is not counted). FLOPs are multiply-accumulates of one sample over all timesteps; all cores of a
TT convolution count at its output resolution, ``(Cin·r1 + Kh·r1·r2 + Kw·r2·r3 + r3·Cout) ·
Hout · Wout`` a step, and htt's other steps ``(Cin·r + r·Cout) · Hout · Wout``. Layers that run
once per sample, such as a classifier behind the mean over time, count once. What the compiler
executes is less in places (merged branches, hoisted stem) and is reported by the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ttsnn.plans.info import LayerInfo
from ttsnn.plans.plan import TTLayer, TTPlan
from ttsnn.tt import check_mode, conv_core_shapes, linear_core_shapes

__all__ = ["LayerCost", "NetworkCost", "layer_cost", "network_cost"]


@dataclass(frozen=True)
class LayerCost:
    """Counts of one layer as it is in the dense network and in the plan (equal if dense).

    FLOPs are multiply-accumulates per sample over all timesteps.
    """

    info: LayerInfo
    layer: TTLayer | None
    dense_params: int
    dense_flops: int
    params: int
    flops: int


@dataclass(frozen=True)
class NetworkCost:
    """Counts of a network, layer by layer in network order."""

    layers: tuple[LayerCost, ...]

    @property
    def dense_params(self) -> int:
        """Parameters of the dense network."""
        return sum(c.dense_params for c in self.layers)

    @property
    def dense_flops(self) -> int:
        """FLOPs of the dense network."""
        return sum(c.dense_flops for c in self.layers)

    @property
    def params(self) -> int:
        """Parameters with the plan."""
        return sum(c.params for c in self.layers)

    @property
    def flops(self) -> int:
        """FLOPs with the plan."""
        return sum(c.flops for c in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Totals and their ratios dense / TT, rounded to two digits."""
        return {
            "dense": {"params": self.dense_params, "flops": self.dense_flops},
            "tt": {"params": self.params, "flops": self.flops},
            "ratio": {
                "params": round(self.dense_params / max(self.params, 1), 2),
                "flops": round(self.dense_flops / max(self.flops, 1), 2),
            },
        }


def layer_cost(info: LayerInfo, layer: TTLayer | None = None) -> LayerCost:
    """Counts of one layer; ``layer`` None keeps it dense."""
    weight = math.prod(info.weight_shape)
    positions = math.prod(info.out_size)
    dense = weight + info.bias, weight * positions * info.steps
    if layer is None:
        return LayerCost(info, None, *dense, *dense)
    if layer.kind == "conv2d":
        shapes = conv_core_shapes(info.weight_shape, check_mode(layer.mode), layer.ranks)
        sizes = [math.prod(s) for s in shapes]
        full = info.steps if layer.timesteps is None else min(layer.timesteps, info.steps)
        macs = full * sum(sizes) + (info.steps - full) * (sizes[0] + sizes[3])
    else:
        cores = linear_core_shapes(layer.out_factors, layer.in_factors, layer.ranks)
        sizes = [math.prod(s) for s in cores]
        macs = info.steps * sum(
            size * math.prod(layer.out_factors[:k]) * math.prod(layer.in_factors[k + 1 :])
            for k, size in enumerate(sizes)
        )
    return LayerCost(info, layer, *dense, sum(sizes) + info.bias, macs * positions)


def network_cost(infos: Sequence[LayerInfo], plan: TTPlan | None = None) -> NetworkCost:
    """Counts of all layers; those that the plan does not name are dense."""
    layers = {} if plan is None else plan.layers
    return NetworkCost(tuple(layer_cost(i, layers.get(i.name)) for i in infos))
