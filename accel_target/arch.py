"""Architectures: what the simulated accelerator is made of, read from a TOML file.

>>> from ttsnn.accel_target.arch import load_architecture
>>> load_architecture("ttsnn4").pes
128

Sizes are bytes, widths are bytes a cycle, words are bits, times are cycles of ``clock_mhz``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from ttsnn.accel_target.settings import (
    Range,
    fingerprint,
    parse_settings,
    read_settings,
    shipped,
    to_plain,
)
from ttsnn.errors import TargetError

__all__ = [
    "Architecture",
    "Cluster",
    "Dram",
    "Fraction",
    "Link",
    "Scratchpad",
    "Unit",
    "Words",
    "architectures",
    "load_architecture",
]

Bits = Annotated[int, Range(1, 64)]
Bytes = Annotated[int, Range(1)]
Lanes = Annotated[int, Range(1, 65536)]
Positive = Annotated[float, Range(1e-3)]
_Bad = Callable[[str, str, str], TargetError]


@dataclass(frozen=True)
class Fraction:
    """How many of a number's bits stand behind the binary point, for ``number_format = "fixed"``.

    A width of 8 with a fraction of 4 has steps of 1/16 from −8 to 7.9375.
    """

    weight: Annotated[int, Range(-64, 64)] = 6
    activation: Annotated[int, Range(-64, 64)] = 4
    gradient: Annotated[int, Range(-64, 64)] = 12
    accumulator: Annotated[int, Range(-64, 64)] = 10


@dataclass(frozen=True)
class Words:
    """Width of each kind of number, in bits.

    With ``number_format`` ``float`` results are computed in floating point and the widths say only
    what is stored, moved and paid for; with ``fixed`` all that is written to a buffer is rounded to
    two's complement of its width and fraction (:mod:`ttsnn.accel_target.fixed`).
    """

    weight: Bits
    activation: Bits
    gradient: Bits
    accumulator: Bits
    membrane: Bits
    spike: Bits = 1
    number_format: Literal["float", "fixed"] = "float"
    fraction: Fraction = Fraction()

    def check(self, bad: _Bad) -> None:
        """What the fields must be to each other."""
        widest = max(self.weight, self.activation)
        if self.accumulator < widest:
            raise bad(
                "accumulator",
                f"of {self.accumulator} bits is narrower than what it adds up ({widest} bits)",
                f"give it at least {widest}",
            )


@dataclass(frozen=True)
class Scratchpad:
    """Register files of one PE, bytes."""

    weight: Bytes
    input: Bytes
    output: Bytes


@dataclass(frozen=True)
class Cluster:
    """An array of PEs and its buffers.

    Attributes:
        name: unique among the clusters.
        rows, cols: PEs; output positions lie along rows, output channels along columns.
        dataflow: what stays in the PEs: output stationary or weight stationary.
        weight_buffer, input_buffer, output_buffer: SRAM, bytes.
        banks: of each buffer; ``bank_width`` bytes a cycle each.
        scratchpad: register files of each PE.
        skip_zeros: a zero operand takes no cycle either; else it saves energy only.
    """

    name: str
    rows: Lanes
    cols: Lanes
    dataflow: Literal["os", "ws"]
    weight_buffer: Bytes
    input_buffer: Bytes
    output_buffer: Bytes
    banks: Annotated[int, Range(1, 256)]
    bank_width: Bytes
    scratchpad: Scratchpad
    skip_zeros: bool = False

    @property
    def pes(self) -> int:
        """Processing elements."""
        return self.rows * self.cols

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all three buffers."""
        return self.weight_buffer + self.input_buffer + self.output_buffer


@dataclass(frozen=True)
class Link:
    """A FIFO from one cluster to another: ``capacity`` bytes, ``width`` bytes a cycle."""

    source: str
    destination: str
    capacity: Bytes
    width: Bytes


@dataclass(frozen=True)
class Unit:
    """A unit beside the clusters that finishes ``lanes`` elements a cycle."""

    lanes: Lanes


@dataclass(frozen=True)
class Dram:
    """Off-chip memory.

    Attributes:
        bytes_per_cycle: bandwidth of the read channel, and of the write channel.
        latency: cycles from a request to its first byte; requests overlap.
        burst: bytes that each contiguous run is rounded up to, in time (not in what is counted).
    """

    bytes_per_cycle: Positive
    latency: Annotated[int, Range(0)]
    burst: Bytes


@dataclass(frozen=True)
class Architecture:
    """One accelerator; see the module for units.

    Attributes:
        vector: batch norm, pooling, additions, reductions.
        lif: neurons, forward.
        gradient: neurons, backward: surrogate and membrane gradient.
        optimizer: weight update.
    """

    name: str
    description: str
    clock_mhz: Positive
    words: Words
    clusters: tuple[Cluster, ...]
    vector: Unit
    lif: Unit
    gradient: Unit
    optimizer: Unit
    dram: Dram
    links: tuple[Link, ...] = ()

    def check(self, bad: _Bad) -> None:
        """Names are unique, links join clusters that exist, each pair once."""
        names = [c.name for c in self.clusters]
        if not names:
            raise bad("clusters", "is empty", "add at least one [[clusters]]")
        for i, name in enumerate(names):
            if name in names[:i]:
                raise bad(f"clusters[{i}].name", f"{name!r} is taken", "choose another")
        seen = set()
        for i, link in enumerate(self.links):
            for end, name in (("source", link.source), ("destination", link.destination)):
                if name not in names:
                    raise bad(
                        f"links[{i}].{end}",
                        f"{name!r} is no cluster",
                        f"there are {', '.join(names)}",
                    )
            if link.source == link.destination:
                raise bad(f"links[{i}]", f"joins {link.source!r} to itself", "leave it out")
            if (link.source, link.destination) in seen:
                raise bad(
                    f"links[{i}]",
                    f"{link.source} to {link.destination} is there twice",
                    "leave one",
                )
            seen.add((link.source, link.destination))

    @property
    def pes(self) -> int:
        """Processing elements of all clusters."""
        return sum(c.pes for c in self.clusters)

    @property
    def buffer_bytes(self) -> int:
        """SRAM of all clusters and links."""
        return sum(c.buffer_bytes for c in self.clusters) + sum(k.capacity for k in self.links)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with every value but name and description."""
        return fingerprint(replace(self, name="", description=""))

    def find_link(self, source: str, destination: str) -> Link | None:
        """The link between two clusters, None where there is none."""
        for link in self.links:
            if (link.source, link.destination) == (source, destination):
                return link
        return None

    def with_number_format(self, number_format: Literal["float", "fixed"]) -> Architecture:
        """The same machine, computing in another format."""
        return replace(self, words=replace(self.words, number_format=number_format))

    def to_json(self) -> dict[str, Any]:
        """Plain dict, with the keys of the TOML file."""
        return to_plain(self)

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str = "architecture") -> Architecture:
        """Inverse of :meth:`to_json`, checked as a file is.

        Raises:
            TargetError: as :func:`load_architecture`.
        """
        return parse_settings(cls, data, where)


def architectures() -> list[str]:
    """Names of the architectures that ship with ttsnn."""
    return list(shipped("architectures"))


def load_architecture(source: str | os.PathLike | Architecture) -> Architecture:
    """An architecture by name, or from a ``.toml`` file.

    Raises:
        TargetError: no such name or file, an unknown key, an impossible value.
    """
    if isinstance(source, Architecture):
        return source
    return read_settings(Architecture, "architecture", "architectures", source)
