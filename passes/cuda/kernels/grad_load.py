"""Operands of gradients to weights on their way from global to shared memory.

While the pixels of one step are multiplied, those of the next are fetched to registers. A thread
keeps a vector of channels, and moves on from pixel to pixel without a division. What lies under
several taps is fetched by all of them, for which the pixel's place is needed once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil, gcd, prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_load import Rows, width_of
from ttsnn.passes.cuda.kernels.grad_tile import GradTile, byte_width
from ttsnn.passes.cuda.kernels.mma import word
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.tir.body import as_vector, load, splat, vector

__all__ = ["Operand"]


@dataclass
class Operand:
    """Pixels × channels under some taps; zeros outside the image.

    Attributes:
        b: where statements go.
        stage: whose ``in_channels`` and ``in_size`` are the operand's; for dy a stage of one tap.
        taps: (dy, dx) of each tap of the block; numbers, or expressions of its index.
        tile: the block's.
        width: channels of the block.
        source: flat operand.
        shared: [pixels or words of pixels, taps · width].
        images: their number.
        channel: the block's first channel.
        thread: index of the thread.
        lanes: elements of a vector.
        dtype: of the sums.
        precision: how ``tile.pack`` numbers are rounded to a word, see ``mma.py``.
    """

    b: CudaBody
    stage: Stage
    taps: list[tuple[int | Expr, int | Expr]]
    tile: GradTile
    width: int
    source: Var
    shared: Rows
    images: int
    channel: Expr
    thread: Expr
    lanes: int
    dtype: str
    precision: str

    def __post_init__(self) -> None:
        b, s = self.b, self.stage
        self.kind = str(self.source.dtype)
        self.bytes = self.kind == "uint8"
        even = gcd(s.in_channels, self.width)
        self.vec = byte_width(even) if self.bytes else width_of(even, self.lanes)
        self.words = max(1, self.vec // 4) if self.bytes else self.vec  # registers of an item
        self.pack, self.packed = max(1, self.tile.pack), self.tile.pack > 0
        per_line = ceil(self.width / self.vec)
        self.apart = self.tile.threads // per_line
        self.count = ceil(self.tile.lines / self.apart)
        self.even = self.tile.lines % self.apart == 0 and self.tile.threads % per_line == 0
        self.total = self.images * prod(s.out_size)
        self.groups = s.in_channels // self.vec
        self.k = b.bind(self.thread % per_line, "k")
        self.line = b.bind(self.thread // per_line, "line")
        items = self.count * self.pack
        # pixels follow each other as those of the result do
        self.linear = s.in_size == s.out_size and s.strides == (1, 1)
        self.placed = not self.linear or any(t != (0, 0) for t in self.taps)
        if self.placed:
            self.y, self.x, self.at = (
                b.alloc(items, b.index, name, "local") for name in ("y", "x", "at")
            )
        held = "uint32" if self.bytes and self.vec > 1 else self.kind
        self.held = b.alloc(items * len(self.taps) * self.words, held, "held", "local")
        self.start = b.bind(self.channel // self.vec + self.k, "start")

    def _pixel(self, i: Expr, e: int) -> Expr:
        """Which of a step's pixels the thread's ``i``-th one is, or of a word's the ``e``-th."""
        return (self.line + i * self.apart) * self.pack + e

    def locate(self, first: Expr) -> None:
        """Note where the pixels lie of the step that begins with pixel ``first``."""
        if not self.placed:
            return
        b, s = self.b, self.stage
        size, (height, width) = prod(s.out_size), s.in_size
        with b.loop(self.count, "i", "unrolled") as i:
            for e in range(self.pack):
                pixel = b.bind(first + self._pixel(i, e), "pixel")
                rest = b.bind(pixel % size, "rest")
                y = b.bind(rest // s.out_size[1] * s.strides[0], "y")
                x = b.bind(rest % s.out_size[1] * s.strides[1], "x")
                at = ((pixel // size * height + y) * width + x) * self.groups + self.start
                for place, value in ((self.y, y), (self.x, x), (self.at, at)):
                    b.store(place, value, i * self.pack + e)

    def advance(self) -> None:
        """Move on to the pixels of the next step."""
        if not self.placed:
            return
        b, s, step = self.b, self.stage, self.tile.step
        (h, w), (sh, sw), (height, width) = s.out_size, s.strides, s.in_size
        images, down, across = step // (h * w), step // w % h, step % w
        ahead = ((images * height + down * sh) * width + across * sw) * self.groups
        with b.loop(self.count * self.pack, "i", "unrolled") as i:

            def add(place: Var, value: int, at: Expr = i) -> None:
                if value:
                    b.store(place, load(place, at) + value, at)

            add(self.at, ahead)
            add(self.x, across * sw)
            add(self.y, down * sh)
            if across:
                with b.when(load(self.x, i) >= w * sw):
                    add(self.x, -w * sw)
                    add(self.y, sh)
                    add(self.at, (sh * width - w * sw) * self.groups)
            if across or down:
                with b.when(load(self.y, i) >= h * sh):
                    add(self.y, -h * sh)
                    add(self.at, (height - h * sh) * width * self.groups)

    def fetch(self, first: Expr) -> None:
        """Registers ← the pixels from ``first`` on."""
        b, s = self.b, self.stage
        for j, (dy, dx) in enumerate(self.taps):
            shift = (dy * s.in_size[1] + dx) * self.groups
            with b.loop(self.count, "i", "unrolled") as i:
                for e in range(self.pack):
                    inside, own = [], self._pixel(i, e)
                    if self.total % self.tile.step:
                        inside.append(own + first < self.total)
                    elif not self.even:
                        inside.append(own < self.tile.step)
                    if s.in_channels % self.width:
                        inside.append(self.start < self.groups)
                    if self.placed:
                        here = i * self.pack + e
                        y, x, at = (load(p, here) for p in (self.y, self.x, self.at))
                        at = at + shift
                        inside += _within(y, dy, s.out_size[0], s.strides[0], s.in_size[0])
                        inside += _within(x, dx, s.out_size[1], s.strides[1], s.in_size[1])
                    else:
                        at = (first + own) * self.groups + self.start
                    to = ((i * self.pack + e) * len(self.taps) + j) * self.words
                    self._load(at, inside, to)

    def _load(self, at: Expr, inside: list[Expr], to: Expr) -> None:
        b, kind, lanes = self.b, str(self.held.dtype), self.words
        value = load(self.source, vector(at * self.vec, self.vec))
        if kind != self.kind:
            value = tirx.reinterpret(as_vector(kind, lanes), value)
        if inside:
            zero = splat(tirx.const(0, kind), kind, lanes)
            value = tirx.if_then_else(tirx.all(*inside), value, zero)
        b.store(self.held, value, vector(to, lanes))

    def put(self) -> None:
        """Shared memory ← registers, rounded for tensor cores."""
        b = self.b
        some = min(self.vec, 4 if self.packed else self.lanes)
        with b.loop(self.count, "i", "unrolled") as i:
            line = b.bind(self.line + i * self.apart, "to_line")
            with self._real(line):
                for j in range(len(self.taps)):
                    for v in range(0, self.vec, some):
                        value = self._value(i, j, v, some)
                        at = self.shared.at(line, self.k * self.vec + (j * self.width + v))
                        b.store(self.shared.buffer, value, vector(at, some))

    def _real(self, line: Expr) -> AbstractContextManager[None]:
        return nullcontext() if self.even else self.b.when(line < self.tile.lines)

    def _value(self, i: Expr, j: int, v: int, some: int) -> Expr:
        """``some`` elements of shared memory, from the ``v``-th channel of the ``j``-th tap on."""
        b = self.b

        def item(e: int) -> Expr:
            return ((i * self.pack + e) * len(self.taps) + j) * self.words

        if not self.packed and not self.bytes:
            return load(self.held, vector(item(0) + v, some))
        exact = self.bytes and self.pack == 1  # a byte alone is not rounded
        made = b.alloc(some, self.dtype, "made", "local")
        for c in range(v, v + some):
            numbers = [self._number(item(e), c) for e in range(self.pack)]
            b.store(made, numbers[0] if exact else word(self.precision, numbers), b.at(c - v))
        return load(made, vector(b.at(0), some))

    def _number(self, item: Expr, c: int) -> Expr:
        """Channel ``c`` of a fetched item."""
        if not self.bytes:
            return load(self.held, item + c)
        if self.vec == 1:
            return load(self.held, item).astype(self.dtype)
        four = load(self.held, item + c // 4)
        if self.packed:
            return tirx.call_extern("float32", "ttsnn_byte", four, c % 4)
        byte = (four >> tirx.const(c % 4 * 8, "uint32")) & tirx.const(255, "uint32")
        return byte.astype(self.dtype)


def _within(place: Expr, offset: int | Expr, count: int, stride: int, size: int) -> list[Expr]:
    """What makes ``place`` + ``offset`` an index below ``size``, where it may fail."""
    if not isinstance(offset, int):
        return [place + offset >= 0, place + offset < size]
    needed = [place >= -offset] if offset < 0 else []
    return needed + ([place < size - offset] if (count - 1) * stride + offset >= size else [])
