"""Four equal clusters that work as one array of twice the rows and twice the columns.

The clusters stand in a square: a b over c d, with links along its four sides. An operand of a row
is for the two clusters of its row, one of a column for the two of its column: it is read from its
buffer once, and goes on through links. On average an operand crosses 1½ links (from a: to a and b
one, to c and d two; half of them take each way), a result one on its way to its buffer. At most
half of all bytes cross any one link.
"""

from __future__ import annotations

from ttsnn.accel_target.arch import Architecture

__all__ = ["OPERAND_HOPS", "RESULT_HOPS", "SIDE", "can_lockstep", "ring_width"]

SIDE = 2
"""Clusters along each side of the square."""
OPERAND_HOPS = 1.5
RESULT_HOPS = 1.0
_RING = ((0, 1), (0, 2), (1, 3), (2, 3))


def can_lockstep(arch: Architecture) -> bool:
    """Whether an architecture has four clusters of equal arrays, joined in a square."""
    shapes = {(c.rows, c.cols, c.dataflow, c.skip_zeros) for c in arch.clusters}
    return len(arch.clusters) == SIDE * SIDE and len(shapes) == 1 and ring_width(arch) > 0


def ring_width(arch: Architecture) -> int:
    """Bytes a cycle of the narrowest of the square's links; 0 where one is missing."""
    names = [c.name for c in arch.clusters]
    widths = []
    for a, b in _RING:
        for source, destination in ((a, b), (b, a)):
            link = arch.find_link(names[source], names[destination])
            widths.append(link.width if link is not None else 0)
    return min(widths)
