"""Technologies: what each event costs, read from a TOML file with its sources.

A file has the parts that its source measured (``components``, pJ an operation) and says which of
them an event takes (``events``), so that no number stands without its origin. Tables of different
sources are never mixed: a technology is one file.

>>> from ttsnn.accel_target.tech import load_technology
>>> round(load_technology("sata16").event_pj("mac8"), 4)  # multiplier + accumulator
0.2779
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from ttsnn.accel_target.settings import Range, fingerprint, read_settings, shipped, to_plain
from ttsnn.errors import TargetError

__all__ = [
    "COMPUTE_EVENTS",
    "PerByte",
    "Sram",
    "Technology",
    "load_technology",
    "technologies",
]

COMPUTE_EVENTS = (
    "mac8",
    "mac16",
    "acc",
    "gated",
    "lif",
    "lif_grad",
    "vec_add",
    "vec_mul",
    "vec_cmp",
    "vec_special",
)
"""The events that cost operations; all others are bytes moved."""

Energy = Annotated[float, Range(0)]
_Bad = Callable[[str, str, str], TargetError]


@dataclass(frozen=True)
class Sram:
    """A measured buffer: its size, pJ a byte read and written, and leakage in mW."""

    bytes: Annotated[int, Range(1)]
    read: Energy
    write: Energy
    leakage: Energy


@dataclass(frozen=True)
class PerByte:
    """pJ a byte read and written."""

    read: Energy
    write: Energy


@dataclass(frozen=True)
class Technology:
    """Energy of every event.

    Attributes:
        source: where the numbers come from.
        process: nm and volts, as far as the source says.
        components: pJ of one operation of each part.
        events: event → part → how many operations of it the event takes.
        scratchpad: register files of the PEs, pJ a byte.
        link: FIFOs between clusters: sent is written, received is read.
        sram: buffers, by size; see :meth:`sram_pj`.
        dram: off-chip memory.
        pe_leakage: of one PE with its scratchpads, mW.
    """

    name: str
    description: str
    source: str
    process: str
    components: dict[str, Energy]
    events: dict[str, dict[str, Energy]]
    scratchpad: Energy
    link: PerByte
    sram: tuple[Sram, ...]
    dram: PerByte
    pe_leakage: Energy

    def check(self, bad: _Bad) -> None:
        """Every event has its parts, every part its energy, buffers come by size."""
        for event in COMPUTE_EVENTS:
            if event not in self.events:
                raise bad(f"events.{event}", "is missing", "say which components it takes")
        for event, parts in self.events.items():
            if event not in COMPUTE_EVENTS:
                raise bad(
                    f"events.{event}", "is no event", f"there are {', '.join(COMPUTE_EVENTS)}"
                )
            for part in parts:
                if part not in self.components:
                    raise bad(
                        f"events.{event}.{part}",
                        "is no component",
                        f"there are {', '.join(self.components)}",
                    )
        sizes = [s.bytes for s in self.sram]
        if not sizes:
            raise bad("sram", "is empty", "add at least one [[sram]]")
        if sizes != sorted(set(sizes)):
            raise bad("sram", f"has sizes {sizes}", "list them from small to large, each once")

    def event_pj(self, event: str) -> float:
        """Energy of one operation of :data:`COMPUTE_EVENTS`, pJ."""
        return sum(self.components[part] * n for part, n in self.events[event].items())

    def sram_pj(self, size: int) -> PerByte:
        """Energy of a byte at a buffer of ``size`` bytes, pJ.

        Between two measured sizes the energy follows the power of the size that goes through
        both; outside it stays that of the nearest: small buffers are not made cheaper by
        extrapolation.
        """
        low, high, share = self._between(size)
        return PerByte(_power(low.read, high.read, share), _power(low.write, high.write, share))

    def sram_leakage_mw(self, size: int) -> float:
        """Leakage of a buffer of ``size`` bytes, mW; beyond the table in proportion."""
        low, high, share = self._between(size)
        if low is high:
            return low.leakage * size / low.bytes
        return _power(low.leakage, high.leakage, share)

    def _between(self, size: int) -> tuple[Sram, Sram, float]:
        """The measured neighbours and where between them (in logarithms) a size lies."""
        if size <= self.sram[0].bytes:
            return self.sram[0], self.sram[0], 0.0
        for low, high in zip(self.sram, self.sram[1:]):
            if size < high.bytes:
                return low, high, math.log(size / low.bytes) / math.log(high.bytes / low.bytes)
        return self.sram[-1], self.sram[-1], 0.0

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with every value of the table."""
        return fingerprint(self)

    def to_json(self) -> dict[str, Any]:
        """Plain dict, with the keys of the TOML file."""
        return to_plain(self)


def _power(low: float, high: float, share: float) -> float:
    """The value ``share`` of the way from ``low`` to ``high`` in logarithms."""
    if low <= 0 or high <= 0:
        return low + (high - low) * share
    return low * (high / low) ** share


def technologies() -> list[str]:
    """Names of the technologies that ship with ttsnn."""
    return list(shipped("technologies"))


def load_technology(source: str | os.PathLike | Technology) -> Technology:
    """A technology by name, or from a ``.toml`` file.

    Raises:
        TargetError: no such name or file, an unknown key, an impossible value.
    """
    if isinstance(source, Technology):
        return source
    return read_settings(Technology, "technology", "technologies", source)
