"""Which of the measured choices of a layer wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ttsnn.errors import TTSNNError, TuningError, first_line
from ttsnn.passes.cpu.tuning import LayerChoice
from ttsnn.passes.cpu.tuning.kernel import CHOICE
from ttsnn.passes.cpu.tuning.workload import WorkloadKey, layer_of, workload_key

__all__ = ["FAILED_S", "Timing", "Timings", "choice_text", "contender", "pick", "timings_of"]

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


def timings_of(records: Iterable[Any]) -> dict[WorkloadKey, dict[int, dict[str, Timing]]]:
    """Records by ``workload_key``, then threads, then choice.

    Candidates that failed are left out.

    Raises:
        TuningError: a record is of another ttsnn, which knew other layers or other choices.
    """
    keys: dict[int, tuple[WorkloadKey, int]] = {}
    runs: dict[tuple[WorkloadKey, int], dict[str, list[list[float]]]] = {}
    for record in records:
        seconds = [float(s) for s in record.run_secs or ()]
        if not seconds or max(seconds) >= FAILED_S:
            continue
        place = hash(record.workload)
        if place not in keys:
            keys[place] = _key(record.workload.mod)
        choice = _choice(record)
        if choice is not None:
            runs.setdefault(keys[place], {}).setdefault(choice, []).append(seconds)
    out: dict[WorkloadKey, dict[int, dict[str, Timing]]] = {}
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
            return choice_text(str(inst.inputs[1]))
    return None


def choice_text(recorded: str) -> str:
    """A recorded choice as this version writes it: fields that came later have their default.

    Raises:
        TuningError: it is none.
    """
    try:
        return LayerChoice.from_json(recorded).to_json()
    except TTSNNError as error:
        raise _foreign(error) from error


def _key(workload: Any) -> tuple[WorkloadKey, int]:
    try:
        config, batch, threads, rate = layer_of(workload)
    except (ValueError, TypeError, KeyError) as error:
        raise _foreign(error) from error
    return workload_key(config, batch, rate), threads


def _foreign(error: Exception) -> TuningError:
    return TuningError(
        f"tuning records of another version of ttsnn ({first_line(error)}); remove the database "
        "and tune again, or go without it (--no-database)"
    )
