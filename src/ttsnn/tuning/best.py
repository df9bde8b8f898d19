"""Which of the measured choices of a layer wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ttsnn.passes.cpu.tuning.kernel import CHOICE
from ttsnn.passes.cpu.tuning.workload import layer_of, workload_key

__all__ = ["FAILED_S", "Timing", "Timings", "contender", "pick", "timings_of"]

FAILED_S = 1e8
"""MetaSchedule records a candidate that failed with a time of 10⁹ s or more."""

MARGIN_ONCE, MARGIN_TWICE = 0.05, 0.01
"""How much faster than the default a choice must be that was measured once, or again: the fastest
of many noisy measurements is one that was lucky."""


@dataclass(frozen=True)
class Timing:
    """A choice and its time.

    Attributes:
        choice: as JSON.
        seconds: the least of all its measurements, each a mean over 10 ms: what disturbs a
            machine only ever makes it slower.
        records: how many records it has.
    """

    choice: str
    seconds: float
    records: int


Timings = Mapping[str, Timing]
"""Choice → its time, of one layer."""


def timings_of(records: Iterable[Any]) -> dict[str, dict[int, dict[str, Timing]]]:
    """Records by layer and batch (``workload_key``), then threads, then choice.

    Candidates that failed are left out.
    """
    keys: dict[int, tuple[str, int]] = {}
    runs: dict[tuple[str, int], dict[str, list[list[float]]]] = {}
    for record in records:
        seconds = [float(s) for s in record.run_secs or ()]
        if not seconds or max(seconds) >= FAILED_S:
            continue
        place = hash(record.workload)
        if place not in keys:
            config, batch, threads = layer_of(record.workload.mod)
            keys[place] = workload_key(config, batch), threads
        choice = _choice(record)
        if choice is not None:
            runs.setdefault(keys[place], {}).setdefault(choice, []).append(seconds)
    out: dict[str, dict[int, dict[str, Timing]]] = {}
    for (key, threads), choices in runs.items():
        out.setdefault(key, {})[threads] = {
            c: Timing(c, min(chain.from_iterable(r)), len(r)) for c, r in choices.items()
        }
    return out


def pick(timings: Timings, default: str) -> Timing | None:
    """The fastest choice; the default where nothing is surely faster. None: nothing measured."""
    if not timings:
        return None
    base = timings.get(default)

    def sure(t: Timing) -> bool:
        if base is None or t.choice == default:
            return True
        margin = MARGIN_TWICE if t.records > 1 else MARGIN_ONCE
        return t.seconds <= base.seconds * (1.0 - margin)

    return min((t for t in timings.values() if sure(t)), key=lambda t: t.seconds)


def contender(timings: Timings, default: str) -> Timing | None:
    """The fastest choice where it was measured only once, and would win if it is so fast again."""
    base = timings.get(default)
    if base is None:
        return None
    best = min(timings.values(), key=lambda t: t.seconds)
    fast = best.seconds <= base.seconds * (1.0 - MARGIN_TWICE)
    return best if fast and best.records == 1 and best.choice != default else None


def _choice(record: Any) -> str | None:
    """The choice that a record was built by."""
    for inst in record.trace.insts:
        if inst.kind.name == "Annotate" and str(inst.attrs[0]) == CHOICE:
            return str(inst.inputs[1])
    return None
