"""Energy of a simulation: every counted event times what it costs, and leakage over the time.

Dynamic energy is ``Σ counts[tag, unit, event] · pJ[unit, event]``; leakage is the power of all
buffers and PEs times ``cycles / clock``. Nothing else enters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttsnn.accel_target.arch import Architecture, Cluster
from ttsnn.accel_target.events import EVENTS, SimulationResult, Tag, Unit
from ttsnn.accel_target.tech import COMPUTE_EVENTS, Technology

__all__ = ["CATEGORIES", "EnergyReport", "energy", "event_costs"]

CATEGORIES = ("compute", "sram", "scratchpad", "link", "dram", "leakage")
"""Where energy goes."""

_BUFFERS = {
    "weight": lambda c: c.weight_buffer,
    "input": lambda c: c.input_buffer,
    "output": lambda c: c.output_buffer,
}
_CATEGORY = {
    **dict.fromkeys(COMPUTE_EVENTS, "compute"),
    **{f"{buffer}_{way}": "sram" for buffer in _BUFFERS for way in ("read", "write")},
    "spad_bytes": "scratchpad",
    "link_sent": "link",
    "link_received": "link",
    "dram_read": "dram",
    "dram_write": "dram",
    "fetch": "dram",
}


@dataclass(frozen=True)
class EnergyReport:
    """Energy in pJ.

    Attributes:
        dynamic: [tags, units, categories], without leakage (that column is 0).
        leakage: of the whole chip over the whole time: it belongs to no tag or unit.
        tags, units: what the axes are.
    """

    dynamic: np.ndarray
    leakage: float
    tags: list[Tag]
    units: list[Unit]

    @property
    def total(self) -> float:
        """All of it, pJ."""
        return float(self.dynamic.sum()) + self.leakage

    def by_category(self) -> dict[str, float]:
        """pJ of each of :data:`CATEGORIES`."""
        sums = self.dynamic.sum(axis=(0, 1))
        return dict(zip(CATEGORIES, sums.tolist())) | {"leakage": self.leakage}

    def by_tag(self, key: Callable[[Tag], str]) -> dict[str, dict[str, float]]:
        """Dynamic pJ by category, of the tags that have the same key, in the order of the tags."""
        found: dict[str, np.ndarray] = {}
        for tag, row in zip(self.tags, self.dynamic.sum(axis=1)):
            found[key(tag)] = found.get(key(tag), 0) + row
        return {k: _named(v) for k, v in found.items()}

    def by_layer(self) -> dict[str, dict[str, float]]:
        """Layer → dynamic pJ by category."""
        return self.by_tag(lambda tag: tag.layer)

    def by_phase(self) -> dict[str, dict[str, float]]:
        """Phase → dynamic pJ by category."""
        return self.by_tag(lambda tag: tag.phase)

    def by_unit(self) -> dict[str, dict[str, float]]:
        """Unit → dynamic pJ by category."""
        return {u.name: _named(v) for u, v in zip(self.units, self.dynamic.sum(axis=0))}

    def to_json(self) -> dict[str, Any]:
        """Totals in nJ: ``total`` and each category; ``sram`` is buffers alone."""
        parts = {name: pj / 1e3 for name, pj in self.by_category().items()}
        return {"total": self.total / 1e3, **parts}


def _named(row: np.ndarray) -> dict[str, float]:
    return {name: float(v) for name, v in zip(CATEGORIES, row) if name != "leakage"}


def event_costs(arch: Architecture, tech: Technology, unit: Unit) -> np.ndarray:
    """pJ of each of :data:`~ttsnn.accel_target.events.EVENTS` at a unit.

    A compute or link unit pays for its own cluster's buffers; load, store and vector units for
    the mean of all clusters' buffers of the kind, weighted by their sizes.
    """
    clusters = arch.clusters if unit.cluster < 0 else (arch.clusters[unit.cluster],)
    costs = {name: tech.event_pj(name) for name in COMPUTE_EVENTS}
    for buffer, size_of in _BUFFERS.items():
        costs[f"{buffer}_read"] = _mean(clusters, size_of, lambda size: tech.sram_pj(size).read)
        costs[f"{buffer}_write"] = _mean(clusters, size_of, lambda size: tech.sram_pj(size).write)
    costs |= {
        "spad_bytes": tech.scratchpad,
        "link_sent": tech.link.write,
        "link_received": tech.link.read,
        "dram_read": tech.dram.read,
        "dram_write": tech.dram.write,
        "fetch": tech.dram.read,
    }
    return np.array([costs[name] for name in EVENTS])


def _mean(
    clusters: tuple[Cluster, ...], size_of: Callable[[Cluster], int], pj: Callable[[int], float]
) -> float:
    sizes = [size_of(c) for c in clusters]
    return sum(pj(size) * size for size in sizes) / sum(sizes)


def leakage_mw(arch: Architecture, tech: Technology) -> float:
    """Leakage of all buffers and PEs, mW."""
    sizes = [size_of(c) for c in arch.clusters for size_of in _BUFFERS.values()]
    sizes += [link.capacity for link in arch.links]
    return sum(tech.sram_leakage_mw(size) for size in sizes) + tech.pe_leakage * arch.pes


def _ungated(counts: np.ndarray) -> np.ndarray:
    """Counts in which every gated product is executed, as the others of its tag and unit are.

    Where all of them were gated nothing says what they are: they count as the dearest.
    """
    out = counts.copy()
    gated = EVENTS.index("gated")
    kinds = [EVENTS.index(name) for name in ("acc", "mac8", "mac16")]
    executed = counts[..., kinds]
    whole = executed.sum(axis=-1, keepdims=True)
    share = np.divide(executed, whole, out=np.zeros_like(executed), where=whole > 0)
    share[whole[..., 0] == 0, -1] = 1.0
    out[..., kinds] += counts[..., gated, None] * share
    out[..., gated] = 0
    return out


def energy(
    result: SimulationResult, arch: Architecture, tech: Technology, *, gating: bool = True
) -> EnergyReport:
    """Energy of a simulation of ``arch`` in a technology.

    Args:
        gating: a product with a zero is not computed. False: it costs what the others cost.
    """
    costs = np.stack([event_costs(arch, tech, unit) for unit in result.units])
    counts = result.counts if gating else _ungated(result.counts)
    paid = counts * costs[None]
    dynamic = np.zeros((*paid.shape[:2], len(CATEGORIES)))
    for i, name in enumerate(EVENTS):
        dynamic[:, :, CATEGORIES.index(_CATEGORY[name])] += paid[:, :, i]
    seconds = result.cycles / (arch.clock_mhz * 1e6)
    leakage = leakage_mw(arch, tech) * 1e9 * seconds  # mW · s = mJ = 1e9 pJ
    return EnergyReport(dynamic, leakage, result.tags, result.units)
