"""Cost model of the CPU target, by which ``ScheduleContractions`` chooses."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from ttsnn.passes.cpu.layer_config import Stage

__all__ = ["CpuCost"]


@dataclass(frozen=True)
class CpuCost:
    """Multiply-accumulates weighted by how well a kernel keeps the vector units busy.

    ``cost = pixels · ⌈Cout⌉ · (taps·Cin + overhead)``: output channels are rounded up to
    half vectors, which the kernel computes whether they exist or not; the overhead stands for
    writing and rereading an intermediate and for filling the pipeline, in the time of that many
    multiply-accumulates. Kernels reach about the same rate from 24 to 160 channels, so nothing
    else is modelled. The unit is one multiply-accumulate at full rate.

    Attributes:
        lanes: elements of a vector register.
        overhead: multiply-accumulates that an output element costs besides its own.
        matmul_overhead: the same for a product outside fused layers, whose operands are
            transposed in memory before and after.
    """

    lanes: int = 16
    overhead: int = 8
    matmul_overhead: int = 32

    def stage(self, stage: Stage) -> float:
        """Cost of one stage for one image and timestep."""
        depth = len(stage.taps) * stage.in_channels
        return prod(stage.out_size) * self._width(stage.out_channels) * (depth + self.overhead)

    def matmul(self, rows: int, depth: int, columns: int) -> float:
        """Cost of one product [rows, depth] · [depth, columns] with its transposes."""
        return rows * columns * (depth + self.matmul_overhead)

    def _width(self, channels: int) -> int:
        half = max(1, self.lanes // 2)
        return ceil(channels / half) * half
