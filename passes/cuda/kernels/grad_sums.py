"""Products of pixels × rows and pixels × columns in shared memory, added up in registers; two ways.

``Fma``: every thread multiplies its rows × columns. ``Mma``: every warp does on tensor cores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_load import Rows
from ttsnn.passes.cuda.kernels.grad_tile import GradTile
from ttsnn.passes.cuda.kernels.mma import product
from ttsnn.passes.tir.body import load, splat, vector

__all__ = ["Fma", "Mma", "Sums"]


@dataclass
class Sums(ABC):
    """A thread's part of the block's sums.

    Attributes:
        b: where statements go.
        tile: the block's.
        thread: index of the thread in the block.
        dtype: of the sums.
        lanes: elements of a vector.
    """

    b: CudaBody
    tile: GradTile
    thread: Expr
    dtype: str
    lanes: int

    def __post_init__(self) -> None:
        b, tile = self.b, self.tile
        self.part, self.own = b.grouped(self.thread, tile.group, tile.split)
        self.held = b.alloc(tile.sums, self.dtype, "sums", "local")
        with b.loop(tile.sums, "i", "unrolled") as i:
            b.store(self.held, splat(0.0, self.dtype, 1), i)

    @abstractmethod
    def row(self, r: Expr) -> Expr:
        """Row of the thread's ``r``-th one, in the block."""

    @abstractmethod
    def column(self, c: Expr) -> Expr:
        """Column of the thread's ``c``-th one, in the block."""

    @abstractmethod
    def at(self, r: Expr, c: Expr) -> Expr:
        """Index of a sum."""

    @abstractmethod
    def multiply(self, x: Rows, dy: Rows) -> None:
        """Add the products of a step."""

    def add_up(self, shared: Var) -> None:
        """Sums of the first group ← those of all, half of them handed over at a time."""
        b, tile, n = self.b, self.tile, self.tile.split
        width = self.lanes if tile.sums % self.lanes == 0 else 1
        vectors = tile.sums // width
        while n > 1:
            half = (n + 1) // 2

            def at(slot: Expr, i: Expr) -> Expr:
                return vector(((slot * vectors + i) * tile.group + self.own) * width, width)

            giving = tirx.all(self.part >= half, self.part < n)
            with b.when(giving), b.loop(vectors, "i", "unrolled") as i:
                b.store(shared, load(self.held, vector(i * width, width)), at(self.part - half, i))
            with b.when(self.part < n - half), b.loop(vectors, "i", "unrolled") as i:
                here = vector(i * width, width)
                total = load(self.held, here) + load(shared, at(self.part, i))
                b.store(self.held, total, here)
            n = half


class Fma(Sums):
    """Multiply-adds of a thread: neighbouring threads have neighbouring vectors of columns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        b, tile = self.b, self.tile
        self.x_group = b.bind(self.own // tile.across, "row_group")
        self.dy_group = b.bind(self.own % tile.across, "column_group")
        self.x_held = b.alloc(tile.own_rows, self.dtype, "x_held", "local")
        self.dy_held = b.alloc(tile.own_columns, self.dtype, "dy_held", "local")

    def row(self, r: Expr) -> Expr:
        return (self.x_group + r // self.lanes * self.tile.down) * self.lanes + r % self.lanes

    def column(self, c: Expr) -> Expr:
        return (self.dy_group + c // self.lanes * self.tile.across) * self.lanes + c % self.lanes

    def at(self, r: Expr, c: Expr) -> Expr:
        return r * self.tile.own_columns + c

    def multiply(self, x: Rows, dy: Rows) -> None:
        b, tile, lanes = self.b, self.tile, self.lanes
        with b.loop(tile.depth, "k", "unrolled") as k:
            # groups take turns: what a warp reads at once lies in neighbouring lines
            line = k * tile.split + self.part
            for rows, held, count, place in (
                (x, self.x_held, tile.own_rows, self.row),
                (dy, self.dy_held, tile.own_columns, self.column),
            ):
                with b.loop(count // lanes, "v", "unrolled") as v:
                    value = load(rows.buffer, vector(rows.at(line, place(v * lanes)), lanes))
                    b.store(held, value, vector(v * lanes, lanes))
            with (
                b.loop(tile.own_rows, "r", "unrolled") as r,
                b.loop(tile.own_columns, "c", "unrolled") as c,
            ):
                product = load(self.x_held, r) * load(self.dy_held, c)
                b.store(self.held, load(self.held, self.at(r, c)) + product, self.at(r, c))


@dataclass
class Mma(Sums):
    """Fragments of a warp: 16 rows × 8 columns, of 8 words of pixels.

    Attributes:
        precision: see ``mma.py``.
    """

    precision: str

    def __post_init__(self) -> None:
        super().__post_init__()
        b, tile = self.b, self.tile
        warp = b.bind(self.own // 32, "warp")
        self.g = b.bind(self.thread % 32 // 4, "lane_row")
        self.q = b.bind(self.thread % 4, "lane_column")
        self.first_row = b.bind(warp // tile.across * (8 * tile.own_rows), "warp_row")
        self.first_column = b.bind(warp % tile.across * (4 * tile.own_columns), "warp_column")

    def row(self, r: Expr) -> Expr:
        return self.first_row + self.g + r * 8

    def column(self, c: Expr) -> Expr:
        return self.first_column + c // 2 * 8 + self.q * 2 + c % 2

    def at(self, r: Expr, c: Expr) -> Expr:
        fragment = r // 2 * (self.tile.own_columns // 2) + c // 2
        return fragment * 4 + r % 2 * 2 + c % 2

    def multiply(self, x: Rows, dy: Rows) -> None:
        b, tile = self.b, self.tile
        down, across = tile.own_rows // 2, tile.own_columns // 2
        x_held = b.alloc(4, self.dtype, "x_fragment", "local")
        dy_held = b.alloc(across * 2, self.dtype, "dy_fragments", "local")
        words = tile.depth // tile.pack
        with b.loop(words // 8, "k", "unrolled") as k:
            line = self.part * words + k * 8 + self.q
            with b.loop(across, "c", "unrolled") as c, b.loop(2, "upper", "unrolled") as upper:
                at = dy.at(line + upper * 4, self.first_column + c * 8 + self.g)
                b.store(dy_held, load(dy.buffer, at), c * 2 + upper)
            with b.loop(down, "r", "unrolled") as r:
                with b.loop(4, "i", "unrolled") as i:
                    at = x.at(line + i // 2 * 4, self.row(r * 2 + i % 2))
                    b.store(x_held, load(x.buffer, at), i)
                with b.loop(across, "c", "unrolled") as c:
                    sums = load(self.held, (r * across + c) * 4)
                    terms = load(x_held, b.at(0)), load(dy_held, c * 2)
                    b.emit(product(self.precision, sums, *terms))
