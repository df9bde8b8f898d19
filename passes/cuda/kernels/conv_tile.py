"""Tiles of the convolution kernel, and which one a layer gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

from ttsnn.passes.cuda.gpu import Gpu
from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec

__all__ = ["ConvTile", "default_tile"]

MAX_TIME = 8
"""Timesteps whose sums a thread holds at once."""


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
    """

    time: int
    pixels: int
    channels: int
    depth: int
    rows: int
    columns: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (self.pixels // self.rows) * (self.channels // self.columns)

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of a block."""
        pad = 16 // itemsize
        a = self.time * self.pixels * (self.depth + pad)
        return (a + self.depth * (self.channels + 8)) * itemsize


def default_tile(spec: ConvSpec, batch: int | None, gpu: Gpu) -> ConvTile:
    """The tile with the least modelled time.

    The time of a block is that of its multiply-adds and of fetching its operands. The first is
    longer the more loads from shared memory each needs (the smaller the tile of a thread) and
    where few warps hide latency, the second the smaller the tile of the block is. Blocks are dealt
    out to the multiprocessors in rounds. A model, not a measurement.
    """
    images = (batch or 8) * (spec.T if spec.folded else 1)
    pixels = images * prod(spec.stage.out_size)
    steps = 1 if spec.folded else spec.T
    return min(_tiles(spec, gpu), key=lambda t: _time(t, spec, pixels, steps, gpu))


def _tiles(spec: ConvSpec, gpu: Gpu) -> Iterator[ConvTile]:
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
                if pixels < rows or pixels % rows or not 32 <= tile.threads <= 256:
                    continue
                if tile.threads % 32 == 0 and tile.shared_bytes(8 if double else 4) <= gpu.shared:
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
    blocks = ceil(pixels / tile.pixels) * ceil(spec.stage.out_channels / tile.channels)
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
