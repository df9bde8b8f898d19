"""Collects the instructions and tables of a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ttsnn.accel_target import isa
from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.events import Tag
from ttsnn.accel_target.isa import NONE, Format, Level, Op, UnitKind
from ttsnn.accel_target.program import DramTensor, Program, format_bits, records, units_of

__all__ = ["Builder", "Geometry"]

Geometry = tuple[int, int, tuple[tuple[int, int], ...], int, int, int, int]
"""(stride_h, stride_w, taps, in_h, in_w, out_h, out_w) of a convolution or pool."""


class Builder:
    """Rows of a program's tables; equal rows are stored once."""

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self.bits = format_bits(arch)
        self.units = units_of(arch)
        self.tensors: list[DramTensor] = []
        self.rows: list[tuple] = []
        self._descriptors: dict[tuple, int] = {}
        self._geometry: dict[Geometry, int] = {}
        self._taps: dict[tuple, int] = {}
        self._tap_count = 0
        self._scalars: dict[tuple, int] = {}
        self._tags: dict[Tag, int] = {}

    def tensor(self, tensor: DramTensor) -> int:
        """Number of a new DRAM tensor."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def dram(
        self,
        number: int,
        f: tuple[int, int, int],
        h: tuple[int, int],
        w: tuple[int, int],
        c: tuple[int, int],
    ) -> int:
        """Descriptor of a box in DRAM: frames (first, count, step), else (first, count)."""
        t = self.tensors[number]
        return self._row((isa.DRAM, int(t.format), f[2], number, *t.shape, *f[:2], *h, *w, *c))

    def tile(
        self,
        memory: int,
        fmt: Format,
        address: int,
        size: tuple[int, int, int, int],
        f: tuple[int, int],
        h: tuple[int, int],
        w: tuple[int, int],
        c: tuple[int, int],
    ) -> int:
        """Descriptor of a box in a buffer's allocation of ``size``."""
        return self._row((memory, int(fmt), 1, address, *size, *f, *h, *w, *c))

    def _row(self, row: tuple) -> int:
        return self._descriptors.setdefault(row, len(self._descriptors))

    def geometry(self, g: Geometry) -> int:
        """Row of the geometry table."""
        if g not in self._geometry:
            taps = g[2]
            if taps not in self._taps:
                self._taps[taps] = self._tap_count
                self._tap_count += len(taps)
            self._geometry[g] = len(self._geometry)
        return self._geometry[g]

    def scalars(self, values: Sequence[float]) -> int:
        """Row of the scalar table."""
        row = tuple(float(v) for v in values) + (0.0,) * (8 - len(values))
        return self._scalars.setdefault(row, len(self._scalars))

    def tag(self, tag: Tag) -> int:
        """Row of the tag table."""
        return self._tags.setdefault(tag, len(self._tags))

    def compute(self, cluster: int) -> int:
        """Number of a cluster's compute unit."""
        return int(UnitKind.COMPUTE) + cluster

    def link(self, cluster: int) -> int:
        """Number of a cluster's link unit."""
        return int(UnitKind.COMPUTE) + len(self.arch.clusters) + cluster

    def emit(
        self,
        op: Op,
        unit: int,
        tag: int,
        *,
        dst: int = NONE,
        dst1: int = NONE,
        src0: int = NONE,
        src1: int = NONE,
        src2: int = NONE,
        attr: int = 0,
        flags: int = 0,
    ) -> None:
        """Append an instruction, without dependency bits."""
        self.rows.append(
            (int(op), int(unit), 0, 0, tag, dst, dst1, src0, src1, src2, attr, int(flags))
        )

    def program(self, info: dict[str, Any]) -> Program:
        """What was collected, without dependency bits."""
        geometry, taps = [], np.zeros(self._tap_count, isa.TAP)
        for places, start in self._taps.items():
            taps[start : start + len(places)] = records(places, isa.TAP)
        for sh, sw, places, *sizes in self._geometry:
            geometry.append((sh, sw, self._taps[places], len(places), *sizes))
        return Program(
            arch=self.arch.name,
            fingerprint=self.arch.fingerprint,
            instructions=records(self.rows, isa.INSTRUCTION),
            descriptors=records(list(self._descriptors), isa.DESCRIPTOR),
            geometry=records(geometry, isa.GEOMETRY),
            taps=taps,
            scalars=np.array(list(self._scalars), "<f8").reshape(-1, 8),
            tags=tuple(self._tags),
            units=self.units,
            tensors=tuple(self.tensors),
            info=info,
        )


def capacity(arch: Architecture, cluster: int, level: Level) -> int:
    """Bytes of a buffer."""
    c = arch.clusters[cluster]
    return (c.weight_buffer, c.input_buffer, c.output_buffer)[level]
