"""Cost model of the CPU target, by which ``ScheduleContractions`` chooses."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from ttsnn.passes.layers.config import Stage

__all__ = ["CpuCost"]


@dataclass(frozen=True)
class CpuCost:
    """Multiply-accumulates weighted by how well a kernel keeps the vector units busy.

    ``cost = pixels · ⌈Cout⌉ · (taps·Cin + overhead)``: output channels are rounded up to
    half vectors, which the kernel computes whether they exist or not; the overhead stands for
    writing and rereading an intermediate and for filling the pipeline, in the time of that many
    multiply-accumulates. Kernels reach about the same rate from 24 to 160 channels, so nothing
    else is modelled. The unit is one multiply-accumulate at full rate.

    A product of a kernel of its own with few rows is bound by reading its weight, once for all
    rows; each kernel and each transpose has the cost of being called.

    Attributes:
        lanes: elements of a vector register.
        overhead: multiply-accumulates that an output element costs besides its own.
        call: a kernel's call and the start of its threads, about 1.5 µs.
        weight_read: reading one element of a weight from L2, about 30 bytes/ns on a core whose
            rate is about 50 multiply-accumulates a nanosecond.
        far_weight_read: the same where the weight does not stay in L2.
        l2_elements: weights up to this size stay in L2.
        move: reading and writing one element in a transpose.
    """

    lanes: int = 16
    overhead: int = 8
    call: int = 75_000
    weight_read: float = 6.0
    far_weight_read: float = 16.0
    l2_elements: int = 128 * 1024
    move: float = 25.0

    def stage(self, stage: Stage) -> float:
        """Cost of one stage for one image and timestep."""
        depth = len(stage.taps) * stage.in_channels
        return prod(stage.out_size) * self._width(stage.out_channels) * (depth + self.overhead)

    def matmul(self, rows: int, depth: int, columns: int) -> float:
        """Cost of one product [rows, depth] · [depth, columns] as a kernel of its own."""
        weight = depth * columns
        read = self.weight_read if weight <= self.l2_elements else self.far_weight_read
        work = rows * self._width(columns) * (depth + self.overhead)
        return self.call + max(work, weight * read)

    def permute(self, elements: int) -> float:
        """Cost of a transpose as a kernel of its own."""
        return self.call + elements * self.move

    def _width(self, channels: int) -> int:
        half = max(1, self.lanes // 2)
        return ceil(channels / half) * half
