"""A program of the accelerator: instructions, the tables they refer to, and the DRAM's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from ttsnn.accel_target import isa
from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.events import Tag, Unit
from ttsnn.accel_target.isa import Format, UnitKind
from ttsnn.errors import TargetError

__all__ = ["DramTensor", "Program", "format_bits", "units_of"]

ROLES = ("input", "output", "temp")


@dataclass(frozen=True)
class DramTensor:
    """A tensor in DRAM, [frames, height, width, channels] as the accelerator sees it.

    Attributes:
        name: unique.
        shape: four sizes.
        format: of its elements.
        role: ``input`` (written before the program starts), ``output`` (read after it) or
            ``temp``.
        host_shape: sizes of the tensor in the network; empty for temporaries.
        host_axes: permutation of the network's axes before they are put together to ``shape``.
        host_view: sizes as which the network's tensor is read first, where some of its axes are
            split; empty: ``host_shape``.
        alias: name of the network's value that it holds.
    """

    name: str
    shape: tuple[int, int, int, int]
    format: Format
    role: str = "temp"
    host_shape: tuple[int, ...] = ()
    host_axes: tuple[int, ...] = ()
    binary: bool = False
    host_view: tuple[int, ...] = ()

    def to_device(self, value: np.ndarray) -> np.ndarray:
        """The network's tensor as the accelerator's."""
        view = value.reshape(self.host_view or value.shape)
        return np.ascontiguousarray(np.transpose(view, self.host_axes)).reshape(self.shape)

    def to_host(self, value: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`to_device`."""
        moved = [(self.host_view or self.host_shape)[a] for a in self.host_axes]
        inverse = np.argsort(self.host_axes) if self.host_axes else ()
        moved_back = np.transpose(value.reshape(moved), inverse)
        return np.ascontiguousarray(moved_back).reshape(self.host_shape)

    def to_json(self) -> dict[str, Any]:
        """Plain dict."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "format": int(self.format),
            "role": self.role,
            "host_shape": list(self.host_shape),
            "host_axes": list(self.host_axes),
            "binary": self.binary,
            "host_view": list(self.host_view),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DramTensor:
        """Inverse of :meth:`to_json`."""
        shape = tuple(int(s) for s in data["shape"])
        host_shape = tuple(int(s) for s in data["host_shape"])
        axes = tuple(int(a) for a in data["host_axes"])
        view = tuple(int(s) for s in data.get("host_view", ()))
        if len(shape) != 4 or data["role"] not in ROLES or sorted(axes) != [*range(len(axes))]:
            raise ValueError(f"tensor {data['name']!r}")
        if data["role"] != "temp" and (
            not prod(view or host_shape) == prod(host_shape) == prod(shape)
            or len(axes) != len(view or host_shape)
        ):
            raise ValueError(f"tensor {data['name']!r}: {host_shape} is not {shape}")
        return cls(
            str(data["name"]),
            shape,
            Format(data["format"]),
            str(data["role"]),
            host_shape,
            axes,
            bool(data["binary"]),
            view,
        )


@dataclass(frozen=True)
class Program:
    """Instructions in program order, which is also the order of each unit's queue.

    Attributes:
        arch: name of the architecture it was generated for.
        fingerprint: of that architecture.
        instructions: :data:`~ttsnn.accel_target.isa.INSTRUCTION` records.
        descriptors, geometry, taps, scalars: tables of records.
        tags, units, tensors: tables.
        info: free entries, e.g. the options of the code generator.
    """

    arch: str
    fingerprint: str
    instructions: np.ndarray
    descriptors: np.ndarray
    geometry: np.ndarray
    taps: np.ndarray
    scalars: np.ndarray
    tags: tuple[Tag, ...]
    units: tuple[Unit, ...]
    tensors: tuple[DramTensor, ...]
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.instructions)

    def with_instructions(self, instructions: np.ndarray) -> Program:
        """A program with other instructions and the same tables."""
        return replace(self, instructions=instructions)

    def named(self, role: str) -> list[DramTensor]:
        """Tensors of a role, in order."""
        return [t for t in self.tensors if t.role == role]

    def check_target(self, arch: Architecture) -> None:
        """Refuse to run on another architecture.

        Raises:
            TargetError: it was generated for another one.
        """
        if self.fingerprint != arch.fingerprint:
            raise TargetError(
                f"the program was generated for architecture {self.arch!r} "
                f"({self.fingerprint}), this is {arch.name!r} ({arch.fingerprint}); compile the "
                f"network again for {arch.name!r}"
            )


def units_of(arch: Architecture) -> tuple[Unit, ...]:
    """The units of an architecture, in the order of their numbers.

    Raises:
        TargetError: more than the masks of an instruction can name.
    """
    plain = ("load", "store", "vector", "lif", "gradient", "optimizer")
    units = [Unit(name, name) for name in plain]
    units += [Unit(f"compute.{c.name}", "compute", i) for i, c in enumerate(arch.clusters)]
    if len(arch.clusters) > 1:
        units += [Unit(f"link.{c.name}", "link", i) for i, c in enumerate(arch.clusters)]
    if len(units) > isa.MAX_UNITS:
        raise TargetError(
            f"architecture {arch.name!r}: {len(arch.clusters)} clusters make {len(units)} units, "
            f"an instruction can name {isa.MAX_UNITS}; use at most 5 clusters"
        )
    assert len(plain) == UnitKind.COMPUTE
    return tuple(units)


def format_bits(arch: Architecture) -> tuple[int, ...]:
    """Bits of an element, by :class:`~ttsnn.accel_target.isa.Format`."""
    w = arch.words
    return (w.spike, w.weight, w.activation, w.accumulator, w.gradient, 32)


def empty_tables() -> dict[str, np.ndarray]:
    """Tables of a program without instructions."""
    return {
        "instructions": np.zeros(0, isa.INSTRUCTION),
        "descriptors": np.zeros(0, isa.DESCRIPTOR),
        "geometry": np.zeros(0, isa.GEOMETRY),
        "taps": np.zeros(0, isa.TAP),
        "scalars": np.zeros((0, 8), "<f8"),
    }


def records(rows: Sequence[tuple], dtype: np.dtype) -> np.ndarray:
    """A table from tuples."""
    return np.array(list(rows), dtype=dtype) if rows else np.zeros(0, dtype)
