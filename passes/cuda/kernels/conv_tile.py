"""Tiles of the convolution kernel, and which one a layer gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ttsnn.passes.cuda.gpu import SCHEDULERS, Gpu
from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec, phases
from ttsnn.passes.cuda.kernels.many import at, axes, ceil_div, combined, larger, least
from ttsnn.passes.cuda.kernels.mma import PACK, WORDS

__all__ = ["ConvTile", "default_tile"]

MAX_TIME = 8
"""Timesteps whose sums a thread holds at once."""

START, ARRIVAL, BARRIERS = 1500, 400, 150
"""Cycles, guessed: until a block's first operands are there; from asking the second-level cache
for operands to having them; of the barriers of a step."""

FETCH, SHARED_LOAD, WORD, PRODUCT, STEP = 10, 3, 4, 3, 20
"""Instructions of a step, counted in machine code, or guessed where bandwidth counts: to fetch a
vector and put it into shared memory; what a load of a vector from there, one of a word, and a
product on tensor cores stand for; the rest."""

BUSY_WARPS = 3.0
"""Warps that a scheduler needs so that one of them can always issue an instruction, guessed."""

MAX_SPLIT, MAX_THREADS, MAX_HELD = 16, 512, 88
"""Groups among which a sum is split, threads of all of them, and registers for a thread's sums and
the operands that it fetches: with more some are spilled."""

MAX_REGISTERS = 240
"""Of a thread, as far as :func:`_registers` knows them."""


@dataclass(frozen=True)
class ConvTile:
    """How a block works on its part of the result.

    A block computes ``pixels`` × ``channels`` for ``time`` timesteps at once, a thread
    ``rows`` pixels × ``columns`` channels of them.

    Attributes:
        time: timesteps of a step.
        pixels: pixels of a block.
        channels: output channels of a block.
        depth: input channels that are in shared memory at once.
        rows, columns: of a thread.
        split: groups of threads among which the sum is split, see ``conv_split.py``; each has
            a part of the operands in shared memory.
        pack: input channels in an element of shared memory, ``PACK`` of ``mma.py``.
    """

    time: int
    pixels: int
    channels: int
    depth: int
    rows: int
    columns: int
    split: int = 1
    pack: int = 1

    @property
    def group(self) -> int:
        """Threads that make one sum of each result."""
        return (self.pixels // self.rows) * (self.channels // self.columns)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.group * self.split

    @property
    def sums(self) -> int:
        """Sums that a thread holds."""
        return self.time * self.rows * self.columns

    def x_stride(self, lanes: int) -> int:
        """Elements between pixels in shared memory: an odd number of vectors, for the banks."""
        return (self.depth // self.pack // lanes | 1) * lanes

    @property
    def w_stride(self) -> int:
        """Elements between the weights of input channels there: an odd number of eights."""
        return (ceil_div(self.channels, 8) | 1) * 8

    def shared_rows(self, lanes: int) -> tuple[int, int]:
        """Elements that a group has in shared memory, of the input and of the weight."""
        depth = self.depth // self.pack
        return self.time * self.pixels * self.x_stride(lanes), depth * self.w_stride

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of a block."""
        operands = self.split * sum(self.shared_rows(16 // itemsize))
        return larger(operands, (self.split - 1) * self.group * self.sums) * itemsize


def default_tile(spec: ConvSpec, batch: int | None, gpu: Gpu) -> ConvTile:
    """The tile with the least modelled time, see :func:`_cycles`.

    Where the threads of all blocks do not fill the GPU, as at batch 1, it is the steps of the sum
    that take time, and split sums are looked at too.
    """
    images = (batch or 8) * (spec.T if spec.folded else 1)
    parts = [(p.spec, images * prod(p.spec.stage.out_size)) for p in phases(spec)]

    def fastest(tiles: ConvTile) -> ConvTile:
        return least(tiles, sum(_cycles(tiles, part, pixels, gpu) for part, pixels in parts))

    best = fastest(_tiles(spec, gpu))
    threads = sum(_blocks(best, part, pixels) for part, pixels in parts) * best.threads
    if batch is None or threads >= gpu.multiprocessors * gpu.hiding_threads:
        return best
    return fastest(_split_tiles(spec, gpu))


def _blocks(tile: ConvTile, spec: ConvSpec, pixels: int) -> int:
    return ceil_div(pixels, tile.pixels) * ceil_div(spec.stage.out_channels, tile.channels)


def _split_tiles(spec: ConvSpec, gpu: Gpu) -> ConvTile:
    """Deeper steps, smaller tiles, and split sums; see ``many.py``."""
    itemsize = _itemsize(spec)
    (factor,), (split,) = axes([1, 2]), axes(range(1, MAX_SPLIT + 1))
    plain = at(_tiles(spec, gpu, 16), np.s_[:, None])
    deeper = combined(replace(plain, depth=plain.depth * factor))
    held = deeper.sums * itemsize // 4 + 4 * _fetches(deeper, 16 // itemsize)
    deeper = at(deeper, _fetchable(deeper, spec) & (held <= MAX_HELD))
    tiles = combined(replace(at(deeper, np.s_[:, None]), split=split))
    return at(
        tiles,
        (tiles.threads <= MAX_THREADS)
        & (tiles.threads % 32 == 0)
        & (tiles.shared_bytes(itemsize) <= gpu.shared),
    )


def _itemsize(spec: ConvSpec) -> int:
    return 8 if spec.dtype == "float64" else 4


def _fetchable(tile: ConvTile, spec: ConvSpec) -> bool:
    """Whether a group has threads enough to fetch a row."""
    lanes = 16 // _itemsize(spec)
    widths = [lanes if s.stage.in_channels % lanes == 0 else 1 for s in spec.segments]
    return tile.group >= tile.depth // min(widths)


def _tiles(spec: ConvSpec, gpu: Gpu, fewest: int = 32) -> ConvTile:
    """Tiles of at least ``fewest`` threads that fit; see ``many.py``."""
    itemsize, pack = _itemsize(spec), PACK[spec.precision]
    time = _time_tile(spec)
    if spec.precision == "fp32":
        own, units, unit = (_rows(time, itemsize), [4, 8]), (1, 1), (4, 4)
    else:  # whole fragments of 16 pixels × 8 channels, see :class:`Mma`
        own, units, unit = ([2, 4, 8], [2, 4, 6, 8, 12]), (8, 4), (8, WORDS * pack)
    rows, columns, channels, depth, pixels = axes(
        *own,
        _channels(spec.stage.out_channels, unit[0]),
        _depths(spec, unit[1]),
        [4, 8, 16, 32, 64, 128, 256],
    )
    tiles = combined(ConvTile(time, pixels, channels, depth, rows, columns, pack=pack))
    tiles = at(
        tiles,
        (tiles.pixels % (units[0] * tiles.rows) == 0)
        & (tiles.channels % (units[1] * tiles.columns) == 0),
    )
    return at(
        tiles,
        (tiles.sums * itemsize <= 256)
        & (tiles.threads <= 256)
        & (tiles.threads % fewest == 0)
        & (tiles.shared_bytes(itemsize) <= gpu.shared)
        & (_registers(tiles, itemsize) <= MAX_REGISTERS)
        & _fetchable(tiles, spec),
    )


def _rows(time: int, itemsize: int) -> list[int]:
    """The most first, for of equally fast tiles those with columns of one vector are taken."""
    sums = (4, 8) if itemsize == 8 else (4, 8, 16)
    return sorted({max(1, n // time) for n in sums}, reverse=True)


def _channels(channels: int, unit: int) -> list[int]:
    """Widths of a block: the usual ones, and parts of the channels that leave few lanes idle."""
    parts = {_up(ceil_div(channels, n), unit) for n in range(1, channels + 1)}
    return sorted({16, 32, 64, 128} | {p for p in parts if min(16, channels) <= p <= 128})


def _depths(spec: ConvSpec, unit: int) -> list[int]:
    """Depths of a step: parts of the input channels of about equal size."""
    sizes = {s.stage.in_channels for s in spec.segments}
    parts = {_up(ceil_div(size, n), unit) for size in sizes for n in range(1, size + 1)}
    return sorted(p for p in parts if p <= 32 and (p >= 8 or p == max(parts)))


def _up(size: int, multiple: int) -> int:
    return ceil_div(size, multiple) * multiple


def _time_tile(spec: ConvSpec) -> int:
    """The most timesteps that divide every segment; one where its sums serve all of them."""
    if spec.folded or any(s.still for s in spec.segments):
        return 1
    lengths = [s.end - s.begin for s in spec.segments]
    return next(t for t in range(MAX_TIME, 0, -1) if all(n % t == 0 for n in lengths))


def _steps(tile: ConvTile, spec: ConvSpec) -> int:
    """Steps of the sums of a block, one after the other."""
    return sum(
        ceil_div(len(s.stage.taps) * ceil_div(s.stage.in_channels, tile.depth), tile.split)
        * (1 if s.still or spec.folded else (s.end - s.begin) // tile.time)
        for s in spec.segments
    )


def _fetches(tile: ConvTile, lanes: int) -> int:
    """Vectors that a thread fetches for a step."""
    rows = tile.time * tile.pixels, tile.channels
    return sum(ceil_div(r * tile.depth, lanes * tile.group) for r in rows)


def _registers(tile: ConvTile, itemsize: int) -> float:
    """Of a thread, fitted to what nvcc takes for a dozen kernels (within a tenth or two)."""
    return 50 + 1.6 * tile.sums * itemsize / 4 + 4 * _fetches(tile, 16 // itemsize)


def _instructions(tile: ConvTile, spec: ConvSpec) -> float:
    """Of a warp in a step."""
    lanes = 16 // _itemsize(spec)
    fetching = FETCH * _fetches(tile, lanes) + STEP
    outputs = tile.time * tile.rows
    if spec.precision == "fp32":
        loads = tile.depth / lanes * (tile.columns + outputs)
        return tile.depth * tile.sums + SHARED_LOAD * loads + fetching
    # of fragments, which are two rows and two columns of a thread; loads are of words
    products = tile.depth / (WORDS * tile.pack)
    return products * (PRODUCT * tile.sums / 4 + WORD * (2 * outputs + tile.columns)) + fetching


def _cycles(tile: ConvTile, spec: ConvSpec, pixels: int, gpu: Gpu) -> np.ndarray:
    """Cycles of a launch. A model from data sheets and machine code, not a measurement.

    A step of the sum lasts until the next operands are there, or until its instructions are
    issued, or its operands fetched; between two steps are the barriers. Blocks are dealt out to
    the multiprocessors, and as many run side by side as registers and shared memory allow.
    """
    itemsize = _itemsize(spec)
    blocks = _blocks(tile, spec, pixels) / gpu.multiprocessors
    each = np.where(blocks < 8, np.ceil(blocks), blocks)
    limits = (
        gpu.resident_threads // tile.threads,
        gpu.registers // (_registers(tile, itemsize) * tile.threads),
        gpu.shared_together // tile.shared_bytes(itemsize),
    )
    together = np.maximum(1, np.minimum.reduce(limits))
    instructions = _instructions(tile, spec)
    x_size = 1 if all(s.x_dtype == "uint8" for s in spec.segments) else itemsize
    operands = tile.time * tile.pixels * x_size + tile.channels * itemsize
    fetched = tile.split * operands * tile.depth / gpu.l2_bytes
    added = (tile.split - 1) * tile.sums * itemsize / 16 * 8 + BARRIERS * (tile.split > 1)
    steps = _steps(tile, spec)

    def cycles(resident: np.ndarray) -> np.ndarray:
        warps = resident * tile.threads / 32 / SCHEDULERS  # of a scheduler
        issued = instructions * np.maximum(warps, BUSY_WARPS)
        busy = np.maximum(ARRIVAL, np.maximum(issued, fetched * resident))
        return START + steps * (BARRIERS + busy) + added

    whole, rest = np.divmod(each, together)
    few = whole * cycles(together) + (rest > 0) * cycles(rest)
    many = np.maximum(1, each / together) * cycles(np.minimum(each, together))
    return np.where(blocks < 8, few, many)
