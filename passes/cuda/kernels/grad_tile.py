"""Tiles of the kernel of gradients to weights, and which one a stage gets.

The gradient is a matrix [taps · Cin, Cout], a sum over pixels. The model counts what a
multiprocessor issues and fetches; it is no measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import ceil, prod

import numpy as np

from ttsnn.passes.cuda.gpu import SCHEDULERS, Gpu
from ttsnn.passes.cuda.kernels.conv_load import width_of
from ttsnn.passes.cuda.kernels.many import at, axes, ceil_div, combined, larger, least
from ttsnn.passes.cuda.kernels.mma import PACK
from ttsnn.passes.layers.config import Stage

__all__ = ["GradTile", "byte_width", "default_grad_tile"]

SHARED, MAX_REGISTERS = 200 * 1024, 176
"""Bytes of shared memory of a multiprocessor; registers that a thread may need."""

THREADS, MAX_SIDE, MAX_PADDING = 256, 256, 1.4
"""Most threads, rows and columns of a block; products of many multiply-adds for each useful one."""

START, ARRIVAL, BARRIERS, LAUNCH, WAITING = 2500, 700, 60, 4000, 64
"""Cycles, guessed: until a block's first operands are there; from asking memory for operands to
having them; of the barriers of a step; of the second launch. The share of time that instructions
wait, times the threads of a multiprocessor."""

FRAGMENT = 8
"""Cycles in which a scheduler's tensor core multiplies two fragments, by ``mma.sync``."""


