"""Many tiles at once: a tile whose attributes are arrays, so that its formulas hold for each.

A dataclass of integers stands for one tile, or for many where some of its attributes are arrays
[tiles]; type annotations say ``int`` for both. A tile is chosen out of thousands, which takes a
few milliseconds this way, and ten times as many for one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Tile = TypeVar("Tile", bound=DataclassInstance)

__all__ = ["at", "axes", "ceil_div", "combined", "larger", "least"]


def _arrays(tile: DataclassInstance) -> dict[str, np.ndarray]:
    values = {f.name: getattr(tile, f.name) for f in fields(tile)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def axes(*values: Iterable[int]) -> tuple[Any, ...]:
    """Each of the lists along an axis of its own."""
    return np.ix_(*(np.array(list(v), np.int64) for v in values))


def at(tiles: Tile, index: Any) -> Tile:
    """Those at an index of NumPy: a mask, or one that adds axes for :func:`combined`."""
    return replace(tiles, **{name: value[index] for name, value in _arrays(tiles).items()})


def combined(tiles: Tile) -> Tile:
    """Arrays [tiles] from attributes that lie along different axes: each with each."""
    arrays = _arrays(tiles)
    spread = np.broadcast_arrays(*arrays.values())
    return replace(tiles, **{n: a.ravel() for n, a in zip(arrays, spread, strict=True)})


def least(tiles: Tile, cost: Any) -> Tile:
    """The tile that costs least, the first of several."""
    best = int(np.argmin(cost))
    return replace(tiles, **{name: int(value[best]) for name, value in _arrays(tiles).items()})


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up; of integers or arrays."""
    return -(-a // b)


def larger(a: int, b: int) -> int:
    """Of two integers, or for each of two arrays."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else np.maximum(a, b)
