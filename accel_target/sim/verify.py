"""Whether a program's tokens enforce its order: :func:`verify_order`.

Units run at their own pace; only tokens make one wait for another. A program is right in every
timing where each pair of instructions that touch the same bytes, one of them writing, is ordered
by a chain of tokens and queues. That is checked from the finished program, by vector clocks.
"""

from __future__ import annotations

import numpy as np

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.hazards import Conflicts, accesses
from ttsnn.accel_target.isa import Op
from ttsnn.accel_target.program import Program, format_bits
from ttsnn.accel_target.sim.check import check_program
from ttsnn.errors import TargetError

__all__ = ["verify_order"]


def verify_order(program: Program, arch: Architecture) -> int:
    """Check that no two units race for the same bytes.

    Args:
        program: generated for ``arch``.
        arch: the machine.

    Returns:
        How many pairs of instructions were found to be ordered by tokens.

    Raises:
        TargetError: an impossible program, or a race; names both instructions.
    """
    check_program(program, arch)
    table = program.instructions
    units, rows = len(program.units), table.tolist()
    conflicts = Conflicts(program, format_bits(arch))
    given: list[list[list[int]]] = [[[] for _ in range(units)] for _ in range(units)]
    taken = np.zeros((units, units), np.int64)
    clock = np.full((len(rows), units), -1, np.int32)
    last = [-1] * units
    ordered = 0
    for i, row in enumerate(rows):
        unit = row[1]
        if last[unit] >= 0:
            clock[i] = clock[last[unit]]
        for p in range(units):
            if not row[2] >> p & 1:
                continue
            tokens = given[p][unit]
            if taken[p, unit] >= len(tokens):
                raise TargetError(
                    f"{_name(program, i)} takes a token from {program.units[p].name} that no "
                    "instruction before it gives"
                )
            giver = tokens[taken[p, unit]]
            taken[p, unit] += 1
            np.maximum(clock[i], clock[giver], out=clock[i])
        clock[i, unit] = i
        need = conflicts.step(i, unit, *accesses(row))
        need[unit] = -1
        late = np.flatnonzero(need > clock[i])
        if len(late):
            other = int(need[late[0]])
            raise TargetError(
                f"race: {_name(program, i)} touches what {_name(program, other)} still may be "
                "using; no token makes it wait"
            )
        ordered += int((need >= 0).sum())
        for p in range(units):
            if row[3] >> p & 1:
                given[unit][p].append(i)
        last[unit] = i
    return ordered


def _name(program: Program, i: int) -> str:
    row = program.instructions[i]
    return f"instruction {i} ({Op(int(row['op'])).name} on {program.units[row['unit']].name})"
