"""How the CPU passes over images: units of some pixels in parallel, channels in vectors."""

from __future__ import annotations

from contextlib import AbstractContextManager

from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.stream import StreamSums, channel_sums, stream
from ttsnn.passes.tir.body import Body, load
from ttsnn.passes.training_kernels.arrays import WIDE, Arrays, Element, Shape, Terms, Totals

__all__ = ["CpuArrays"]


class CpuArrays(Arrays):
    """:class:`Arrays` of the CPU.

    Args:
        shape, dtype, steps: as there.
        isa: vector width.
        units: parts of the pixels that sums run over in parallel.
    """

    def __init__(self, shape: Shape, dtype: str, isa: Isa, units: int = 1, steps: int = 1) -> None:
        super().__init__(Body(), shape, dtype, steps)
        self.lanes, self.wide_lanes = isa.lanes(dtype), isa.lanes(WIDE)
        self.units = units

    def stream(self, element: Element, sums: StreamSums | None = None) -> None:
        stream(self.b, self.pixels, self.channels, self.lanes, element, sums)

    def sums(self, count: int) -> StreamSums:
        return StreamSums(self.b, self.pixels, self.channels, self.wide_lanes, count)

    def channel_sums(self, terms: Terms, count: int) -> Totals:
        partial, parts = channel_sums(
            self.b, self.pixels, self.channels, self.units, self.wide_lanes, terms, count
        )
        return _Parts(self.channels, partial, parts, count)

    def each_channel(self, totals: object) -> AbstractContextManager[Expr]:
        return self.b.loop(self.channels, "c")


class _Parts(Totals):
    """Sums over parts of the pixels, [parts, count, channels]."""

    def __init__(self, channels: int, partial: Var, parts: int, count: int) -> None:
        self.channels, self.partial, self.parts, self.count = channels, partial, parts, count

    def total(self, which: int, channel: Expr) -> Expr:
        at = which * self.channels + channel
        total = load(self.partial, at)
        for part in range(1, self.parts):
            total = total + load(self.partial, at + part * self.count * self.channels)
        return total
