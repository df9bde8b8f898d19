"""When each instruction runs: queues in order, tokens between them.

An instruction starts when its unit is free, it has been issued (one a cycle, in program order) and
the tokens that it takes were given. So start times are maxima of sums of durations: a shorter
duration never makes a program slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttsnn.accel_target.isa import Op
from ttsnn.accel_target.program import Program
from ttsnn.errors import TargetError

__all__ = ["Schedule", "schedule"]


@dataclass
class Schedule:
    """Times of a program, in cycles.

    Attributes:
        start, end: [instructions]; ``end`` is when the unit is free again.
        busy, stalled: [units].
        cycles: when the last result is there.
    """

    start: np.ndarray
    end: np.ndarray
    busy: np.ndarray
    stalled: np.ndarray
    cycles: int


def schedule(program: Program, busy: np.ndarray, latency: np.ndarray) -> Schedule:
    """Times of all instructions.

    Args:
        program: its units and tokens.
        busy, latency: cycles of each instruction.

    Raises:
        TargetError: a deadlock, naming the blocked instructions; or tokens that nobody took.
    """
    table = program.instructions
    n, units = len(table), len(program.units)
    queues: list[list[int]] = [[] for _ in range(units)]
    for i, u in enumerate(table["unit"].tolist()):
        queues[u].append(i)
    pops = [_bits(m, units) for m in table["pop"].tolist()]
    pushes = [_bits(m, units) for m in table["push"].tolist()]
    last, delay = busy.tolist(), latency.tolist()
    given: list[list[list[int]]] = [[[] for _ in range(units)] for _ in range(units)]
    taken = [[0] * units for _ in range(units)]
    start, end = [0] * n, [0] * n
    at, free, stalled = [0] * units, [0] * units, [0] * units
    left, moved = n, True
    while left and moved:
        moved = False
        for u in range(units):
            queue, k = queues[u], at[u]
            while k < len(queue):
                i = queue[k]
                ready = free[u]
                begin = i if i > ready else ready
                for p in pops[i]:
                    tokens = given[p][u]
                    if taken[p][u] >= len(tokens):
                        break
                    if tokens[taken[p][u]] > begin:
                        begin = tokens[taken[p][u]]
                else:
                    for p in pops[i]:
                        taken[p][u] += 1
                    stalled[u] += begin - ready
                    start[i] = begin
                    free[u] = end[i] = begin + last[i]
                    seen = end[i] + delay[i]
                    for p in pushes[i]:
                        given[u][p].append(seen)
                    k += 1
                    left -= 1
                    moved = True
                    continue
                break
            at[u] = k
    if left:
        raise _deadlock(program, queues, at, pops, given, taken)
    over = [
        f"{program.units[a].name} to {program.units[b].name}"
        for a in range(units)
        for b in range(units)
        if len(given[a][b]) != taken[a][b]
    ]
    if over:
        raise TargetError(f"tokens are left at the end of the program: {', '.join(over)}")
    done = max((e + d for e, d in zip(end, delay)), default=0)
    work = np.bincount(table["unit"], weights=busy, minlength=units)[:units]
    return Schedule(
        np.array(start, np.int64),
        np.array(end, np.int64),
        work.astype(np.int64),
        np.array(stalled, np.int64),
        int(done),
    )


def _bits(mask: int, units: int) -> list[int]:
    return [u for u in range(units) if mask >> u & 1] if mask else []


def _deadlock(program: Program, queues, at, pops, given, taken) -> TargetError:
    lines = []
    for u, (queue, k) in enumerate(zip(queues, at)):
        if k < len(queue):
            i = queue[k]
            waits = [program.units[p].name for p in pops[i] if taken[p][u] >= len(given[p][u])]
            op = program.instructions["op"][i]
            name = Op(op).name if op in set(Op) else str(op)
            lines.append(f"{i} ({name} on {program.units[u].name}, waits for {', '.join(waits)})")
    return TargetError("deadlock: the program stops at instruction " + "; ".join(lines))
