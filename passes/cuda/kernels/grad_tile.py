"""Tiles of the kernel of gradients to weights, and which one a stage gets.

The gradient is a matrix [taps · Cin, Cout], a sum over pixels. The model counts what a
multiprocessor issues and fetches; it is no measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from math import ceil, prod

from ttsnn.passes.cuda.gpu import Gpu
from ttsnn.passes.cuda.kernels.conv_load import width_of
from ttsnn.passes.cuda.kernels.mma import PACK
from ttsnn.passes.layers.config import Stage

__all__ = ["GradTile", "byte_width", "default_grad_tile"]

REGISTERS, SHARED, MOST = 65536, 200 * 1024, 176
"""Of a multiprocessor: registers and bytes of shared memory; registers that a thread may need."""

THREADS, MAX_SIDE, MAX_PADDING = 256, 256, 1.4
"""Most threads, rows and columns of a block; products of many multiply-adds for each useful one."""

SCHEDULERS = 4
"""Schedulers of a multiprocessor, each of which issues an instruction a cycle."""

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
        return ceil(self.height / (self.own_rows * (8 if self.pack else 1)))

    @property
    def across(self) -> int:
        """Threads (warps) of a group beside each other."""
        return ceil(self.columns / (self.own_columns * (4 if self.pack else 1)))

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
        x, dy = (ceil((n - 8) / 32) * 32 + 8 for n in (across[0] * 8, across[1] * 4))
        return x, dy

    def shared_elements(self) -> int:
        """Of the operands, or of the sums that half of the groups hand over in their place."""
        return max(self.lines * sum(self.strides), self.split // 2 * self.group * self.sums)


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
    return min(case.tiles(), key=case.time)


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

    def tiles(self) -> Iterator[GradTile]:
        """All that fit."""
        s, (wide_x, wide_y) = self.stage, self.widths
        n = len(s.taps)
        for taps in (t for t in range(1, n + 1) if n % t == 0):
            most = max(MAX_SIDE // taps, wide_x)
            for rows, columns in product(
                _shares(s.in_channels, wide_x, most),
                _shares(s.out_channels, max(wide_y, width_of(s.out_channels, 2)), MAX_SIDE),
            ):
                for tile in self._shapes(GradTile(taps, rows, columns, 4, 4, 8, 1)):
                    yield from self._with_parts(tile)

    def _shapes(self, tile: GradTile) -> Iterator[GradTile]:
        """With every tile of a thread, depth and split."""
        pack = 0 if self.precision == "fp32" else PACK[self.precision]
        if pack:
            sides = [(r, c) for r in (2, 4, 8) for c in (2, 4, 8, 16) if r * c <= 64]
            depths = [8 * pack, 16 * pack]
        else:
            sizes = (4, 8, 12, 16, 20) if self.lanes == 4 else (2, 4, 6, 8)
            sides = [(r, c) for r in sizes for c in sizes if r * c <= 25 * self.lanes]
            depths = [4, 8, 16]
        for own_rows, own_columns in sides:
            shape = replace(tile, own_rows=own_rows, own_columns=own_columns, pack=pack)
            if shape.group > THREADS:
                continue
            if not pack and shape.sums > 16 and shape.padding > MAX_PADDING:
                continue
            most = THREADS // shape.group
            for split, depth in product({most, ceil(most / 2), 1}, depths):
                new = replace(shape, split=split, depth=depth)
                fits = new.shared_elements() * self.itemsize <= self.gpu.shared
                if fits and new.threads >= 64 and self._registers(new) <= MOST:
                    yield new

    def _with_parts(self, tile: GradTile) -> Iterator[GradTile]:
        """As many blocks as run at once, or twice as many."""
        wanted = self.gpu.multiprocessors * self._resident(tile) / self._blocks(tile)
        steps = ceil(self.pixels / tile.step)
        yield from {
            replace(tile, parts=max(1, min(int(waves * wanted), steps // 2))) for waves in (1, 2)
        }

    @property
    def itemsize(self) -> int:
        return 8 if self.dtype == "float64" else 4

    def _blocks(self, tile: GradTile) -> int:
        s = self.stage
        channels = ceil(s.in_channels / tile.rows) * ceil(s.out_channels / tile.columns)
        return len(s.taps) // tile.taps * channels

    def _items(self, tile: GradTile) -> tuple[int, int]:
        """Pixels × vectors of channels that a thread fetches of x (a tap) and of dy."""
        per_line = ceil(tile.rows / self.widths[0]), ceil(tile.columns / self.widths[1])
        if max(per_line) > tile.threads:
            return 1000, 1000
        x, dy = (ceil(tile.lines / (tile.threads // n)) * max(1, tile.pack) for n in per_line)
        return x, dy

    def _registers(self, tile: GradTile) -> int:
        """Of a thread: sums, operands, what it fetches, and places."""
        x, dy = self._items(tile)
        words = self.itemsize // 4
        held = x * tile.taps * (max(1, self.widths[0] // 4) if self.x_dtype == "uint8" else 0)
        if self.x_dtype != "uint8":
            held = x * tile.taps * self.widths[0] * words
        held += dy * self.widths[1] * words
        return (tile.sums + tile.own_rows + tile.own_columns) * words + held + 2 * x + 32

    def _resident(self, tile: GradTile) -> int:
        """Blocks that a multiprocessor holds at once."""
        shared = tile.shared_elements() * self.itemsize + 1024
        registers = ceil(self._registers(tile) / 8) * 8 * ceil(tile.threads / 32) * 32
        limits = self.gpu.resident_threads // tile.threads, REGISTERS // registers
        return max(1, min(*limits, SHARED // shared))

    def time(self, tile: GradTile) -> float:
        """Cycles of both launches."""
        blocks, s = self._blocks(tile) * tile.parts, self.stage
        each = ceil(blocks / self.gpu.multiprocessors)
        together = min(each, self._resident(tile))
        warps = ceil(tile.threads / 32)
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
        step = max(together * max(busy, fetched), ARRIVAL + fetch) + BARRIERS
        step += together * min(busy, fetched) / 4  # not all of it at the same time
        steps = ceil(ceil(self.pixels / tile.step) / tile.parts)
        added = 8 * tile.sums * tile.split.bit_length()
        total: float = ceil(each / together) * (START + steps * step + added)
        if tile.parts > 1:
            elements = len(s.taps) * s.in_channels * s.out_channels * tile.parts
            moved = 4 * elements * self.itemsize / (self.gpu.multiprocessors * self.gpu.l2_bytes)
            total += LAUNCH + moved
        return total

    def _multiply(self, tile: GradTile) -> float:
        """Cycles of a scheduler for a warp's products of one step."""
        if tile.pack:
            down, across = tile.own_rows // 2, tile.own_columns // 2
            products, loads = FRAGMENT * down * across, SCHEDULERS * (4 * down + 2 * across)
            return tile.depth / (8 * tile.pack) * max(products, loads)
        slow = 2 if self.lanes == 2 else 128 / self.gpu.lanes
        vectors = (tile.own_rows + tile.own_columns) / self.lanes
        # an access to shared memory of 16 bytes keeps it for two cycles, for all schedulers
        return tile.depth * max(tile.sums * slow + vectors, 2 * SCHEDULERS * vectors)


def _shares(channels: int, width: int, most: int) -> list[int]:
    """Equal shares of the channels, in whole vectors, at most ``most`` of them."""
    fewest = ceil(channels / most)
    counts = {n for n in range(fewest, fewest + 5) if n == fewest or channels / n >= 16}
    counts |= {ceil(channels / side) for side in (64, 128) if side <= min(channels, most)}
    sizes = {ceil(ceil(channels / n) / width) * width for n in counts}
    return sorted(size for size in sizes if size <= most)
