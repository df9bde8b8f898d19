"""Contents of DRAM and buffers during a simulation, and whether what is read was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ttsnn.accel_target.isa import DRAM, Format
from ttsnn.accel_target.program import DramTensor
from ttsnn.errors import TargetError

__all__ = ["Box", "Memory", "Rounding"]

Rounding = Callable[[np.ndarray, int], np.ndarray]
"""(values, format) → what is stored of them."""


@dataclass(frozen=True)
class Box:
    """A decoded descriptor."""

    memory: int
    format: int
    step: int
    address: int
    size: tuple[int, int, int, int]
    f0: int
    f: int
    h0: int
    h: int
    w0: int
    w: int
    c0: int
    c: int

    @classmethod
    def of(cls, row: Sequence[int]) -> Box:
        """From a row of the descriptor table."""
        a, b, c, d = row[4:8]
        return cls(row[0], row[1], row[2], row[3], (a, b, c, d), *row[8:16])

    @property
    def elements(self) -> int:
        """Elements of the box."""
        return self.f * self.h * self.w * self.c


@dataclass
class _Tile:
    """An allocation; ``row_of`` and ``columns`` say which rows and columns it holds."""

    stop: int
    data: np.ndarray
    row_of: np.ndarray  # [frames, rows, channels]: number of the row, -1: nothing
    columns: np.ndarray  # [rows, width]: written


class Memory:
    """DRAM tensors and buffers.

    Args:
        tensors: of the program.
        bits: of each format.
        dtype: of the values.
        rounding: applied to everything that is written to a buffer.
    """

    def __init__(
        self,
        tensors: Sequence[DramTensor],
        bits: Sequence[int],
        dtype: str,
        rounding: Rounding | None = None,
    ) -> None:
        self.tensors, self.bits, self.dtype, self.rounding = tensors, bits, dtype, rounding
        self.dram: dict[int, np.ndarray] = {}
        self._written: dict[int, np.ndarray] = {}
        self._tiles: dict[int, dict[tuple, _Tile]] = {}

    def fill(self, number: int, value: np.ndarray) -> None:
        """Contents of a DRAM tensor before the program."""
        self.dram[number] = np.array(value, self._dtype(self.tensors[number].format))
        shape = self.tensors[number].shape
        self._written[number] = np.ones((shape[0], shape[1], shape[3]), bool)

    def read(self, b: Box) -> np.ndarray:
        """Values of a box; a view where that is possible.

        Raises:
            TargetError: some of them were never written.
        """
        if b.memory == DRAM:
            return self._read_dram(b)
        tile = self._tiles.get(b.memory, {}).get((b.address, b.size, b.format)) or self._view(b)
        if tile is None:
            raise TargetError(f"reads {_place(b)}, where nothing of this shape was written")
        frames = slice(b.f0, b.f0 + b.f)
        channels = slice(b.c0, b.c0 + b.c)
        slots: slice | np.ndarray
        first = b.h0 % b.size[1]
        wanted = np.arange(b.h0, b.h0 + b.h)
        slots = slice(first, first + b.h) if first + b.h <= b.size[1] else wanted % b.size[1]
        held = tile.row_of[frames, slots, channels]
        if held.shape[1] != b.h or not (held == wanted[:, None]).all():
            raise TargetError(
                f"reads rows {b.h0} to {b.h0 + b.h - 1}, channels {b.c0} to {b.c0 + b.c - 1} of "
                f"{_place(b)}, which are not there"
            )
        columns = slice(b.w0, b.w0 + b.w)
        if not tile.columns[slots, columns].all():
            raise TargetError(f"reads columns of {_place(b)} that were not written")
        return tile.data[frames, slots, columns, channels]

    def write(self, b: Box, value: np.ndarray, *, add: bool = False) -> None:
        """Write a box, or add to what it holds."""
        if add:
            value = self.read(b) + value
        if b.memory == DRAM:
            self._write_dram(b, value)
            return
        if self.rounding is not None:
            value = self.rounding(value, b.format)
        tile = self._tile(b)
        frames = slice(b.f0, b.f0 + b.f)
        rows = np.arange(b.h0, b.h0 + b.h)
        first = b.h0 % b.size[1]
        slots: slice | np.ndarray
        slots = slice(first, first + b.h) if first + b.h <= b.size[1] else rows % b.size[1]
        columns, channels = slice(b.w0, b.w0 + b.w), slice(b.c0, b.c0 + b.c)
        tile.data[frames, slots, columns, channels] = value
        tile.row_of[frames, slots, channels] = rows[:, None]
        tile.columns[slots, columns] = True

    def _tile(self, b: Box) -> _Tile:
        tiles = self._tiles.setdefault(b.memory, {})
        key = (b.address, b.size, b.format)
        tile = tiles.get(key)
        if tile is not None:
            return tile
        row = -(-b.size[0] * b.size[2] * b.size[3] * self.bits[b.format] // 8)
        stop = b.address + row * b.size[1]
        # what the new allocation covers is gone
        for other in [k for k, t in tiles.items() if k[0] < stop and b.address < t.stop]:
            del tiles[other]
        f, rows, width, channels = b.size
        tiles[key] = _Tile(
            stop,
            np.zeros(b.size, self._dtype(b.format)),
            np.full((f, rows, channels), -1, np.int32),
            np.zeros((rows, width), bool),
        )
        return tiles[key]

    def _view(self, b: Box) -> _Tile | None:
        """What lies at a box's address in rows of another width, if all of it was written."""
        tiles = self._tiles.get(b.memory, {})
        f, rows, width, channels = b.size
        for key, tile in tiles.items():
            address, (frames, height, *row), fmt = key
            same = (address, frames, height, fmt) == (b.address, f, rows, b.format)
            held = tile.row_of[:1, :, :1]
            if (
                same
                and row[0] * row[1] == width * channels
                and tile.columns.all()
                and (held >= 0).all()
                and (tile.row_of == held).all()
            ):
                del tiles[key]
                tile.data = tile.data.reshape(b.size)
                tile.row_of = np.broadcast_to(held, (f, rows, channels)).copy()
                tile.columns = np.ones((rows, width), bool)
                tiles[b.address, b.size, b.format] = tile
                return tile
        return None

    def _dtype(self, fmt: int) -> str:
        return "float64" if fmt == Format.STATISTIC else self.dtype

    def _index(self, b: Box) -> tuple:
        frames = slice(b.f0, b.f0 + b.f) if b.step == 1 else b.f0 + np.arange(b.f) * b.step
        return frames, slice(b.h0, b.h0 + b.h), slice(b.c0, b.c0 + b.c)

    def _read_dram(self, b: Box) -> np.ndarray:
        frames, rows, channels = self._index(b)
        written = self._written.get(b.address)
        if written is None or not written[frames, rows, channels].all():
            name = self.tensors[b.address].name
            raise TargetError(
                f"reads rows {b.h0} to {b.h0 + b.h - 1} of {name!r} in DRAM, which "
                "are not there yet"
            )
        return self.dram[b.address][frames, rows, b.w0 : b.w0 + b.w, channels]

    def _write_dram(self, b: Box, value: np.ndarray) -> None:
        frames, rows, channels = self._index(b)
        if b.address not in self.dram:
            shape = self.tensors[b.address].shape
            self.dram[b.address] = np.zeros(shape, self._dtype(b.format))
            self._written[b.address] = np.zeros((shape[0], shape[1], shape[3]), bool)
        self.dram[b.address][frames, rows, b.w0 : b.w0 + b.w, channels] = value
        self._written[b.address][frames, rows, channels] = True


def _place(b: Box) -> str:
    level = ("weight", "input", "output")[(b.memory - 1) % 3]
    return f"the {level} buffer of cluster {(b.memory - 1) // 3} at {b.address:#x}"
