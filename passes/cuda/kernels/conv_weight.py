"""The weight's tile on its way from global to shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cuda.kernels.conv_load import OperandTile, table, width_of
from ttsnn.passes.tir.body import load, splat, vector

__all__ = ["WeightTile"]


@dataclass
class WeightTile(OperandTile):
    """Input channels of one tap × output channels; zeros beyond the last ones.

    Attributes:
        w: flat weight; in shared memory it is [depth, channels].
        taps: those of the weight that the stage has.
    """

    w: Var
    taps: Sequence[int]

    def __post_init__(self) -> None:
        self.vec = width_of(self.part.stage.out_channels, self.lanes)
        self.per_row = self.tile.channels // self.vec
        self.lines = self.tile.depth // self.tile.pack
        self.total = self.lines * self.per_row
        self.count = ceil(self.total / self.tile.group)
        size = self.count * self.tile.pack * self.vec
        self.held = self.b.alloc(size, self.dtype, "w_held", "local")

    def _place(self, i: Expr) -> tuple[Expr, Expr]:
        """Line of words and output channel."""
        item = self.b.bind(self.thread + i * self.tile.group, "item")
        k = self.b.bind(item // self.per_row, "w_k")
        c = self.b.bind((item % self.per_row) * self.vec, "w_c")
        return k, c

    def fetch(self, tap: Expr, chunk: Expr) -> None:
        """Registers ← the weights of a tap and the ``chunk``-th ``depth`` of input channels."""
        b, s = self.b, self.part.stage
        channel = b.bind(chunk * self.tile.depth, "w_channel")
        own = table(tap, self.taps)
        start = b.bind((own * s.in_channels + channel) * s.out_channels + self.first, "w_at")
        pack = self.tile.pack
        with b.loop(self.count, "i", "unrolled") as i, b.loop(pack, "e", "unrolled") as e:
            line, c = self._place(i)
            k = line * pack + e
            inside = []
            if s.in_channels % self.tile.depth or self.total % self.tile.group:
                inside.append(tirx.all(channel + k < s.in_channels, k < self.tile.depth))
            if s.out_channels % self.tile.channels:
                inside.append(self.first + c < s.out_channels)
            value = load(self.w, vector(start + k * s.out_channels + c, self.vec))
            if inside:
                zero = splat(0.0, self.dtype, self.vec)
                value = tirx.if_then_else(tirx.all(*inside), value, zero)
            b.store(self.held, value, vector((i * pack + e) * self.vec, self.vec))

    def put(self) -> None:
        """Shared memory ← registers."""
        b, pack = self.b, self.tile.pack
        with b.loop(self.count, "i", "unrolled") as i:
            line, c = self._place(i)
            at = self.shared.at(line, c)
            ragged = self.total % self.tile.group
            with b.when(line < self.lines) if ragged else nullcontext():
                places = [
                    (i * pack + e) * self.vec + j for j in range(self.vec) for e in range(pack)
                ]
                self.put_words(at, [load(self.held, place) for place in places])
