"""Values in the layout of the CPU target: time, batch, height, width, channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tvm import relax

from ttsnn.passes.shapes import known_dims, product, same

__all__ = ["Image", "channels_last_value", "rows_shape", "same_arrangement"]

_SPATIAL = {False: {0: 0, 1: 1, 2: 4, 3: 2, 4: 3}, True: {1: 4, 2: 2, 3: 3}}
_ROWS = {False: {0: 0, 1: 1, 2: 4}, True: {1: 4}}


@dataclass(frozen=True)
class Image:
    """A tensor of the program that is held channels last.

    Attributes:
        expr: [P, N, H, W, C]; P is ``steps``, or 1 where the value does not change with time.
        steps: T of the program's tensor.
        folded: whether the program's tensor begins with T·N instead of T, N.
        spatial: whether it ends with C, H, W; else with C alone (*rows*). Rows with a static
            batch are held [P, 1, 1, N, C], as one image whose pixels are the batch, with a
            symbolic one [P, N, 1, 1, C].
    """

    expr: relax.Var
    steps: int
    folded: bool
    spatial: bool

    @property
    def sizes(self) -> list:
        """P, N, H, W, C, where of rows N is the batch and H = W = 1."""
        p, n, h, w, c = known_dims(self.expr)
        if self.spatial:
            return [p, n, h, w, c]
        return [p, product([n, h, w]), 1, 1, c]

    @property
    def logical(self) -> list:
        """Shape of the program's tensor."""
        _, n, h, w, c = self.sizes
        lead = [product([self.steps, n])] if self.folded else [self.steps, n]
        return [*lead, c, h, w] if self.spatial else [*lead, c]

    @property
    def repeated(self) -> bool:
        """Whether one value stands for all timesteps of several."""
        return self.steps > 1 and self.sizes[0] == 1

    def axis(self, logical_axis: int) -> int | None:
        """Axis of ``expr`` for an axis of the program's tensor; None for a folded one, or where
        the two have no common axis (the batch of rows)."""
        table = (_SPATIAL if self.spatial else _ROWS)[self.folded]
        found = table.get(logical_axis % len(self.logical))
        return None if found == 1 and not self.spatial else found

    def like(self, expr: relax.Var) -> Image:
        """The same arrangement with another value."""
        return replace(self, expr=expr)


def rows_shape(steps: object, batch: object, channels: object) -> list:
    """Shape of ``expr`` for rows [T, N, C]."""
    middle = [1, 1, batch] if isinstance(batch, int) else [batch, 1, 1]
    return [steps, *middle, channels]


def channels_last_value(value: np.ndarray, image: Image) -> np.ndarray | None:
    """A constant that broadcasts with the program's tensor, arranged to broadcast with ``expr``.

    Leading axes of size 1 are dropped. None where it varies along a folded axis, or along the
    batch of rows.
    """
    rank = len(image.logical)
    if value.ndim > rank:
        return None
    value = value.reshape((1,) * (rank - value.ndim) + value.shape)
    lead = 1 if image.folded else 2
    if any(s != 1 for s in value.shape[: 1 if image.folded else 0]):
        return None
    tail = value.shape[lead:]
    value = value.reshape((1, 1, *tail) if image.folded else value.shape)
    if image.spatial:
        value = value.transpose(0, 1, 3, 4, 2)
    else:
        if value.shape[1] != 1:
            return None
        value = value.reshape(value.shape[0], 1, 1, 1, value.shape[2])
    while value.ndim > 1 and value.shape[0] == 1:
        value = value[0]
    return np.ascontiguousarray(value)


def same_arrangement(a: Image, b: Image) -> bool:
    """Whether elementwise operators can work on the two ``expr`` directly."""
    return (
        a.steps == b.steps
        and a.folded == b.folded
        and a.spatial == b.spatial
        and (a.spatial or same(a.sizes[1], b.sizes[1]))
    )
