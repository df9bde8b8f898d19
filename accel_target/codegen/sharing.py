"""Tiles that two operands of a nest have in common: :func:`share_weights`, :func:`take_over`.

Both are for nests whose clusters are one array, or one cluster: a tile may lie anywhere.
"""

from __future__ import annotations

from ttsnn.accel_target.codegen.nest import Nest, Step
from ttsnn.accel_target.codegen.tiling import uses
from ttsnn.accel_target.isa import Op

__all__ = ["share_weights", "take_over"]

_POINTWISE = (Op.VEC, Op.BN_APPLY, Op.BN_GRAD, Op.LIFB)


def share_weights(nest: Nest) -> None:
    """Weights that are read as images too have one tile: that of the image.

    The nest has one frame, so that the image's blocks are the weight's.
    """
    loaded = {v.load.tensor: v for v in nest.values() if v.load is not None}
    group = {id(v): s.group for s in nest.steps for v in s.ins}
    for p, steps in uses(nest).items():
        v = loaded.get(p.loads[0].tensor) if len(p.loads) == 1 else None
        if (
            v is not None
            and v.grouped
            and p.shape == (v.height, v.width, v.channels)
            and all(s.group == group.get(id(v)) and axis == "c" for s, axis in steps)
        ):
            p.value = v


def take_over(nest: Nest) -> None:
    """A pointwise result takes over the tile of an operand that nothing reads any more."""
    last: dict[int, Step] = {}
    for s in nest.steps:
        last |= dict.fromkeys(map(id, (*s.ins, *(t.x for t in s.terms))), s)
    made = {id(v) for s in nest.steps for v in s.outs}
    for s in nest.steps:
        if s.op not in _POINTWISE or s.group is None or len(s.outs) != 1 or s.geometry is not None:
            continue
        (y,) = s.outs
        for x in s.ins:
            if (
                last[id(x)] is s
                and id(x) in made
                and x.store is None
                and x.grouped
                and y.grouped
                and x is not y
                and (x.format, x.height, x.width, x.channels, x.frames)
                == (y.format, y.height, y.width, y.channels, y.frames)
            ):
                y.over = x
                break
