"""How ``ttsnn.compile`` finds what was tuned."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tvm

from ttsnn.errors import TargetError, TuningError
from ttsnn.passes.cpu.tuning import LayerChoice, LayerTask
from ttsnn.passes.cpu.tuning.rates import serving_steps
from ttsnn.passes.cpu.tuning.workload import WorkloadKey, anonymous
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.runtime.threads import default_threads
from ttsnn.targets import Target
from ttsnn.tuning.best import Timing, Timings, pick, timings_of
from ttsnn.tuning.database import TuningDatabase, default_folder

__all__ = ["Database", "look_up"]

Database = str | os.PathLike | bool | None
"""Where tuning records are: a folder; None (or True): the default place, where there are some;
False: nowhere."""


def look_up(
    mod: tvm.IRModule,
    target: Target,
    database: Database = None,
    firing_rates: Mapping[str, float] | None = None,
) -> Any:
    """What the tuner found for the layers of a program; None where nothing was tuned.

    Args:
        mod: a program as ``target.lower`` takes it.
        target: what it is compiled to.
        database: see :data:`Database`.
        firing_rates: layer → share of ones in its input; without them no layer becomes
            event-driven.

    Raises:
        TuningError: the named database is missing, damaged, or of another target. Of the default
            one this is a warning.
        TargetError: a database is named, and the target cannot be tuned.
    """
    if database is False:
        return None
    folder = None if isinstance(database, bool) else database
    named = folder is not None
    try:
        identity = target.tuning_identity()
        store = TuningDatabase(folder or default_folder(identity), identity)
        if not store.exists:
            if named:
                raise TuningError(
                    f"{store.folder}: no tuning database there; `ttsnn tune` makes one"
                )
            return None
        best = _Best(store.records(), target, firing_rates or {})
    except TargetError:
        if named:
            raise
        return None
    except TuningError as error:
        if named:
            raise
        warnings.warn(f"compiled without tuning: {error}", stacklevel=3)
        return None
    return target.look_up(mod, best.of)


class _Best:
    """The best choice for a layer, of a database's records."""

    def __init__(self, records: list[Any], target: Target, rates: Mapping[str, float]) -> None:
        self.target, self.rates = target.tvm_target, rates
        said = target.options.get("num-cores")
        self.threads = int(said) if said else default_threads()
        self.known = timings_of(records)

    def of(self, config: LayerConfig, batch: int | None) -> Any:
        """For ``Target.look_up``.

        A kernel for any batch takes what the largest tuned batch has. Where the layer was tuned
        with other numbers of threads, the nearest counts. Event-driven it becomes by records of
        its firing rate alone, or of a somewhat higher one.
        """
        layer, rate = anonymous(config), self.rates.get(config.name)
        if batch is None:
            text = layer.to_json()
            batch = max((k.batch or 0 for k in self.known if k.layer == text), default=None)
        if batch is None:
            return None
        for step in serving_steps(rate) if rate is not None else ():
            task = LayerTask(layer, batch, self.target, self.threads, rate=step)
            if task.key in self.known:
                return self._best(task, self.known[task.key])
        task = LayerTask(layer, batch, self.target, self.threads)
        return self._best(task, self.known.get(task.key) or self._dense(task.key))

    def _best(self, task: LayerTask, by_threads: Mapping[int, Timings]) -> Any:
        """The best choice of a task, for the nearest number of threads."""
        if not by_threads:
            return None
        threads = min(by_threads, key=lambda n: (abs(n - self.threads), n))
        default = replace(task, threads=threads).default.to_json()
        best = pick(by_threads[threads], default)
        if best is None:
            return None
        base = by_threads[threads].get(default)
        note = {
            "threads": threads,
            "batch": task.batch,
            "us": best.seconds * 1e6,
            "default_us": None if base is None else base.seconds * 1e6,
        }
        if task.rate is not None:
            note["firing_rate"] = task.rate
        return LayerChoice.from_json(best.choice), note

    def _dense(self, key: WorkloadKey) -> Mapping[int, Timings]:
        """Times without an event-driven stage, to which it does not matter at which firing rate
        they were measured."""
        out: dict[int, dict[str, Timing]] = {}
        for other in (k for k in self.known if k[:2] == key[:2]):
            for threads, timings in self.known[other].items():
                for choice, timing in timings.items():
                    before = out.setdefault(threads, {}).get(choice, timing)
                    if not LayerChoice.from_json(choice).tiles.events:
                        out[threads][choice] = min(before, timing, key=lambda t: t.seconds)
        return {threads: timings for threads, timings in out.items() if timings}
