"""Which small steps of a program can be done at the same time, and when."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Step", "batches"]

Step = list[int]
"""Steps of the program that are done together."""


def batches(reads: Sequence[Sequence[int]], movable: Sequence[bool]) -> list[Step]:
    """The program's steps in another order, movable ones together where that saves waiting.

    The others keep their order, each alone. Where some movable step has to be done, because the
    next step reads it, those join that can be done by then and make nothing wait longer. So
    values are made as late as possible, or earlier at no cost.

    Args:
        reads: for each step, the earlier steps that it reads.
        movable: for each step, whether it may be done at another time.

    Returns:
        All steps, in order, as groups whose members do not depend on each other.
    """
    count = len(reads)
    place = [0] * count
    """How many steps that stay come before: of a movable one, those that it has to wait for."""
    stay = [i for i in range(count) if not movable[i]]
    for position, i in enumerate(stay):
        place[i] = position
    for i in range(count):
        if movable[i]:
            place[i] = max((place[j] + (not movable[j]) for j in reads[i]), default=0)
    last = [len(stay)] * count
    for i in reversed(range(count)):
        for j in reads[i]:
            last[j] = min(last[j], last[i] if movable[i] else place[i])

    out: list[Step] = []
    done: set[int] = set()
    waiting = [i for i in range(count) if movable[i]]
    for position in range(len(stay) + 1):
        due = [i for i in waiting if last[i] == position]
        depth: dict[int, int] = {}
        for i in due:
            depth[i] = _depth(i, reads, depth)
        most = max(depth.values(), default=-1)
        for i in waiting:
            ready = place[i] <= position and all(
                j in done or j in depth for j in reads[i] if movable[j]
            )
            if i not in depth and ready and _depth(i, reads, depth) <= most:
                depth[i] = _depth(i, reads, depth)
        out += [sorted(i for i, d in depth.items() if d == level) for level in range(most + 1)]
        done |= depth.keys()
        waiting = [i for i in waiting if i not in depth]
        if position < len(stay):
            out.append([stay[position]])
    return out


def _depth(i: int, reads: Sequence[Sequence[int]], depth: dict[int, int]) -> int:
    """How many groups of the same moment come before step ``i``."""
    return max((depth[j] + 1 for j in reads[i] if j in depth), default=0)
