"""A simulation as a trace that chrome://tracing and ui.perfetto.dev show."""

from __future__ import annotations

from typing import Any

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.events import SimulationResult
from ttsnn.accel_target.isa import Op
from ttsnn.accel_target.program import Program

__all__ = ["trace_of"]


def trace_of(program: Program, result: SimulationResult, arch: Architecture) -> dict[str, Any]:
    """Every instruction as an event of its unit's row; times in µs of the accelerator's clock."""
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": arch.name}}
    ]
    events += [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": i, "args": {"name": unit.name}}
        for i, unit in enumerate(result.units)
    ]
    names = {int(op): op.name for op in Op}
    table = program.instructions
    columns = (table["op"], table["unit"], table["tag"], result.start, result.end)
    for number, (op, unit, tag, start, end) in enumerate(zip(*(c.tolist() for c in columns))):
        where = program.tags[tag]
        events.append(
            {
                "name": f"{where.layer} {where.role}",
                "cat": where.phase,
                "ph": "X",
                "pid": 0,
                "tid": unit,
                "ts": start / arch.clock_mhz,
                "dur": (end - start) / arch.clock_mhz,
                "args": {"instruction": number, "op": names.get(op, str(op)), "cycle": start},
            }
        )
    return {"displayTimeUnit": "ns", "traceEvents": events}
