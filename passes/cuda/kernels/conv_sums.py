"""Products of the tiles in shared memory, added to the sums in registers; two ways.

``Fma``: every thread multiplies its rows × columns. ``Mma``: every warp does on tensor cores.
Which pixels and channels are a thread's follows from the way, as a :class:`Place`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tvm.ir import Expr

from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_load import Rows
from ttsnn.passes.cuda.kernels.conv_tile import ConvTile
from ttsnn.passes.cuda.kernels.mma import WORDS, product
from ttsnn.passes.tir.body import load, vector

__all__ = ["Fma", "Mma", "Place"]


@dataclass
class Place(ABC):
    """A thread's part of the block's tile, and how its sums are made.

    Attributes:
        b: where statements go.
        tile: the block's.
        thread: index of the thread in its group.
        first, first_channel: the block's first pixel and channel.
        dtype: of the sums.
        lanes: elements of a vector.
        vec: elements of a store: a vector, or 1 where channels fill none.
    """

    b: CudaBody
    tile: ConvTile
    thread: Expr
    first: Expr
    first_channel: Expr
    dtype: str
    lanes: int
    vec: int

    def __post_init__(self) -> None:
        tile = self.tile
        size = tile.time * tile.rows * tile.columns
        self.sums = self.b.alloc(size, self.dtype, "sums", "local")

    @abstractmethod
    def pixel(self, row: Expr) -> Expr:
        """Pixel of the thread's ``row``-th."""

    @abstractmethod
    def channel(self, column: Expr) -> Expr:
        """Output channel of the thread's ``column``-th."""

    @abstractmethod
    def sum(self, dt: Expr, row: Expr, column: Expr) -> Expr:
        """Index of a sum."""

    @abstractmethod
    def multiply(self, a: Rows, w: Rows) -> None:
        """Add the products of [time · pixels, depth] and [depth, channels]."""


class Fma(Place):
    """Multiply-adds of a thread: neighbouring threads have neighbouring vectors of channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        b, tile = self.b, self.tile
        self.groups, self.lines = tile.channels // tile.columns, tile.pixels // tile.rows
        self.group = b.bind(self.thread % self.groups, "channel_group")
        self.line = b.bind(self.thread // self.groups, "line")
        self.a_held = b.alloc(self.lanes, self.dtype, "a_held", "local")
        self.w_held = b.alloc(self.lanes * tile.columns, self.dtype, "w_held", "local")

    def pixel(self, row: Expr) -> Expr:
        return self.first + self.line + row * self.lines

    def channel(self, column: Expr) -> Expr:
        return self.first_channel + (self.group + column // self.vec * self.groups) * self.vec

    def sum(self, dt: Expr, row: Expr, column: Expr) -> Expr:
        return (dt * self.tile.rows + row) * self.tile.columns + column

    def multiply(self, a: Rows, w: Rows) -> None:
        b, tile, lanes = self.b, self.tile, self.lanes
        with b.loop(tile.depth // lanes, "k_outer", "unrolled") as k:
            with (
                b.loop(lanes, "k_inner", "unrolled") as ki,
                b.loop(tile.columns // self.vec, "j", "unrolled") as j,
            ):
                at = w.at(k * lanes + ki, (self.group + j * self.groups) * self.vec)
                to = ki * tile.columns + j * self.vec
                value = load(w.buffer, vector(at, self.vec))
                b.store(self.w_held, value, vector(to, self.vec))
            with (
                b.loop(tile.time, "dt", "unrolled") as dt,
                b.loop(tile.rows, "r", "unrolled") as r,
            ):
                row = dt * tile.pixels + self.line + r * self.lines
                value = load(a.buffer, vector(a.at(row, k * lanes), lanes))
                b.store(self.a_held, value, vector(b.at(0), lanes))
                with (
                    b.loop(lanes, "ki", "unrolled") as ki,
                    b.loop(tile.columns, "j", "unrolled") as j,
                ):
                    at = self.sum(dt, r, j)
                    product = load(self.a_held, ki) * load(self.w_held, ki * tile.columns + j)
                    b.store(self.sums, load(self.sums, at) + product, at)


@dataclass
class Mma(Place):
    """Fragments of a warp: 16 pixels of one timestep × 8 channels each.

    A thread has 2 pixels and 2 channels of a fragment; ``tile.rows`` and ``tile.columns`` count
    those of all its fragments.

    Attributes:
        precision: of the operands, see ``mma.py``.
    """

    precision: str = "tf32"

    def __post_init__(self) -> None:
        super().__post_init__()
        b, tile = self.b, self.tile
        self.down, self.across = tile.rows // 2, tile.columns // 2  # fragments of a warp
        warp = b.bind(self.thread // 32, "warp")
        warps = tile.channels // (8 * self.across)
        self.g = b.bind(self.thread % 32 // 4, "lane_row")
        self.q = b.bind(self.thread % 4, "lane_column")
        self.warp_pixel = b.bind(warp // warps * (16 * self.down), "warp_pixel")
        self.warp_channel = b.bind(warp % warps * (8 * self.across), "warp_channel")

    def pixel(self, row: Expr) -> Expr:
        return self.first + self.warp_pixel + row // 2 * 16 + row % 2 * 8 + self.g

    def channel(self, column: Expr) -> Expr:
        own = self.q * 2 if self.vec > 1 else self.q * 2 + column % 2
        return self.first_channel + self.warp_channel + column // 2 * 8 + own

    def sum(self, dt: Expr, row: Expr, column: Expr) -> Expr:
        fragment = (dt * self.down + row // 2) * self.across + column // 2
        return fragment * 4 + row % 2 * 2 + column % 2

    def multiply(self, a: Rows, w: Rows) -> None:
        b, tile = self.b, self.tile
        a_held = b.alloc(4, self.dtype, "a_fragment", "local")
        w_held = b.alloc(self.across * 2, self.dtype, "w_fragments", "local")
        with b.loop(tile.depth // tile.pack // WORDS, "k", "unrolled") as k:
            with (
                b.loop(self.across, "j", "unrolled") as j,
                b.loop(2, "i", "unrolled") as i,
            ):
                n = self.warp_channel + j * 8 + self.g
                value = load(w.buffer, w.at(k * WORDS + self.q + i * 4, n))
                b.store(w_held, value, j * 2 + i)
            with (
                b.loop(tile.time, "dt", "unrolled") as dt,
                b.loop(self.down, "r", "unrolled") as r,
            ):
                row = dt * tile.pixels + self.warp_pixel + r * 16 + self.g
                with (
                    b.loop(2, "upper", "unrolled") as upper,
                    b.loop(2, "part", "unrolled") as part,  # rows g and g + 8
                ):
                    at = a.at(row + part * 8, k * WORDS + self.q + upper * 4)
                    b.store(a_held, load(a.buffer, at), upper * 2 + part)
                with b.loop(self.across, "j", "unrolled") as j:
                    at = self.sum(dt, r * 2, j * 2)
                    terms = load(a_held, b.at(0)), load(w_held, j * 2)
                    b.emit(product(self.precision, load(self.sums, at), *terms))
