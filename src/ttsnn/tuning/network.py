"""``ttsnn.tune``: from a model to records in the tuning database."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from ttsnn.errors import DataError, TuningError
from ttsnn.runtime.threads import check_threads, default_threads
from ttsnn.sources import ModelOptions, resolve

__all__ = ["tune"]

_NEEDED = {"xgboost": "xgboost-cpu", "cloudpickle": "cloudpickle", "psutil": "psutil"}
"""What MetaSchedule imports when it runs → what to install."""

TRIALS = 200
"""Budget where none is given."""


def tune(
    model: Any,
    example: Any = None,
    *,
    target: str = "cpu",
    plan: Any = None,
    mode: str = "ptt",
    init: str = "fit",
    seed: int = 0,
    dtype: str | None = None,
    batch: int = 1,
    threads: int | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    database: str | os.PathLike | None = None,
    calibration: Any = None,
    tracker: str | None = None,
    key: str | None = None,
    options: ModelOptions | None = None,
    report: Callable[[dict], None] | None = None,
) -> dict[str, Any]:
    """Search the fastest forms and tiles of a network's layers by measuring them.

    ``ttsnn.compile`` for the same target finds what was recorded by itself. A run goes on where
    the last one stopped.

    Args:
        model, example, target, plan, mode, init, seed, dtype, batch, options: as for
            :func:`ttsnn.compile`. Weights do not matter, shapes do; but with ``calibration`` the
            weights decide how often layers spike.
        threads: CPU threads to tune for; those that networks use by default.
        trials: stop when the layers have so many records, earlier runs included; 200 where no
            budget is given.
        minutes: stop after so many minutes.
        database: folder of the records; default: of the target, in ``$TTSNN_TUNE_DIR`` or the
            user's cache.
        calibration: as for :func:`ttsnn.compile`: inputs that show how often layers spike. Those
            that read spikes are measured with as many, event-driven and not; without it none is
            event-driven.
        tracker: ``HOST:PORT`` of a tracker of TVM's RPC: measure on its devices.
        key: the devices' key there.
        report: called with the progress, see :data:`ttsnn.tuning.tuner.Progress`.

    Returns:
        See :func:`ttsnn.tuning.tuner.tune_program`, with ``model``, ``target``, ``database``,
        ``batch`` and ``threads``.

    Raises:
        TuningError: a package is missing, or the database cannot be used.
        TargetError: the target cannot be tuned.
        DataError: a setting or the calibration is wrong.
    """
    _check(trials, minutes, tracker, key)
    check_threads(threads)
    threads = threads or default_threads()

    from ttsnn.calibration import check_calibration, firing_rates
    from ttsnn.driver import decompose, example_of, import_source, make_plan
    from ttsnn.targets import get_target
    from ttsnn.tuning.database import TuningDatabase, default_folder
    from ttsnn.tuning.measure import parse_tracker
    from ttsnn.tuning.tuner import Budget, tune_program

    chosen = get_target(target)
    identity = chosen.tuning_identity()
    if calibration is not None:
        check_calibration(target, calibration)
    store = TuningDatabase(database or default_folder(identity), identity)
    place = parse_tracker(tracker) if tracker else None
    if trials is None and minutes is None:
        trials = TRIALS
    budget = Budget(trials, minutes)
    source = resolve(model, options or ModelOptions(seed=seed), probe=example is None)
    example = example_of(source, example, dtype, batch)
    mod = import_source(source, example, dtype=dtype)
    plan = source.plan_to_apply(plan, mode)
    if plan is not None:
        mod = decompose(mod, make_plan(mod, plan, mode), init=init, seed=seed)
    rates = None if calibration is None else firing_rates(mod, calibration, example)
    tasks = chosen.tuning_tasks(mod, threads, rates)
    if not tasks:
        raise TuningError(f"{source.name}: no layer of it runs as a kernel that can be tuned")
    result = tune_program(
        tasks, store, budget, tracker=place, key=key, seed=seed, report=report or (lambda _: None)
    )
    return {
        "model": source.name,
        "target": chosen.name,
        "database": str(store.folder),
        "batch": tasks[0].batch,
        "threads": threads,
        **result,
    }


def _check(trials: int | None, minutes: float | None, tracker: str | None, key: str | None) -> None:
    """Refuse what cannot be done before minutes of work."""
    for module, package in _NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise TuningError(
                f"tuning needs {package}, which is not installed: pip install 'ttsnn[tune]'"
            )
    if trials is not None and trials < 1:
        raise DataError(f"trials must be at least 1, got {trials}")
    if minutes is not None and not minutes > 0:
        raise DataError(f"minutes must be positive, got {minutes}")
    if bool(tracker) != bool(key):
        raise TuningError("a tracker goes with a key: --tracker HOST:PORT --key KEY")
