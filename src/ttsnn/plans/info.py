"""What planning needs to know of a dense layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ttsnn.errors import PlanError

__all__ = ["Kind", "LayerInfo", "find_layer", "unknown_layer"]

Kind = Literal["conv2d", "linear"]


@dataclass(frozen=True)
class LayerInfo:
    """One dense convolution or linear layer of a network.

    Attributes:
        name: the layer's name in the model, e.g. ``layer1.0.conv1``.
        kind: ``"conv2d"`` or ``"linear"``.
        weight_shape: [Cout, Cin / groups, Kh, Kw], or [out, in].
        out_size: (Hout, Wout); for a linear layer (1, rows) with the number of vectors that it
            maps per sample and step.
        steps: how many times it runs per sample: T where it runs on every timestep, 1 where it
            runs once (e.g. behind the mean over time).
        calls: how many calls of the program use its weight (T where the program loops over
            time, otherwise 1).
        bias: number of bias values, 0 without.
        strides, padding, dilation: as ``relax.tt.conv2d`` (padding top, left, bottom, right).
        groups: of the convolution.
        weight: the dense weight, or None where its values are not at hand.
    """

    name: str
    kind: Kind
    weight_shape: tuple[int, ...]
    out_size: tuple[int, int] = (1, 1)
    steps: int = 1
    calls: int = 1
    bias: int = 0
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weight: NDArray | None = field(default=None, repr=False, compare=False)

    @property
    def pointwise(self) -> bool:
        """Whether it is a 1×1 convolution."""
        return self.kind == "conv2d" and tuple(self.weight_shape[2:]) == (1, 1)

    def values(self) -> NDArray:
        """The weight in float64; PlanError where its values are not at hand."""
        if self.weight is None:
            raise PlanError(
                f"layer {self.name!r}: this rule looks at the weight's values, which are not "
                "known; import the model with its weights, or use a rule such as 'rank=16'"
            )
        return np.asarray(self.weight, dtype=np.float64)


def unknown_layer(name: str, known: Sequence[str], what: str = "the plan") -> PlanError:
    """The error for a layer that the network does not have, with the closest names."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else "see `ttsnn plan --json`"
    return PlanError(f"{what} names layer {name!r}, which this network does not have; {hint}")


def find_layer(infos: Sequence[LayerInfo], name: str, what: str = "the plan") -> LayerInfo:
    """The layer of that name; PlanError with the closest names where there is none."""
    for info in infos:
        if info.name == name:
            return info
    raise unknown_layer(name, [i.name for i in infos], what)
