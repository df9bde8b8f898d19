"""Tiles of the operands on their way from global to shared memory.

A tile of depth ``k`` is fetched to registers while the one before it is multiplied; then it is put
into shared memory.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from math import ceil, prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.kernels.register_tile import pick
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_spec import Segment
from ttsnn.passes.cuda.kernels.conv_tile import ConvTile
from ttsnn.passes.tir.body import load, splat, vector

__all__ = ["InputTile", "Rows", "WeightTile", "width_of"]


def width_of(channels: int, lanes: int) -> int:
    """Elements of an access along channels: whole vectors, or single ones where some are left."""
    return lanes if channels % lanes == 0 else 1


@dataclass(frozen=True)
class Rows:
    """A matrix in shared memory.

    Attributes:
        buffer: flat.
        first: its first element there.
        stride: elements from row to row.
    """

    buffer: Var
    first: Expr
    stride: int

    def at(self, row: Expr, column: Expr) -> Expr:
        """Where an element lies."""
        return self.first + (row * self.stride + column)


@dataclass
class InputTile:
    """Pixels × input channels of one tap, for the timesteps of a step; zeros outside the image.

    Attributes:
        b: where statements go.
        part: the segment.
        tile: its shape.
        x: flat operand.
        shared: [time · pixels, depth] of the sums' dtype.
        images: images of a timestep.
        first: the block's first pixel.
        thread: index of the thread in its group.
        lanes: elements of a vector.
        dtype: of the sums.
    """

    b: CudaBody
    part: Segment
    tile: ConvTile
    x: Var
    shared: Rows
    images: Expr
    first: Expr
    thread: Expr
    lanes: int
    dtype: str
    places: dict[str, Var] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.vec = width_of(self.part.stage.in_channels, self.lanes)
        self.per_row = self.tile.depth // self.vec
        self.step = max(1, self.tile.group // self.per_row)
        self.rows = self.tile.time * self.tile.pixels
        self.count = ceil(self.rows / self.step)
        self.channels = self.part.stage.in_channels // self.vec
        # in vectors: that an access is aligned must be plain to see
        self.k = self.b.bind(self.thread % self.per_row, "k_in_tile")
        self.row = self.b.bind(self.thread // self.per_row, "row")
        names = ("at", "y", "x")
        self.places = {n: self.b.alloc(self.count, self.b.index, f"x_{n}", "local") for n in names}
        self.held = self.b.alloc(self.count * self.vec, self.part.x_dtype, "x_held", "local")

    def locate(self, t: Expr | int, skip: Expr | int = 0) -> None:
        """Note where the thread's rows lie.

        Args:
            t: the operand's timestep of the first of them.
            skip: images before the operand's first one.
        """
        b, s = self.b, self.part.stage
        size = prod(s.out_size)
        (height, width), total = s.in_size, self.images * size
        with b.loop(self.count, "i", "unrolled") as i:
            row = self.row + i * self.step
            pixel = b.bind(self.first + row % self.tile.pixels, "pixel")
            time = b.at(t) + (row // self.tile.pixels if self.tile.time > 1 else 0)
            image, rest = pixel // size, pixel % size
            y = b.bind(rest // s.out_size[1] * s.strides[0], "y")
            x = b.bind(rest % s.out_size[1] * s.strides[1], "x")
            corner = (time * self.images + (image + skip)) * (height * width)
            at = corner + (y * width + x if self.part.apart == (1, 1) else 0)
            at = at * self.channels
            b.store(self.places["at"], at, i)
            # what is beyond the last pixel counts as outside of the image
            real = tirx.all(pixel < total, row < self.rows)
            b.store(self.places["y"], tirx.Select(real, y, b.at(-(1 << 20))), i)
            b.store(self.places["x"], x, i)

    def fetch(self, tap: Expr, chunk: Expr) -> None:
        """Registers ← the tile of a tap and the ``chunk``-th ``depth`` of its channels."""
        b, s = self.b, self.part.stage
        dy = b.bind(pick(tap, [t[0] for t in s.taps]), "dy")
        dx = b.bind(pick(tap, [t[1] for t in s.taps]), "dx")
        k = b.bind(chunk * (self.tile.depth // self.vec) + self.k, "k")
        plain = self.part.apart == (1, 1)
        shift = b.bind(((dy * s.in_size[1] + dx) * self.channels if plain else 0) + k, "shift")
        ragged = s.in_channels % self.tile.depth != 0
        with b.loop(self.count, "i", "unrolled") as i:
            y = b.bind(load(self.places["y"], i) + dy, "y")
            x = b.bind(load(self.places["x"], i) + dx, "x")
            (down, across), (height, width) = self.part.apart, s.in_size
            inside = [y >= 0, y < height * down, x >= 0, x < width * across]
            if s.taps == ((0, 0),) and plain:
                inside = inside[:1]
            inside += [v % gap < 1 for v, gap in ((y, down), (x, across)) if gap > 1]
            if ragged:
                inside.append(k < self.channels)
            at = load(self.places["at"], i) + shift
            if not plain:
                at = at + (y // down * width + x // across) * self.channels
            at = at * self.vec
            value = load(self.x, vector(at, self.vec))
            zero = splat(tirx.const(0, self.part.x_dtype), self.part.x_dtype, self.vec)
            value = tirx.if_then_else(tirx.all(*inside), value, zero)
            b.store(self.held, value, vector(i * self.vec, self.vec))

    def put(self) -> None:
        """Shared memory ← registers."""
        b = self.b
        with b.loop(self.count, "i", "unrolled") as i:
            row = b.bind(self.row + i * self.step, "to_row")
            value = load(self.held, vector(i * self.vec, self.vec))
            if self.part.x_dtype != self.dtype:
                kind = self.dtype if self.vec == 1 else f"{self.dtype}x{self.vec}"
                value = value.astype(kind)
            at = vector(self.shared.at(row, self.k * self.vec), self.vec)
            with b.when(row < self.rows) if self.rows % self.step else nullcontext():
                b.store(self.shared.buffer, value, at)


@dataclass
class WeightTile:
    """Input channels of one tap × output channels; zeros beyond the last ones.

    Attributes: as of :class:`InputTile`; ``w`` is the flat weight, ``shared`` [depth, channels],
    ``first`` the block's first output channel.
    """

    b: CudaBody
    part: Segment
    tile: ConvTile
    w: Var
    shared: Rows
    first: Expr
    thread: Expr
    lanes: int
    dtype: str

    def __post_init__(self) -> None:
        self.vec = width_of(self.part.stage.out_channels, self.lanes)
        self.per_row = self.tile.channels // self.vec
        self.total = self.tile.depth * self.per_row
        self.count = ceil(self.total / self.tile.group)
        self.held = self.b.alloc(self.count * self.vec, self.dtype, "w_held", "local")

    def _place(self, i: Expr) -> tuple[Expr, Expr]:
        item = self.b.bind(self.thread + i * self.tile.group, "item")
        k = self.b.bind(item // self.per_row, "w_k")
        c = self.b.bind((item % self.per_row) * self.vec, "w_c")
        return k, c

    def fetch(self, tap: Expr, chunk: Expr) -> None:
        """Registers ← the weights of a tap and the ``chunk``-th ``depth`` of input channels."""
        b, s = self.b, self.part.stage
        channel = b.bind(chunk * self.tile.depth, "w_channel")
        start = b.bind((tap * s.in_channels + channel) * s.out_channels + self.first, "w_at")
        with b.loop(self.count, "i", "unrolled") as i:
            k, c = self._place(i)
            inside = []
            if s.in_channels % self.tile.depth or self.total % self.tile.group:
                inside.append(tirx.all(channel + k < s.in_channels, k < self.tile.depth))
            if s.out_channels % self.tile.channels:
                inside.append(self.first + c < s.out_channels)
            value = load(self.w, vector(start + k * s.out_channels + c, self.vec))
            if inside:
                zero = splat(0.0, self.dtype, self.vec)
                value = tirx.if_then_else(tirx.all(*inside), value, zero)
            b.store(self.held, value, vector(i * self.vec, self.vec))

    def put(self) -> None:
        """Shared memory ← registers."""
        b = self.b
        with b.loop(self.count, "i", "unrolled") as i:
            k, c = self._place(i)
            value = load(self.held, vector(i * self.vec, self.vec))
            at = vector(self.shared.at(k, c), self.vec)
            ragged = self.total % self.tile.group
            with b.when(k < self.tile.depth) if ragged else nullcontext():
                b.store(self.shared.buffer, value, at)
