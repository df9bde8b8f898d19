"""Cost model of the CUDA target, by which ``ScheduleContractions`` chooses."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from ttsnn.passes.layers.config import Stage

__all__ = ["CudaCost"]


@dataclass(frozen=True)
class CudaCost:
    """Multiply-accumulates, and what a launch and an intermediate result cost beside them.

    The unit is one float32 multiply-accumulate of the whole GPU at the rate that a kernel of this
    kind may reach. The numbers follow from data sheets (H100: 33·10¹² multiply-accumulates and
    3.3·10¹² bytes a second) and have not been measured.

    Attributes:
        lanes: output channels are rounded up to a multiple of it.
        overhead: writing and reading one element of an intermediate result.
        launch: one kernel, for each image and timestep: about 2 µs over 64 of them.
        call: one kernel of a product with few rows.
        weight_read: reading one element of a weight.
        move: reading and writing one element in a transpose.
    """

    lanes: int = 16
    overhead: int = 48
    launch: int = 500_000
    call: int = 32_000_000
    weight_read: float = 24.0
    move: float = 48.0

    def stage(self, stage: Stage) -> float:
        """Cost of one stage for one image and timestep."""
        depth = len(stage.taps) * stage.in_channels
        outputs = prod(stage.out_size) * self._width(stage.out_channels)
        return self.launch + outputs * (depth + self.overhead)

    def matmul(self, rows: int, depth: int, columns: int) -> float:
        """Cost of one product [rows, depth] · [depth, columns] as a kernel of its own."""
        work = rows * self._width(columns) * (depth + self.overhead)
        return self.call + max(work, depth * columns * self.weight_read)

    def permute(self, elements: int) -> float:
        """Cost of a transpose as a kernel of its own."""
        return self.call + elements * self.move

    def _width(self, channels: int) -> int:
        return ceil(channels / self.lanes) * self.lanes
