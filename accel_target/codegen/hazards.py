"""Dependences between instructions, and the tokens that enforce them.

Two instructions on different units conflict where one writes bytes that the other reads or writes.
Units work in order, so an instruction needs to wait for at most one instruction of each other
unit, the last that conflicts; and not at all where what it has waited for already implies it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ttsnn.accel_target.isa import DRAM, NONE, Flag, Op
from ttsnn.accel_target.program import Program

__all__ = ["BLOCK", "Conflicts", "assign_tokens"]

BLOCK = 64
"""Bytes of a buffer that are tracked together; allocations begin at multiples of it."""

_WRITES = ("dst", "dst1")
_READS = ("src0", "src1", "src2")
_ACCUMULATE = {Op.WGRAD, Op.BN_SUMS}


class Conflicts:
    """Walks a program and says, before each instruction, which it must wait for.

    Args:
        program: the program.
        bits: bits of each format.
    """

    def __init__(self, program: Program, bits: tuple[int, ...]) -> None:
        self.units = len(program.units)
        self._ranges = _ranges(program, bits)
        blocks = [0] * 256
        for memory, spans, *_ in self._ranges:
            for _, stop in spans:
                blocks[memory] = max(blocks[memory], stop)
        tensor_rows = [max(t.shape[1], 1) for t in program.tensors]
        self._offset = np.cumsum([0, *tensor_rows]).tolist()
        sizes = {DRAM: self._offset[-1]} | {m: b for m, b in enumerate(blocks) if m and b}
        self._wrote = {m: np.full((self.units, n), -1, np.int32) for m, n in sizes.items()}
        self._read = {m: np.full((self.units, n), -1, np.int32) for m, n in sizes.items()}

    def _spans(self, operand: int) -> Iterator[tuple[int, int, int]]:
        memory, spans, tensor = self._ranges[operand]
        base = self._offset[tensor] if memory == DRAM else 0
        for start, stop in spans:
            yield memory, base + start, base + stop

    def step(self, position: int, unit: int, reads: list[int], writes: list[int]) -> np.ndarray:
        """Last conflicting position on each unit (-1: none); records the accesses.

        Args:
            position: of the instruction in program order.
            unit: its unit.
            reads, writes: descriptors.
        """
        need = np.full(self.units, -1, np.int32)
        for operand in reads:
            for m, a, b in self._spans(operand):
                np.maximum(need, self._wrote[m][:, a:b].max(1), out=need)
        for operand in writes:
            for m, a, b in self._spans(operand):
                np.maximum(need, self._wrote[m][:, a:b].max(1), out=need)
                np.maximum(need, self._read[m][:, a:b].max(1), out=need)
        for operand in reads:
            for m, a, b in self._spans(operand):
                self._read[m][unit, a:b] = position
        for operand in writes:
            for m, a, b in self._spans(operand):
                self._wrote[m][unit, a:b] = position
        return need


def accesses(row: tuple) -> tuple[list[int], list[int]]:
    """Descriptors that an instruction reads and writes."""
    op, flags = row[0], row[11]
    writes = [v for v in row[5:7] if v != NONE]
    reads = [v for v in row[7:10] if v != NONE]
    if writes and (flags & Flag.ACC or op in _ACCUMULATE):
        reads.append(writes[0])
    return reads, writes


def _ranges(program: Program, bits: tuple[int, ...]) -> list[tuple[int, list, int]]:
    """For each descriptor its memory, its spans of blocks (DRAM: rows), and tensor."""
    out = []
    for row in program.descriptors.tolist():
        memory, fmt, _, address, frames, rows, width, channels = row[:8]
        h0, h = row[10], row[11]
        if memory == DRAM:
            out.append((memory, [(h0, h0 + h)], address))
            continue
        row_bits = frames * width * channels * bits[fmt] if fmt < len(bits) else 0
        spans = []
        first, count = (h0 % rows, min(h, rows)) if rows else (0, 0)
        for a, b in ((first, min(first + count, rows)), (0, first + count - rows)):
            if b > a:
                start = address + a * row_bits // 8
                stop = address + -(-b * row_bits // 8)
                spans.append((start // BLOCK, -(-stop // BLOCK)))
        out.append((memory, spans, 0))
    return out


def assign_tokens(program: Program, bits: tuple[int, ...]) -> Program:
    """The program with the fewest tokens that make every conflict wait.

    Args:
        program: instructions in an order in which they may run one after the other.
        bits: bits of each format.
    """
    conflicts = Conflicts(program, bits)
    table = program.instructions.copy()
    units, n = len(program.units), len(table)
    pop, push = [0] * n, [0] * n
    known = np.full((n, units), -1, np.int32)  # positions that each instruction implies
    last = [-1] * units
    for i, row in enumerate(table.tolist()):
        unit = row[1]
        need = conflicts.step(i, unit, *accesses(row))
        have = known[i]
        if last[unit] >= 0:
            have[:] = known[last[unit]]
        need[unit] = -1
        for u in np.argsort(-need).tolist():
            j = int(need[u])
            if j <= have[u]:
                continue
            # a token names a unit, not an instruction: the k-th taken is the k-th given
            pop[i] |= 1 << u
            push[j] |= 1 << unit
            np.maximum(have, known[j], out=have)
            have[u] = max(have[u], j)
        have[unit] = i
        last[unit] = i
    table["pop"], table["push"] = pop, push
    return program.with_instructions(table)
