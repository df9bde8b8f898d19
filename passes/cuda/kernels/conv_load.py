"""Tiles of the operands on their way from global to shared memory.

A tile of depth ``k`` is fetched to registers while the one before it is multiplied; then it is put
into shared memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil, prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import IntImm, Var

from ttsnn.passes.cpu.kernels.register_tile import pick
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_spec import Segment
from ttsnn.passes.cuda.kernels.conv_tile import ConvTile
from ttsnn.passes.cuda.kernels.mma import word as word_of
from ttsnn.passes.tir.body import load, splat, vector

__all__ = ["InputTile", "Rows", "WeightTile", "width_of"]

BITS = 31
"""Marks in a word."""

ONE = 0x3F800000
"""Bits of 1.0 in float32."""

_Edge = tuple[int, int] | None
"""Axis and offset of taps; None stands for pixels beyond the last one."""


def width_of(channels: int, lanes: int) -> int:
    """Elements of an access along channels: whole vectors, or single ones where some are left."""
    return lanes if channels % lanes == 0 else 1


def _table(index: Expr, values: Sequence[int]) -> Expr:
    """``values[index]``, anything behind the last one; bits of a number where they are few.

    nvcc makes a copy of what follows for each value of a chain of selects.
    """
    low = min(values)
    bits = (max(values) - low).bit_length()
    even = len({b - a for a, b in itertools.pairwise(values)}) < 2
    if even or len(values) * bits > 63:
        return pick(index, values)
    packed = sum((v - low) << (i * bits) for i, v in enumerate(values))
    kind = "int32" if len(values) * bits < 32 else "int64"
    number = tirx.const(packed, kind) >> (index * bits).astype(kind)
    return (number & tirx.const((1 << bits) - 1, kind)).astype(str(index.ty)) + low


def put_words(
    shared: Rows, at: Expr, numbers: Sequence[Expr], tile: InputTile | WeightTile
) -> None:
    """Neighbouring elements from ``at`` on ← words of neighbouring numbers, rounded."""
    b, pack = side.b, side.tile.pack
    words = len(numbers) // pack
    held = b.alloc(words, side.dtype, "words", "local")
    for i in range(words):
        own = numbers[i * pack : (i + 1) * pack]
        b.store(held, word_of(side.precision, own), b.at(i))
    some = min(words, side.lanes)
    for first in range(0, words, some):
        b.store(shared.buffer, load(held, vector(b.at(first), some)), vector(at + first, some))


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
        precision: how operands are rounded on their way to shared memory, see ``mma.py``.
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
    precision: str

    def __post_init__(self) -> None:
        self.spikes = self.part.x_dtype == "uint8" and self.part.stage.in_channels % 4 == 0
        self.vec = self._width()
        self.parts = max(1, self.tile.pack // self.vec)  # vectors that a thread takes of a row
        self.per_row = self.tile.depth // (self.vec * self.parts)
        self.step = max(1, self.tile.group // self.per_row)
        self.rows = self.tile.time * self.tile.pixels
        self.count = ceil(self.rows / self.step)
        self.ragged = self.rows % self.step or self.tile.group % self.per_row
        self.channels = self.part.stage.in_channels // self.vec
        # in vectors: that an access is aligned must be plain to see
        self.k = self.b.bind(self.thread % self.per_row * self.parts, "k_in_tile")
        self.row = self.b.bind(self.thread // self.per_row, "row")
        self.at = self.b.alloc(self.count, self.b.index, "x_at", "local")
        # of spikes four are fetched as one number
        self.fetched = "uint32" if self.spikes else self.part.x_dtype
        if self.spikes and self.tile.pack == 1:
            self.precision = "fp32"  # exact as they are
        self.size = self.vec // 4 if self.spikes else self.vec
        if self.spikes:
            self.x = self.b.view(self.x, prod(self.x.shape) // 4, self.fetched, "x_words")
        held = self.count * self.parts * self.size
        self.held = self.b.alloc(held, self.fetched, "x_held", "local")
        whole = isinstance(self.images, IntImm) and not self.ragged
        if whole and int(self.images) * prod(self.part.stage.out_size) % self.tile.pixels == 0:
            first: list[_Edge] = []
        else:
            first = [None]
        self.edges = [*first, *self._edges(0), *self._edges(1)]
        self.words = ceil(len(self.edges) / BITS)
        size = max(1, self.words)
        self.outside = self.b.alloc(size * self.count, "int32", "x_outside", "local")
        self.marks = self.b.alloc(size, "int32", "x_marks", "local")
        self.shift = self.b.alloc(1, self.b.index, "x_shift", "local")
        self.left = self.b.alloc(1, self.b.index, "x_left", "local")

    def _width(self) -> int:
        """Channels of an access: a vector, of spikes as many as leave few threads idle."""
        channels, depth, group = self.part.stage.in_channels, self.tile.depth, self.tile.group
        if not self.spikes:
            return width_of(channels, self.lanes)

        def cost(width: int) -> int:
            rows = max(1, group * width // depth)
            return ceil(self.tile.time * self.tile.pixels / rows) * (width + 4)

        return min((w for w in (4, 8, 16) if channels % w == depth % w == 0), key=cost)

    def _edges(self, axis: int) -> list[_Edge]:
        """Offsets of taps along an axis at which some pixel reads a zero."""
        s = self.part.stage
        size, last = s.in_size[axis], (s.out_size[axis] - 1) * s.strides[axis]
        offsets = sorted({t[axis] for t in s.taps})
        return [(axis, d) for d in offsets if d < 0 or last + d >= size]

    def locate(self, t: Expr | int, skip: Expr | int = 0) -> None:
        """Note where the thread's rows lie, and the taps under which they are outside.

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
            at = (corner + (y * width + x)) * self.channels + self.k
            b.store(self.at, at, i)
            for word in range(self.words):
                bits: Expr = IntImm("int32", 0)
                for bit, edge in enumerate(self.edges[word * BITS : (word + 1) * BITS]):
                    if edge is None:
                        inside = tirx.all(pixel < total, row < self.rows)
                    else:
                        axis, offset = edge
                        moved = (y, x)[axis] + offset
                        inside = tirx.all(moved >= 0, moved < s.in_size[axis])
                    mark = tirx.Select(inside, IntImm("int32", 0), IntImm("int32", 1 << bit))
                    bits = bits | mark
                b.store(self.outside, bits, i * self.words + word)

    def aim(self, tap: Expr, chunk: Expr) -> None:
        """Choose what the next :meth:`fetch` reads: ``depth`` channels, the ``chunk``-th of a tap.

        A step ahead, so that nvcc does not compute it again for every row.
        """
        b, s = self.b, self.part.stage
        move = _table(tap, [y for y, _ in s.taps]) * s.in_size[1]
        move = move + _table(tap, [x for _, x in s.taps])
        start = chunk * (self.tile.depth // self.vec)
        b.store(self.shift, move * self.channels + start, b.at(0))
        for word in range(self.words):
            edges = list(enumerate(self.edges[word * BITS : (word + 1) * BITS]))
            marks = [sum(1 << k for k, e in edges if e is None or t[e[0]] == e[1]) for t in s.taps]
            b.store(self.marks, _table(tap, marks).astype("int32"), b.at(word))
        if s.in_channels % self.tile.depth:
            b.store(self.left, self.channels - start - self.k, b.at(0))

    def fetch(self) -> None:
        """Registers ← the tile."""
        b = self.b
        with (
            b.loop(self.count, "i", "unrolled") as i,
            b.loop(self.parts, "e", "unrolled") as e,
        ):
            tests = []
            for word in range(self.words):
                marked = load(self.outside, i * self.words + word) & load(self.marks, b.at(word))
                tests.append(tirx.EQ(marked, IntImm("int32", 0)))
            if self.part.stage.in_channels % self.tile.depth:
                tests.append(load(self.left, b.at(0)) > e)
            at = b.unsigned(load(self.at, i) + (load(self.shift, b.at(0)) + e))
            value = load(self.x, vector(at * self.size, self.size))
            if tests:
                zero = splat(tirx.const(0, self.fetched), self.fetched, self.size)
                value = tirx.if_then_else(tirx.all(*tests), value, zero)
            b.store(self.held, value, vector((i * self.parts + e) * self.size, self.size))

    def put(self) -> None:
        """Shared memory ← registers."""
        b, size = self.b, self.parts * self.vec
        with b.loop(self.count, "i", "unrolled") as i:
            row = b.bind(self.row + i * self.step, "to_row")
            at = self.shared.at(row, self.k * self.vec // self.tile.pack)
            with b.when(row < self.rows) if self.ragged else nullcontext():
                put_words(self.shared, at, [self._number(i, e) for e in range(size)], self)

    def _number(self, i: Expr, e: int) -> Expr:
        """The ``e``-th of those that the thread fetched of its ``i``-th row."""
        if not self.spikes:
            return load(self.held, i * (self.parts * self.vec) + e).astype(self.dtype)
        word, shift = load(self.held, i * self.size + e // 4), 8 * (e % 4)
        if self.dtype != "float32":
            return (word >> tirx.const(shift, "uint32") & tirx.const(1, "uint32")).astype(
                self.dtype
            )
        # bytes are 0 or 1: a product makes the bits of 0.0 or 1.0 of them
        one = tirx.const(ONE >> shift if shift < 24 else ONE, "uint32")
        if shift < 24:
            word = word & tirx.const(255 << shift, "uint32")
        else:
            word = word >> tirx.const(shift, "uint32")
        return tirx.reinterpret("float32", word * one)


@dataclass
class WeightTile:
    """Input channels of one tap × output channels; zeros beyond the last ones.

    Attributes: as of :class:`InputTile`; ``w`` is the flat weight, of which the stage has these
    ``taps``, ``shared`` [depth, channels], ``first`` the block's first output channel.
    """

    b: CudaBody
    part: Segment
    taps: Sequence[int]
    tile: ConvTile
    w: Var
    shared: Rows
    first: Expr
    thread: Expr
    lanes: int
    dtype: str
    precision: str

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
        own = _table(tap, self.taps)
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
                put_words(self.shared, at, [load(self.held, place) for place in places], self)
