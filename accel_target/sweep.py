"""Architectures of other sizes, for sweeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ttsnn.accel_target.arch import Architecture, Cluster
from ttsnn.errors import TargetError

__all__ = ["AXES", "parse_sweep", "scaled", "sweep"]

AXES = {
    "clusters": "1 (all PEs and buffers in one array), or as many as the architecture has",
    "pes": "PEs in total",
    "buffers": "KiB of SRAM in total",
    "dram": "bytes a cycle of each DRAM channel",
}
"""What can be swept."""


def parse_sweep(text: str) -> dict[str, list[int]]:
    """``"pes=64,128 buffers=104,208"`` → values of each axis.

    Raises:
        TargetError: no such axis, or no whole numbers of at least 1.
    """
    out: dict[str, list[int]] = {}
    for part in text.replace(";", " ").split():
        name, equals, values = part.partition("=")
        if name not in AXES or not equals:
            raise TargetError(
                f"sweep {text!r}: {part!r} is no axis; write e.g. pes=64,128 with one of "
                f"{', '.join(AXES)}"
            )
        try:
            numbers = [int(v) for v in values.split(",")]
        except ValueError:
            numbers = []
        if not numbers or min(numbers) < 1:
            raise TargetError(
                f"sweep {text!r}: {name} takes whole numbers of at least 1, got {values!r}"
            )
        out[name] = list(dict.fromkeys(numbers))
    if not out:
        raise TargetError(f"sweep {text!r} is empty; write e.g. pes=64,128 buffers=104,208")
    return out


def sweep(arch: Architecture, axes: dict[str, list[int]]) -> Iterator[tuple[str, Architecture]]:
    """Name and architecture of each combination.

    Raises:
        TargetError: as :func:`scaled`.
    """
    for values in itertools.product(*axes.values()):
        given = dict(zip(axes, values))
        yield " ".join(f"{k}={v}" for k, v in given.items()), scaled(arch, **given)


def scaled(
    arch: Architecture,
    *,
    clusters: int | None = None,
    pes: int | None = None,
    buffers: int | None = None,
    dram: int | None = None,
) -> Architecture:
    """An architecture with other totals, shared out as before; None leaves one as it is.

    PEs change in rows alone. Link FIFOs belong to ``buffers``.

    Raises:
        TargetError: the total cannot be shared out.
    """
    if clusters is not None and clusters != len(arch.clusters):
        if clusters != 1:
            raise TargetError(
                f"sweep: {arch.name} has {len(arch.clusters)} clusters; clusters can be "
                f"1 or {len(arch.clusters)}, not {clusters}"
            )
        arch = replace(arch, clusters=(_joined(arch),), links=())
    if pes is not None:
        arch = replace(arch, clusters=tuple(_with_pes(c, pes, arch) for c in arch.clusters))
    if buffers is not None:
        arch = _with_buffers(arch, buffers * 1024)
    if dram is not None:
        arch = replace(arch, dram=replace(arch.dram, bytes_per_cycle=float(dram)))
    return arch


def _joined(arch: Architecture) -> Cluster:
    """One array with the PEs and buffers of all; FIFOs become output buffer."""
    first = arch.clusters[0]
    cols = max(c.cols for c in arch.clusters)
    if len(arch.clusters) > 1 and arch.pes % (2 * cols) == 0:
        cols *= 2  # nearer to a square
    if arch.pes % cols:
        raise TargetError(f"sweep: {arch.pes} PEs do not fill columns of {cols}")
    sums: dict[str, Any] = {
        name: sum(getattr(c, name) for c in arch.clusters)
        for name in ("weight_buffer", "input_buffer", "output_buffer", "banks")
    }
    sums["output_buffer"] += sum(k.capacity for k in arch.links)
    return replace(first, name="array", rows=arch.pes // cols, cols=cols, **sums)


def _with_pes(cluster: Cluster, pes: int, arch: Architecture) -> Cluster:
    rows, rest = divmod(cluster.rows * pes, arch.pes)
    if rest or not rows:
        raise TargetError(
            f"sweep: {pes} PEs cannot be shared out as {arch.name}'s {arch.pes} are: cluster "
            f"{cluster.name} would have {cluster.rows * pes / arch.pes:g} rows"
        )
    return replace(cluster, rows=rows)


def _with_buffers(arch: Architecture, total: int) -> Architecture:
    def part(size: int) -> int:
        return max(1, size * total // arch.buffer_bytes)

    clusters = (
        replace(
            c,
            weight_buffer=part(c.weight_buffer),
            input_buffer=part(c.input_buffer),
            output_buffer=part(c.output_buffer),
        )
        for c in arch.clusters
    )
    links = (replace(k, capacity=part(k.capacity)) for k in arch.links)
    return replace(arch, clusters=tuple(clusters), links=tuple(links))
