"""Tiles of the convolution kernel, and which one a layer gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod

from ttsnn.passes.cuda.gpu import Gpu
from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec, Segment

__all__ = ["ConvTile", "default_tile"]

MAX_TIME = 8
"""Timesteps whose sums a thread holds at once."""

SCHEDULERS = 4
"""Schedulers of a multiprocessor, each of which issues an instruction a cycle."""

START, ARRIVAL, BARRIERS, FETCH = 1500, 400, 150, 12
"""Cycles, guessed: until a block's first operands are there; from asking the second-level cache
for operands to having them; of the barriers of a step; instructions that fetch a vector."""

MAX_SPLIT, MAX_THREADS, MAX_HELD = 16, 512, 88
"""Groups among which a sum is split, threads of all of them, and registers for a thread's sums and
the operands that it fetches: with more some are spilled."""


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
    """

    time: int
    pixels: int
    channels: int
    depth: int
    rows: int
    columns: int
    split: int = 1

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
        """Elements between pixels in shared memory: a vector more, against bank conflicts."""
        return self.depth + lanes

    @property
    def w_stride(self) -> int:
        """Elements between the weights of input channels there."""
        return self.channels + 8

    def shared_rows(self, lanes: int) -> tuple[int, int]:
        """Elements that a group has in shared memory, of the input and of the weight."""
        return self.time * self.pixels * self.x_stride(lanes), self.depth * self.w_stride

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of a block."""
        operands = self.split * sum(self.shared_rows(16 // itemsize))
        return max(operands, (self.split - 1) * self.group * self.sums) * itemsize


def default_tile(spec: ConvSpec, batch: int | None, gpu: Gpu) -> ConvTile:
    """The tile with the least modelled time.

    The time of a block is that of its multiply-adds and of fetching its operands. The first is
    longer the more loads from shared memory each needs (the smaller the tile of a thread) and
    where few warps hide latency, the second the smaller the tile of the block is. Blocks are dealt
    out to the multiprocessors in rounds. A model, not a measurement.

    Where the threads of all blocks do not fill the GPU, as at batch 1, it is the steps of the sum
    that take time, and another model chooses (:func:`_latency`), also among split sums.
    """
    images = (batch or 8) * (spec.T if spec.folded else 1)
    pixels = images * prod(spec.stage.out_size)
    steps = 1 if spec.folded else spec.T
    best = min(_tiles(spec, gpu), key=lambda t: _time(t, spec, pixels, steps, gpu))
    threads = _blocks(best, spec, pixels) * best.threads
    if batch is None or threads >= gpu.multiprocessors * gpu.hiding_threads:
        return best
    return min(_split_tiles(spec, gpu), key=lambda t: _latency(t, spec, pixels, gpu))


def _blocks(tile: ConvTile, spec: ConvSpec, pixels: int) -> int:
    return ceil(pixels / tile.pixels) * ceil(spec.stage.out_channels / tile.channels)


def _split_tiles(spec: ConvSpec, gpu: Gpu) -> Iterator[ConvTile]:
    """Deeper steps, smaller tiles, and sums split so often that some group has a step less."""
    itemsize = 8 if spec.dtype == "float64" else 4
    for plain, deeper in product(_tiles(spec, gpu, 16), (1, 2)):
        tile = replace(plain, depth=plain.depth * deeper)
        if any(tile.group < tile.depth // _width(s, itemsize) for s in spec.segments):
            continue  # too few threads to fetch a row
        held = tile.sums * itemsize // 4 + 4 * _fetches(tile, 16 // itemsize)
        if held > MAX_HELD:
            continue
        before = 0
        for split in range(1, MAX_SPLIT + 1):
            new = replace(tile, split=split)
            steps = _steps(new, spec)
            if new.threads > MAX_THREADS or new.shared_bytes(itemsize) > gpu.shared:
                break
            if steps != before and new.threads % 32 == 0:
                yield new
                before = steps


def _width(part: Segment, itemsize: int) -> int:
    """Elements that a thread fetches at once."""
    lanes = 16 // itemsize
    return lanes if part.stage.in_channels % lanes == 0 else 1


def _tiles(spec: ConvSpec, gpu: Gpu, fewest: int = 32) -> Iterator[ConvTile]:
    """Tiles of at least ``fewest`` threads that fit."""
    double = spec.dtype == "float64"
    time = _time_tile(spec)
    if spec.precision != "fp32":
        yield from _fragments(time)
        return
    for outputs in (4, 8) if double else (4, 8, 16):
        rows = max(1, outputs // time)
        for pixels in (4, 8, 16, 32, 64, 128):
            for channels in (16, 32, 64, 128):
                tile = ConvTile(time, pixels, channels, 8 if double else 16, rows, 4)
                if pixels < rows or pixels % rows or not fewest <= tile.threads <= 256:
                    continue
                if (
                    tile.threads % fewest == 0
                    and tile.shared_bytes(8 if double else 4) <= gpu.shared
                ):
                    yield tile


def _fragments(time: int) -> Iterator[ConvTile]:
    """Tiles of whole fragments of 16 pixels × 8 channels, see :class:`Mma`."""
    for rows in (2, 4):
        for columns in (2, 4, 8):
            for pixels in (16, 32, 64, 128):
                for channels in (16, 32, 64, 128):
                    tile = ConvTile(time, pixels, channels, 16, rows, columns)
                    whole = pixels % (8 * rows) == 0 and channels % (4 * columns) == 0
                    small = time * rows * columns <= 64
                    if whole and small and 32 <= tile.threads <= 256:
                        yield tile


def _time_tile(spec: ConvSpec) -> int:
    """The most timesteps that divide every segment; one where its sums serve all of them."""
    if spec.folded or any(s.still for s in spec.segments):
        return 1
    lengths = [s.end - s.begin for s in spec.segments]
    return next(t for t in range(MAX_TIME, 0, -1) if all(n % t == 0 for n in lengths))


def _time(tile: ConvTile, spec: ConvSpec, pixels: int, steps: int, gpu: Gpu) -> float:
    outputs = tile.time * tile.rows
    blocks = _blocks(tile, spec, pixels)
    work = sum(
        len(s.stage.taps)
        * (ceil(s.stage.in_channels / tile.depth) * tile.depth)
        * (1 if s.still or spec.folded else s.end - s.begin)
        for s in spec.segments
    )
    # cycles of a block: its multiply-adds, and its operands on their way from the cache
    busy = tile.pixels * tile.channels * work / gpu.lanes
    itemsize = 8 if spec.dtype == "float64" else 4
    fetched = (tile.time * tile.pixels + tile.channels) * itemsize * work / tile.time
    fetching = fetched / gpu.l2_bytes
    loads = 1 + 2.0 * (outputs + tile.columns) / (outputs * tile.columns)
    # blocks that share a multiprocessor hide each other's latency
    resident = min(max(1, blocks / gpu.multiprocessors), gpu.resident_threads / tile.threads)
    hidden = min(1.0, resident * tile.threads / gpu.hiding_threads)
    if spec.precision != "fp32":
        busy /= 8  # tensor cores wait for shared memory most of the time
    rounds = max(1.0, blocks / gpu.multiprocessors)
    rounds = ceil(rounds) if rounds < 8 else rounds
    return rounds * (busy * loads / hidden + fetching)


def _steps(tile: ConvTile, spec: ConvSpec) -> int:
    """Steps of the sums of a block, one after the other."""
    return sum(
        ceil(len(s.stage.taps) * ceil(s.stage.in_channels / tile.depth) / tile.split)
        * (1 if s.still or spec.folded else (s.end - s.begin) // tile.time)
        for s in spec.segments
    )


def _fetches(tile: ConvTile, lanes: int) -> int:
    """Vectors that a thread fetches for a step."""
    rows = tile.time * tile.pixels, tile.channels
    return sum(ceil(r * tile.depth / lanes / tile.group) for r in rows)


def _latency(tile: ConvTile, spec: ConvSpec, pixels: int, gpu: Gpu) -> float:
    """Cycles of a launch whose blocks all run at the same time, or nearly.

    A step lasts until the next operands are there, or until its instructions are issued, or its
    operands fetched; between two steps are the barriers. A model, not a measurement.
    """
    itemsize = 8 if spec.dtype == "float64" else 4
    lanes = 16 // itemsize
    each = ceil(_blocks(tile, spec, pixels) / gpu.multiprocessors)
    resident = min(each, gpu.resident_threads // tile.threads)
    warps = max(1.0, resident * tile.threads / 32 / SCHEDULERS)  # of a scheduler
    multiplies = tile.depth * tile.sums * (1 if spec.precision == "fp32" else 0.125)
    loads = tile.depth / lanes * (tile.columns + tile.sums / tile.columns)
    instructions = multiplies + 2 * loads + FETCH * _fetches(tile, lanes)
    operands = tile.split * (tile.time * tile.pixels + tile.channels) * tile.depth
    fetched = resident * operands * itemsize / gpu.l2_bytes
    step = BARRIERS + max(ARRIVAL, instructions * warps, fetched)
    added = (tile.split - 1) * tile.sums / lanes * 8 + (BARRIERS if tile.split > 1 else 0)
    rounds = ceil(each / resident)
    return rounds * (START + _steps(tile, spec) * step + added)
