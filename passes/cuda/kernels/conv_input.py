"""The input's tile on its way from global to shared memory."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil, prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import IntImm, Var

from ttsnn.passes.cuda.kernels.conv_load import OperandTile, table, width_of
from ttsnn.passes.tir.body import load, splat, vector

__all__ = ["InputTile"]

BITS = 31
"""Marks in a word."""

ONE = 0x3F800000
"""Bits of 1.0 in float32."""

_Edge = tuple[int, int] | None
"""Axis and offset of taps; None stands for pixels beyond the last one."""


@dataclass
class InputTile(OperandTile):
    """Pixels × input channels of one tap, for the timesteps of a step; zeros outside the image.

    Attributes:
        x: flat operand; in shared memory it is [time · pixels, depth].
        images: images of a timestep.
    """

    x: Var
    images: Expr

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
        move = table(tap, [y for y, _ in s.taps]) * s.in_size[1]
        move = move + table(tap, [x for _, x in s.taps])
        start = chunk * (self.tile.depth // self.vec)
        b.store(self.shift, move * self.channels + start, b.at(0))
        for word in range(self.words):
            edges = list(enumerate(self.edges[word * BITS : (word + 1) * BITS]))
            marks = [sum(1 << k for k, e in edges if e is None or t[e[0]] == e[1]) for t in s.taps]
            b.store(self.marks, table(tap, marks).astype("int32"), b.at(word))
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
                self.put_words(at, [self._number(i, e) for e in range(size)])

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
