"""Which way each product lies on its array: :func:`orient`.

On an array of R × C PEs the operand of the rows is read once for C results, that of the columns
once for R. The wider operand, such as a gradient of 16 bits beside a weight of 8, belongs where it
is read for more results.
"""

from __future__ import annotations

import numpy as np

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.events import event_index
from ttsnn.accel_target.isa import NONE, Flag, Op
from ttsnn.accel_target.program import Program, format_bits
from ttsnn.accel_target.sim.cost import costs

__all__ = ["orient"]

_WORTH = 0.95  # a product that gains less is not turned
_READS = [event_index(f"{buffer}_read") for buffer in ("weight", "input", "output")]


def orient(program: Program, arch: Architecture) -> Program:
    """The program with those products turned that then read fewer bytes.

    Products of operands of a byte or less stay as SCALE-Sim has them. A product that takes longer
    turned is turned only if it saves the larger share of its bytes.

    Args:
        program: without dependency bits.
        arch: the machine.
    """
    table = program.instructions
    bits = np.array(format_bits(arch))
    first, second = (
        bits[program.descriptors["format"][np.where(table[s] == NONE, 0, table[s])]]
        for s in ("src0", "src1")
    )
    computes = (table["op"] == Op.GEMM) | (table["op"] == Op.WGRAD)
    uneven = (first != second) & (np.maximum(first, second) > 8)
    products = np.flatnonzero(computes & uneven)
    straight, turned = table[products], table[products]
    turned["flags"] |= int(Flag.TURNED)
    a, b = (costs(program.with_instructions(t), arch) for t in (straight, turned))
    bytes_a, bytes_b = (c.events[:, _READS].sum(axis=1) for c in (a, b))
    better = bytes_b * np.maximum(b.busy, a.busy) < _WORTH * bytes_a * a.busy
    out = table.copy()
    out["flags"][products[better]] |= int(Flag.TURNED)
    return program.with_instructions(out)
