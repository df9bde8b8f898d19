"""Where in one block of memory tensors lie that live at known times.

The greedy heuristics of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
Inference" (2020): each tensor goes to the smallest gap that is free over its whole life.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ALIGNMENT", "Life", "arena"]

ALIGNMENT = 64
"""Bytes to which every tensor is aligned."""


@dataclass(frozen=True)
class Life:
    """A tensor's bytes, and the first and last step that touch it."""

    nbytes: int
    first: int
    last: int


def arena(lives: Sequence[Life]) -> tuple[list[int], int]:
    """Offset of each tensor, and the size of the whole, in bytes.

    Tensors of which one step touches both never share a byte. Of the two orders, largest first
    and first come first, the one that needs less.
    """
    by_size = sorted(range(len(lives)), key=lambda i: (-lives[i].nbytes, lives[i].first))
    by_time = sorted(range(len(lives)), key=lambda i: (lives[i].first, -lives[i].nbytes))
    return min((_placed(lives, order) for order in (by_size, by_time)), key=lambda found: found[1])


def _placed(lives: Sequence[Life], order: Sequence[int]) -> tuple[list[int], int]:
    """Each tensor in turn in the smallest gap between those that are there."""
    offsets = [0] * len(lives)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last; by offset
    for i in order:
        life = lives[i]
        size = -(-max(life.nbytes, 1) // ALIGNMENT) * ALIGNMENT
        at, best, gap = 0, None, 0
        for start, end, first, last in placed:
            if first > life.last or last < life.first:
                continue
            if start - at >= size and (best is None or start - at < gap):
                best, gap = at, start - at
            at = max(at, end)
        offsets[i] = at if best is None else best
        bisect.insort(placed, (offsets[i], offsets[i] + size, life.first, life.last))
    return offsets, max((end for _, end, _, _ in placed), default=0)
