"""Simulate a program: its values, its time, its events."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.events import EVENTS, SimulationResult, event_index
from ttsnn.accel_target.fixed import fixed_point
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.sim.check import check_program
from ttsnn.accel_target.sim.cost import Costs, costs
from ttsnn.accel_target.sim.execute import Execution, execute
from ttsnn.accel_target.sim.timing import schedule

__all__ = ["simulate"]


def simulate(
    program: Program,
    arch: Architecture,
    *,
    values: Mapping[str, np.ndarray] | None = None,
    firing_rate: float = 0.1,
    operand_rate: float = 1.0,
    dtype: str = "float32",
) -> SimulationResult:
    """Simulate a program.

    Args:
        program: generated for ``arch``.
        arch: the machine.
        values: inputs and parameters by name; without them only time and events are simulated.
        firing_rate: share of spikes that are 1, where there are no values.
        operand_rate: share of the other first operands of products that are not zero, where
            there are no values. 1 is the truth but for pixels; less is an assumption.
        dtype: of the values, where the architecture computes in floating point.

    Raises:
        TargetError: the program is not for this architecture, is impossible, reads what was
            never written, or stops in a deadlock.
    """
    check_program(program, arch)
    run: Execution | None = None
    outputs: dict[str, np.ndarray] = {}
    if values is not None:
        rounding = fixed_point(arch)
        outputs, run = execute(
            program,
            arch,
            values,
            dtype=dtype if rounding is None else "float64",  # where its sums are exact
            rounding=rounding,
        )
    c = costs(program, arch)
    pairs = np.divide(c.macs, c.depth, out=np.zeros(len(program)), where=c.depth > 0)
    if run is not None:
        active = np.maximum(run.active, 0) * c.depth
        density = np.divide(run.active, pairs, out=np.ones(len(program)), where=pairs > 0)
    else:
        density = np.where(c.binary, firing_rate, operand_rate)
        active = np.round(c.macs * density).astype(np.int64)
    if any(k.skip_zeros for k in arch.clusters):
        c = costs(program, arch, density)
    times = schedule(program, c.busy, c.latency)
    events = _products(c, active)
    spikes: dict[str, float] = {}
    for tag, (ones, count) in (run.spikes if run is not None else {}).items():
        spikes[program.tags[tag].layer] = ones / max(count, 1)
    return SimulationResult(
        counts=_by_tag(program, events),
        tags=list(program.tags),
        units=list(program.units),
        cycles=times.cycles,
        start=times.start,
        end=times.end,
        busy=times.busy,
        stalled=times.stalled,
        phase_cycles=_phase_cycles(program, times.start, times.end),
        macs=int(c.macs.sum()),
        outputs=outputs,
        density=spikes,
    )


def _products(c: Costs, active: np.ndarray) -> np.ndarray:
    events = c.events.copy()
    kinds = {"acc": c.binary, "mac8": ~c.binary & c.narrow, "mac16": ~c.binary & ~c.narrow}
    for name, mine in kinds.items():
        events[:, event_index(name)] = np.where(mine, active, 0)
    events[:, event_index("gated")] = c.macs - active
    return events


def _by_tag(program: Program, events: np.ndarray) -> np.ndarray:
    shape = (max(len(program.tags), 1), len(program.units))
    table = program.instructions
    where = table["tag"].astype(np.int64) * shape[1] + table["unit"]
    out = np.zeros((shape[0] * shape[1], len(EVENTS)))
    for k in range(len(EVENTS)):
        out[:, k] = np.bincount(where, weights=events[:, k], minlength=len(out))
    return out.reshape(*shape, len(EVENTS))


def _phase_cycles(program: Program, start: np.ndarray, end: np.ndarray) -> dict[str, int]:
    """Cycles during which some instruction of a phase runs."""
    phases = np.array([t.phase for t in program.tags])[program.instructions["tag"]]
    out: dict[str, int] = {}
    for phase in dict.fromkeys(phases.tolist()):
        mine = phases == phase
        order = np.argsort(start[mine], kind="stable")
        a, b = start[mine][order], end[mine][order]
        reach = np.maximum.accumulate(b)
        before = np.concatenate([[0], reach[:-1]])
        out[phase] = int(np.maximum(reach - np.maximum(a, before), 0).sum())
    return out
