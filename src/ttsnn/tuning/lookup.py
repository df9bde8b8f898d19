"""How ``ttsnn.compile`` finds what was tuned."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import tvm

from ttsnn.errors import TargetError, TuningError
from ttsnn.passes.cpu.tuning import LayerChoice, LayerTask
from ttsnn.passes.cpu.tuning.workload import anonymous, workload_key
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.runtime.threads import default_threads
from ttsnn.targets import Target
from ttsnn.tuning.best import pick, timings_of
from ttsnn.tuning.database import TuningDatabase, default_folder

__all__ = ["Database", "look_up"]

Database = str | os.PathLike | bool | None
"""Where tuning records are: a folder; None (or True): the default place, where there are some;
False: nowhere."""


def look_up(mod: tvm.IRModule, target: Target, database: Database = None) -> Any:
    """What the tuner found for the layers of a program; None where nothing was tuned.

    Args:
        mod: a program as ``target.lower`` takes it.
        target: what it is compiled to.
        database: see :data:`Database`.

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
        records = store.records()
    except TargetError:
        if named:
            raise
        return None
    except TuningError as error:
        if named:
            raise
        warnings.warn(f"compiled without tuning: {error}", stacklevel=3)
        return None
    return target.look_up(mod, _Best(records, target).of)


class _Best:
    """The best choice for a layer, of a database's records."""

    def __init__(self, records: list[Any], target: Target) -> None:
        self.target = target.tvm_target
        said = target.options.get("num-cores")
        self.threads = int(said) if said else default_threads()
        self.known = timings_of(records)
        self.batches: dict[str, list[int]] = {}
        for key in self.known:
            batch, config = json.loads(key)
            self.batches.setdefault(config, []).append(batch)

    def of(self, config: LayerConfig, batch: int | None) -> Any:
        """For ``Target.look_up``.

        A kernel for any batch takes what the largest tuned batch has. Where the layer was tuned
        with other numbers of threads, the nearest counts.
        """
        if batch is None:
            batch = max(self.batches.get(anonymous(config).to_json(), ()), default=None)
        if batch is None:
            return None
        by_threads = self.known.get(workload_key(config, batch))
        if not by_threads:
            return None
        threads = min(by_threads, key=lambda n: (abs(n - self.threads), n))
        task = LayerTask(anonymous(config), batch, self.target, threads)
        default = task.default.to_json()
        best = pick(by_threads[threads], default)
        if best is None:
            return None
        base = by_threads[threads].get(default)
        return LayerChoice.from_json(best.choice), {
            "threads": threads,
            "batch": batch,
            "us": best.seconds * 1e6,
            "default_us": None if base is None else base.seconds * 1e6,
        }