@dataclass(frozen=True)
class GradTile:
    """How a block works on its part of the gradient.

    A block has ``taps`` · ``rows`` × ``columns`` of the gradient. Groups of its threads take
    different pixels, and their sums are added up; so do the blocks of different parts.

    Attributes:
        taps: taps of a block; a divisor of their number.
        rows: input channels of a block, of each tap.
        columns: output channels of a block.
        own_rows, own_columns: of a thread; with ``pack`` of all its fragments.
        depth: pixels that a group multiplies in a step.
        split: groups of threads.
        parts: blocks that share the pixels.
        pack: pixels in a word of shared memory on tensor cores, 0 for multiply-adds.
    """

    taps: int
    rows: int
    columns: int
    own_rows: int
    own_columns: int
    depth: int
    split: int
    parts: int = 1
    pack: int = 0

    @property
    def height(self) -> int:
        """Rows of the block's matrix."""
        return self.taps * self.rows

    @property
    def down(self) -> int:
        """Threads (warps on tensor cores) of a group below each other."""
        return ceil_div(self.height, self.own_rows * (8 if self.pack else 1))

    @property
    def across(self) -> int:
        """Threads (warps) of a group beside each other."""
        return ceil_div(self.columns, self.own_columns * (4 if self.pack else 1))

    @property
    def group(self) -> int:
        """Threads of a group."""
        return self.down * self.across * (32 if self.pack else 1)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.group * self.split

    @property
    def padding(self) -> float:
        """Products of a block for each that the gradient needs."""
        height = self.down * self.own_rows * (8 if self.pack else 1)
        width = self.across * self.own_columns * (4 if self.pack else 1)
        return height * width / (self.height * self.columns)

    @property
    def sums(self) -> int:
        """Sums of a thread."""
        return self.own_rows * self.own_columns

    @property
    def step(self) -> int:
        """Pixels of a block's step."""
        return self.depth * self.split

    @property
    def lines(self) -> int:
        """Rows of shared memory that a step fills: its pixels, or words of them."""
        return self.step // max(1, self.pack)

    @property
    def strides(self) -> tuple[int, int]:
        """Elements between these lines, of x and of dy."""
        across = self.own_rows * self.down, self.own_columns * self.across
        if not self.pack:
            return across
        # four lines of eight words, as fragments are read, then lie in different banks
        x, dy = (ceil_div(n - 8, 32) * 32 + 8 for n in (across[0] * 8, across[1] * 4))
        return x, dy

    def shared_elements(self) -> int:
        """Of the operands, or of the sums that half of the groups hand over in their place."""
        return larger(self.lines * sum(self.strides), self.split // 2 * self.group * self.sums)


def byte_width(channels: int) -> int:
    """Channels that one access fetches of spikes as bytes."""
    return next(v for v in (16, 4, 1) if channels % v == 0)


@cache
def default_grad_tile(
    stage: Stage, images: int, dtype: str, x_dtype: str, precision: str, gpu: Gpu
) -> GradTile:
    """The tile with the least modelled time.

    Args:
        stage: the convolution.
        images: number of images, of all timesteps.
        dtype, x_dtype: of the gradients and of x.
        precision: as in ``mma.py``.
        gpu: which one.
    """
    case = _Case(stage, images * prod(stage.out_size), dtype, x_dtype, precision, gpu)
    tiles = case.tiles()
    return least(tiles, case.time(tiles))


@dataclass(frozen=True)
class _Case:
    stage: Stage
    pixels: int
    dtype: str
    x_dtype: str
    precision: str
    gpu: Gpu

    @cached_property
    def lanes(self) -> int:
        return self.gpu.vector(self.dtype)

    @cached_property
    def widths(self) -> tuple[int, int]:
        """Elements of an access to x and dy."""
        cin, cout = self.stage.in_channels, self.stage.out_channels
        x = byte_width(cin) if self.x_dtype == "uint8" else width_of(cin, self.lanes)
        return x, width_of(cout, self.lanes)

    def tiles(self) -> GradTile:
        """All that fit; see ``many.py``."""
        tiles = self._of_threads(*np.array(self._matrices()).T[:, :, None])
        depths = [8 * tiles.pack, 16 * tiles.pack] if tiles.pack else [4, 8, 16]
        share, depth = axes([1, 2, THREADS], depths)
        tiles = at(tiles, np.s_[:, None, None])
        # as many groups as fit, half of them, or one
        split = ceil_div(THREADS // tiles.group, share)
        tiles = combined(replace(tiles, split=split, depth=depth))
        tiles = at(tiles, tiles.threads >= larger(64, larger(*self._per_line(tiles))))
        fits = tiles.shared_elements() * self.itemsize <= self.gpu.shared
        tiles = at(tiles, fits & (self._registers(tiles) <= MAX_REGISTERS))
        # as many blocks as run at once, or twice as many
        (waves,) = axes([1, 2])
        tiles = at(tiles, np.s_[:, None])
        wanted = waves * self.gpu.multiprocessors * self._resident(tiles) // self._blocks(tiles)
        parts = np.minimum(wanted, ceil_div(self.pixels, tiles.step) // 2)
        return combined(replace(tiles, parts=np.maximum(1, parts)))

    def _matrices(self) -> list[tuple[int, int, int]]:
        """Taps, rows and columns of a block."""
        s, (wide_x, wide_y) = self.stage, self.widths
        n = len(s.taps)
        across = _shares(s.out_channels, max(wide_y, width_of(s.out_channels, 2)), MAX_SIDE)
        return [
            (taps, rows, columns)
            for taps in range(1, n + 1)
            if n % taps == 0
            for rows in _shares(s.in_channels, wide_x, max(MAX_SIDE // taps, wide_x))
            for columns in across
        ]

    def _of_threads(self, taps: int, rows: int, columns: int) -> GradTile:
        """With every tile of a thread, of one group that is not too large."""
        pack = 0 if self.precision == "fp32" else PACK[self.precision]
        if pack:
            sides = [(r, c) for r in (2, 4, 8) for c in (2, 4, 8, 16) if r * c <= 64]
        else:
            sizes = (4, 8, 12, 16, 20) if self.lanes == 4 else (2, 4, 6, 8)
            sides = [(r, c) for r in sizes for c in sizes if r * c <= 25 * self.lanes]
        own_rows, own_columns = np.array(sides).T
        tiles = combined(GradTile(taps, rows, columns, own_rows, own_columns, 1, 1, pack=pack))
        useful = bool(pack) | (tiles.sums <= 16) | (tiles.padding <= MAX_PADDING)
        return at(tiles, useful & (tiles.group <= THREADS))

    @property
    def itemsize(self) -> int:
        return 8 if self.dtype == "float64" else 4

    def _blocks(self, tile: GradTile) -> int:
        s = self.stage
        channels = ceil_div(s.in_channels, tile.rows) * ceil_div(s.out_channels, tile.columns)
        return len(s.taps) // tile.taps * channels

    def _per_line(self, tile: GradTile) -> tuple[int, int]:
        """Vectors of channels of x (a tap) and of dy; threads of a block are no fewer."""
        return ceil_div(tile.rows, self.widths[0]), ceil_div(tile.columns, self.widths[1])

    def _items(self, tile: GradTile) -> tuple[int, int]:
        """Pixels × vectors of channels that a thread fetches of x (a tap) and of dy."""
        lines, pack = tile.lines, max(1, tile.pack)
        x, dy = (ceil_div(lines, tile.threads // n) * pack for n in self._per_line(tile))
        return x, dy

    def _registers(self, tile: GradTile) -> int:
        """Of a thread: sums, operands, what it fetches, and places."""
        x, dy = self._items(tile)
        words, (wide_x, wide_y) = self.itemsize // 4, self.widths
        wide_x = max(1, wide_x // 4) if self.x_dtype == "uint8" else wide_x * words
        held = x * tile.taps * wide_x + dy * wide_y * words
        return (tile.sums + tile.own_rows + tile.own_columns) * words + held + 2 * x + 32

    def _resident(self, tile: GradTile) -> int:
        """Blocks that a multiprocessor holds at once."""
        shared = tile.shared_elements() * self.itemsize + 1024
        registers = ceil_div(self._registers(tile), 8) * 8 * ceil_div(tile.threads, 32) * 32
        limits = self.gpu.resident_threads // tile.threads, self.gpu.registers // registers
        return larger(1, np.minimum(np.minimum(*limits), SHARED // shared))

    def time(self, tile: GradTile) -> np.ndarray:
        """Cycles of both launches."""
        blocks, s = self._blocks(tile) * tile.parts, self.stage
        each = ceil_div(blocks, self.gpu.multiprocessors)
        together = np.minimum(each, self._resident(tile))
        warps = ceil_div(tile.threads, 32)
        x, dy = self._items(tile)
        # instructions of a thread in a step
        places = 1 if s.in_size == s.out_size and len(s.taps) == 1 else 9
        stores = max(1, self.widths[0] // self.lanes)
        bytes_ = self.widths[0] if self.x_dtype == "uint8" else 0
        fetch = x * (places + tile.taps * (3 + stores + 2 * bytes_)) + dy * 4
        multiply = self._multiply(tile)
        # few threads wait for each other, and for shared memory
        waiting = 1 + WAITING / (together * tile.threads)
        busy = (fetch + multiply) * warps / SCHEDULERS * waiting
        # taps of one block find in the first-level cache what the first of them fetched
        size = tile.rows * (1 + (tile.taps - 1) / 4) * (1 if bytes_ else self.itemsize)
        fetched = tile.step * (size + tile.columns * self.itemsize) / self.gpu.l2_bytes
        step = np.maximum(together * np.maximum(busy, fetched), ARRIVAL + fetch) + BARRIERS
        step += together * np.minimum(busy, fetched) / 4  # not all of it at the same time
        steps = ceil_div(ceil_div(self.pixels, tile.step), tile.parts)
        added = 8 * tile.sums * np.frexp(tile.split)[1]  # by halves of the groups
        elements = len(s.taps) * s.in_channels * s.out_channels * tile.parts
        moved = 4 * elements * self.itemsize / (self.gpu.multiprocessors * self.gpu.l2_bytes)
        launches = ceil_div(each, together) * (START + steps * step + added)
        return launches + (tile.parts > 1) * (LAUNCH + moved)

    def _multiply(self, tile: GradTile) -> np.ndarray:
        """Cycles of a scheduler for a warp's products of one step."""
        if tile.pack:
            down, across = tile.own_rows // 2, tile.own_columns // 2
            products, loads = FRAGMENT * down * across, SCHEDULERS * (4 * down + 2 * across)
            return tile.depth / (8 * tile.pack) * np.maximum(products, loads)
        slow = 2 if self.lanes == 2 else 128 / self.gpu.lanes
        vectors = (tile.own_rows + tile.own_columns) / self.lanes
        # an access to shared memory of 16 bytes keeps it for two cycles, for all schedulers
        return tile.depth * np.maximum(tile.sums * slow + vectors, 2 * SCHEDULERS * vectors)


def _shares(channels: int, width: int, most: int) -> list[int]:
    """Equal shares of the channels, in whole vectors, at most ``most`` of them."""
    fewest = ceil(channels / most)
    counts = {n for n in range(fewest, fewest + 5) if n == fewest or channels / n >= 16}
    counts |= {ceil(channels / side) for side in (64, 128) if side <= min(channels, most)}
    sizes = {ceil(ceil(channels / n) / width) * width for n in counts}
    return sorted(size for size in sizes if size <= most)
