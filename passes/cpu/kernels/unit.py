"""What the parts of a layer's kernel share while one work unit is written."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.tiles import LayerTiles
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.tir.body import Body, i64

__all__ = ["Unit"]


@dataclass(frozen=True)
class Unit:
    """One work unit: a strip of output rows of one image, for all timesteps.

    Attributes:
        body: where statements go.
        config, isa, tiles: the layer, the CPU, the tiles.
        flat: operands and results by name, as flat buffers.
        batch: number of images.
        n: the image.
        h0: the strip's first row.
        state: two copies of the strip's membranes, where they outlive a block of timesteps.
        x_start: first timestep of the input, where the operand holds several one after another.
    """

    body: Body
    config: LayerConfig
    isa: Isa
    tiles: LayerTiles
    flat: dict[str, Var]
    batch: Expr
    n: Expr
    h0: Expr
    state: Var | None = None
    x_start: Expr | int = 0

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return self.isa.lanes(self.config.dtype)

    @property
    def height(self) -> int:
        """Rows of the output."""
        return self.config.stages[-1].out_size[0]

    @property
    def width(self) -> int:
        """Columns of the output."""
        return self.config.stages[-1].out_size[1]

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.config.stages[-1].out_channels

    @property
    def strip(self) -> int:
        """Elements of a strip of the output at one timestep."""
        return self.tiles.strip_rows * self.width * self.channels

    def blocks(self, start: int, stop: int) -> int:
        """Blocks of timesteps in ``start … stop``; one where the input does not change."""
        return 1 if self.config.x_T == 1 else (stop - start) // self.tiles.time_block

    def image_base(self, t: Expr | int | None, row: Expr) -> Expr:
        """Offset of row ``row`` in an array like the output ([N, …], or [T, N, …] at step t)."""
        image = self.n if t is None else t * self.batch + self.n
        return (image * self.height + row) * (self.width * self.channels)

    def x_time(self, t: Expr) -> Expr:
        """Timestep of the input that step ``t`` reads."""
        return self.x_start + (t if self.config.x_T > 1 else i64(0))
