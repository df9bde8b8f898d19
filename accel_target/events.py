"""What a simulation counts and reports: the interface between simulator, energy and reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

__all__ = ["EVENTS", "PHASES", "SimulationResult", "Tag", "Unit", "event_index"]

EVENTS = (
    "mac8",  # multiply-accumulates executed, both operands of at most 8 bits
    "mac16",  # multiply-accumulates executed, an operand of 16 bits (gradients)
    "acc",  # accumulates executed for spikes that are 1
    "gated",  # operations of the dense loop that are not executed: an operand is zero
    "spad_bytes",  # bytes at the PEs' scratchpads
    "weight_read",  # bytes at the clusters' buffers
    "weight_write",
    "input_read",
    "input_write",
    "output_read",
    "output_write",
    "dram_read",  # bytes
    "dram_write",
    "fetch",  # bytes of instructions, read from DRAM
    "link_sent",  # bytes
    "link_received",
    "lif",  # neuron updates
    "lif_grad",  # neuron updates backward
    "vec_add",  # vector unit: additions, subtractions
    "vec_mul",
    "vec_cmp",  # comparisons, maxima
    "vec_special",  # divisions, roots, exponentials, logarithms
)
"""Names of the counted events, in the order of the last axis of ``SimulationResult.counts``."""

PHASES = ("forward", "head", "backward", "update")
"""Phases that tags name; ``head`` is the classifier's loss and its gradient."""

_INDEX = {name: i for i, name in enumerate(EVENTS)}


def event_index(name: str) -> int:
    """Position of an event; KeyError for an unknown name."""
    return _INDEX[name]


@dataclass(frozen=True)
class Tag:
    """What an instruction belongs to.

    Attributes:
        layer: name of the network's layer.
        phase: one of :data:`PHASES`.
        role: ``g1``, ``cross``, ``dg4``, ``lif``, ``bn`` …: the part of the layer.
    """

    layer: str
    phase: str
    role: str


@dataclass(frozen=True)
class Unit:
    """One in-order queue.

    Attributes:
        name: ``load``, ``store``, ``vector``, ``compute.a``, ``link.a``.
        kind: ``load``, ``store``, ``vector``, ``lif``, ``gradient``, ``optimizer``, ``compute``
            or ``link``.
        cluster: index of the cluster of a compute or link unit, else -1.
    """

    name: str
    kind: str
    cluster: int = -1


@dataclass
class SimulationResult:
    """Outcome of a simulation.

    Attributes:
        counts: [tags, units, events], exact integers as float64.
        tags: what rows of the first axis are.
        units: what the second axis is.
        cycles: of the whole program.
        start, end: [instructions], cycles at which each starts and ends.
        busy: [units], cycles in which a unit works.
        stalled: [units], cycles in which a unit waits for a token although it has an instruction.
        phase_cycles: phase → cycles during which an instruction of it runs, overlap included.
        macs: operations of the dense loops: executed and gated.
        outputs: DRAM tensors by name, where values were simulated.
        density: measured share of spikes that are 1, by layer (values) or the assumed one.
    """

    counts: np.ndarray
    tags: list[Tag]
    units: list[Unit]
    cycles: int
    start: np.ndarray
    end: np.ndarray
    busy: np.ndarray
    stalled: np.ndarray
    phase_cycles: dict[str, int]
    macs: int
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    density: dict[str, float] = field(default_factory=dict)

    def total(self, *names: str, phases: Iterable[str] | None = None) -> float:
        """Sum of events over all units, and over the phases given (None: all)."""
        wanted = None if phases is None else set(phases)
        rows = [i for i, t in enumerate(self.tags) if wanted is None or t.phase in wanted]
        return float(sum(self.counts[rows, :, _INDEX[n]].sum() for n in names))

    @property
    def dram_bytes(self) -> int:
        """Bytes between DRAM and chip, instructions included."""
        return int(self.total("dram_read", "dram_write", "fetch"))
