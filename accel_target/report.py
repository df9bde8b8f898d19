"""Simulations as plain data: totals, and tables by layer, phase and unit."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.energy import EnergyReport, energy
from ttsnn.accel_target.events import EVENTS, PHASES, SimulationResult, Tag, event_index
from ttsnn.accel_target.tech import Technology

__all__ = ["least_cycles", "simulation_report"]

_PRODUCTS = ("mac8", "mac16", "acc")


def simulation_report(
    result: SimulationResult, arch: Architecture, tech: Technology, *, gating: bool = True
) -> dict[str, Any]:
    """A simulation as plain data.

    Args:
        result: of a program for ``arch``.
        arch, tech: the machine and its technology.
        gating: see :func:`~ttsnn.accel_target.energy.energy`.

    Returns:
        ``architecture``, ``technology``; ``cycles`` and ``time_us``; ``macs`` (products of the
        dense loops) and how many of them were executed as multiply-accumulates (``mac8``,
        ``mac16``), as accumulates (``acc``) or not at all (``gated``); ``dram_bytes``
        (``dram_read``, ``dram_write``, instructions: ``fetch``); ``utilization``: products over
        PEs times cycles; ``least_cycles``: see :func:`least_cycles`; ``energy_nj`` with ``total``
        and its parts, which sum to it: ``compute``, ``sram``, ``scratchpad``, ``link``, ``dram``,
        ``leakage``; ``events``: totals by name; ``density``: share of spikes that are 1, by
        layer; tables ``phases``, ``layers``, ``roles`` and ``units``. Energies in tables are
        without leakage, which belongs to the whole chip.
    """
    paid = energy(result, arch, tech, gating=gating)
    totals = result.counts.sum(axis=(0, 1))
    events = {name: int(v) for name, v in zip(EVENTS, totals)}
    return {
        "architecture": arch.name,
        "technology": tech.name,
        "cycles": result.cycles,
        "time_us": result.cycles / arch.clock_mhz,
        "macs": result.macs,
        "executed": {name: events[name] for name in (*_PRODUCTS, "gated")},
        "dram_bytes": result.dram_bytes,
        "utilization": result.macs / max(1, arch.pes * result.cycles),
        "least_cycles": least_cycles(result, arch),
        "energy_nj": paid.to_json(),
        "events": events,
        "density": dict(result.density),
        "phases": [
            row | {"cycles": result.phase_cycles.get(row["phase"], 0)}
            for row in sorted(
                _rows(result, paid, "phase", lambda t: t.phase),
                key=lambda row: PHASES.index(row["phase"]),
            )
        ],
        "layers": _rows(result, paid, "layer", lambda t: t.layer),
        "roles": _rows(result, paid, "role", lambda t: f"{t.phase} {t.role}"),
        "units": _units(result, paid, arch),
    }


def _rows(
    result: SimulationResult, paid: EnergyReport, title: str, key: Callable[[Tag], str]
) -> list[dict[str, Any]]:
    """One row for each value of ``key``, in the order of the tags."""
    sums: dict[str, np.ndarray] = {}
    for tag, row in zip(result.tags, result.counts.sum(axis=1)):
        sums[key(tag)] = sums.get(key(tag), 0) + row
    energies = paid.by_tag(key)
    rows = []
    for name, row in sums.items():
        counts = {e: int(row[event_index(e)]) for e in EVENTS}
        parts = {part: pj / 1e3 for part, pj in energies[name].items()}
        rows.append(
            {
                title: name,
                "macs": sum(counts[e] for e in (*_PRODUCTS, "gated")),
                "executed": sum(counts[e] for e in _PRODUCTS),
                "dram_bytes": counts["dram_read"] + counts["dram_write"] + counts["fetch"],
                "link_bytes": counts["link_sent"],
                "energy_nj": {"total": sum(parts.values()), **parts},
            }
        )
    return rows


def _units(
    result: SimulationResult, paid: EnergyReport, arch: Architecture
) -> list[dict[str, Any]]:
    """One row a unit: busy, waiting, products, energy."""
    energies = paid.by_unit()
    products = result.counts[:, :, [event_index(e) for e in (*_PRODUCTS, "gated")]].sum(axis=(0, 2))
    rows = []
    for i, unit in enumerate(result.units):
        parts = {part: pj / 1e3 for part, pj in energies[unit.name].items()}
        row = {
            "unit": unit.name,
            "busy": int(result.busy[i]),
            "stalled": int(result.stalled[i]),
            "busy_share": float(result.busy[i] / max(1, result.cycles)),
            "macs": int(products[i]),
            "energy_nj": {"total": sum(parts.values()), **parts},
        }
        if unit.kind == "compute":
            pes = arch.clusters[unit.cluster].pes
            row["utilization"] = float(products[i] / max(1, pes * result.cycles))
        rows.append(row)
    return rows


def least_cycles(result: SimulationResult, arch: Architecture) -> dict[str, int]:
    """Bounds that no schedule can beat: ``compute``, ``dram_read``, ``dram_write``, ``units``.

    ``compute``: every PE has a product each cycle (with ``skip_zeros`` only those executed);
    ``dram_…``: the channel moves its bytes without a pause; ``units``: the busiest unit.
    """
    products = result.total(*_PRODUCTS)
    if not all(c.skip_zeros for c in arch.clusters):
        products += result.total("gated")
    rate = arch.dram.bytes_per_cycle
    return {
        "compute": ceil(products / arch.pes),
        "dram_read": ceil(result.total("dram_read") / rate),
        "dram_write": ceil(result.total("dram_write") / rate),
        "units": int(result.busy.max(initial=0)),
    }
