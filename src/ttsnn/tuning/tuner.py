"""The tuning run: defaults first, then MetaSchedule's search, then the winners once more."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import psutil
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from ttsnn.cpus import available_cpus
from ttsnn.errors import TuningError
from ttsnn.passes.cpu.tuning import LayerTask
from ttsnn.passes.cpu.tuning.kernel import CHOICE, build_candidate
from ttsnn.tuning.best import (
    FAILED_S,
    Timing,
    Timings,
    choice_text,
    contender,
    pick,
    timings_of,
)
from ttsnn.tuning.database import TuningDatabase
from ttsnn.tuning.measure import start_builder, start_runner
from ttsnn.tuning.strategy import context_of, cost_model, seeds_of

__all__ = ["Budget", "Progress", "tune_program"]

BATCH = 8
"""Candidates that are built and measured together."""

CONFIRM_ROUNDS = 4

Progress = Callable[[dict], None]
"""Called after every batch with ``trials``, ``default_ms``, ``best_ms`` (None: not known yet)."""


@dataclass(frozen=True)
class Budget:
    """When to stop.

    Attributes:
        trials: measured candidates, those that the database has already included.
        minutes: of this run.
    """

    trials: int | None = None
    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def expired(self) -> bool:
        """Whether the minutes are over."""
        return self.minutes is not None and time.monotonic() - self.started > self.minutes * 60


class _Stop(Exception):
    """The minutes are over, or the user interrupts."""


class _Interrupt:
    """Ctrl-C as a flag: an exception out of nowhere has no good way through MetaSchedule.

    The batch that runs is finished. The second Ctrl-C is Python's own.
    """

    def __init__(self) -> None:
        self.seen = False
        self.before: Any = None

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _note(self, *_: object) -> None:
        self.seen = True
        signal.signal(signal.SIGINT, self.before)


def tune_program(
    tasks: Sequence[LayerTask],
    database: TuningDatabase,
    budget: Budget,
    *,
    tracker: tuple[str, int] | None = None,
    key: str | None = None,
    seed: int = 0,
    report: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure choices for the layers of a network until the budget is spent.

    The untuned default of every layer is measured before anything else, and what wins is
    measured again beside it, so that a layer never gets slower but by noise. Records are
    appended to the database as they come: a run that is interrupted, or killed, is continued by
    the next.

    Args:
        tasks: the layers.
        database: where records go.
        budget: when to stop.
        tracker, key: measure on devices of TVM's RPC instead of this machine.
        seed: of the search.
        report: told of the progress.

    Returns:
        ``trials``, ``new_trials``, ``default_ms`` and ``best_ms`` (sums over all layers of the
        network; None where one was not measured), ``interrupted``, and ``layers``: for each task
        its ``layers``, ``firing_rate`` (None: not known), ``form``, ``default_form``, ``events``,
        ``default_events`` (whether event-driven), ``default_us``, ``best_us``, ``trials``.
    """
    with (
        database.writing() as records,
        tempfile.TemporaryDirectory(prefix="ttsnn-tune-") as folder,
        _no_workers_left(),
        _Interrupt() as interrupt,
    ):
        run = _Run(tasks, records, budget, interrupt, report, folder, tracker, key, seed)
        run.all()
        return run.result() | {"interrupted": interrupt.seen}


class _Run:
    """One tuning run."""

    def __init__(
        self,
        tasks: Sequence[LayerTask],
        records: Any,
        budget: Budget,
        interrupt: _Interrupt,
        report: Progress,
        folder: str,
        tracker: tuple[str, int] | None,
        key: str | None,
        seed: int,
    ) -> None:
        self.tasks, self.records, self.report = tasks, records, report
        self.budget, self.interrupt = budget, interrupt
        self.contexts = [context_of(t, i, seed) for i, t in enumerate(tasks)]
        self.model = cost_model(tasks)
        self.before = self.count()
        self.folder, self.tracker, self.key = folder, tracker, key

    # processes take seconds to start: not where nothing is left to measure

    @cached_property
    def builder(self) -> Any:
        """Builds candidates."""
        return start_builder(build_candidate, self.folder, available_cpus())

    @cached_property
    def runner(self) -> Any:
        """Measures them."""
        return start_runner(self.tasks[0].threads, self.tracker, self.key)

    def all(self) -> None:
        """Everything, in order."""
        self._recall()
        self.report(self.state())
        self._defaults()
        self._search()
        self._confirm()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be measured, but for winners."""
        return self.budget.expired or self.interrupt.seen

    # -- what is known ---------------------------------------------------------------------------

    def _mine(self, task: LayerTask) -> list[Any]:
        workload = self.records.commit_workload(task.module)
        return list(self.records.get_top_k(workload, 10**6))

    def timings(self) -> list[Timings]:
        """What is known of each task."""
        known = timings_of(self.records.get_all_tuning_records())
        return [known.get(t.key, {}).get(t.threads, {}) for t in self.tasks]

    def count(self) -> int:
        """Records of these tasks."""
        return sum(len(self._mine(t)) for t in self.tasks)

    def state(self) -> dict[str, Any]:
        """Trials so far, and the time of all layers together."""
        timings = self.timings()
        defaults = [t.get(task.default.to_json()) for t, task in zip(timings, self.tasks)]
        best = [pick(t, task.default.to_json()) for t, task in zip(timings, self.tasks)]
        return {
            "trials": self.count(),
            "default_ms": self._sum(defaults),
            "best_ms": self._sum(best),
        }

    def _sum(self, times: Sequence[Timing | None]) -> float | None:
        if any(t is None for t in times):
            return None
        pairs = zip(times, self.tasks)
        return sum(t.seconds * len(task.layers) for t, task in pairs if t is not None) * 1e3

    def result(self) -> dict[str, Any]:
        """See :func:`tune_program`."""
        state, layers = self.state(), []
        for task, timings in zip(self.tasks, self.timings()):
            default = task.default.to_json()
            base, best = timings.get(default), pick(timings, default)
            chosen = task.choice(best.choice) if best is not None else task.default
            layers.append(
                {
                    "layers": list(task.layers),
                    "firing_rate": task.rate,
                    "default_form": task.default.form,
                    "form": chosen.form,
                    "default_events": task.default.tiles.events,
                    "events": chosen.tiles.events,
                    "default_us": base.seconds * 1e6 if base is not None else None,
                    "best_us": best.seconds * 1e6 if best is not None else None,
                    "trials": sum(t.records for t in timings.values()),
                }
            )
        return state | {"new_trials": state["trials"] - self.before, "layers": layers}

    # -- the steps -------------------------------------------------------------------------------

    def _recall(self) -> None:
        """Teach the cost model what was measured before."""
        for task, context in zip(self.tasks, self.contexts):
            known = [r for r in self._mine(task) if r.run_secs and float(r.run_secs[0]) < FAILED_S]
            if known:
                candidates = [r.as_measure_candidate() for r in known]
                results = [ms.runner.RunnerResult(r.run_secs, None) for r in known]
                self.model.update(context, candidates, results)

    def _defaults(self) -> None:
        """Measure the analytic default of every form that has no record yet, the default first."""
        todo = []
        for i, (task, timings) in enumerate(zip(self.tasks, self.timings())):
            for candidate in seeds_of(task):
                choice = _choice_text(candidate)
                if choice not in timings:
                    todo.append((choice != task.default.to_json(), i, candidate))
        todo.sort(key=lambda entry: entry[:2])
        for at in range(0, len(todo), BATCH):
            if self._spent():
                return
            self._measure([(i, c) for _, i, c in todo[at : at + BATCH]])

    def _spent(self) -> bool:
        trials = self.budget.trials
        return self.stopped or (trials is not None and self.count() >= trials)

    def _search(self) -> None:
        """MetaSchedule's search, its task scheduler dealing out the trials."""
        left = 10**6
        if self.budget.trials is not None:
            left = self.budget.trials - self.count()
        if left <= 0 or self.stopped:
            return
        # the scheduler gives every task a first batch before it looks at what each can gain
        per_iteration = max(2, min(BATCH, left // (2 * len(self.tasks))))
        try:
            ms.tune.tune_tasks(
                tasks=self.contexts,
                task_weights=[float(len(t.layers)) for t in self.tasks],
                work_dir="",
                max_trials_global=left,
                num_trials_per_iter=per_iteration,
                builder=self.builder,
                runner=self.runner,
                database=self.records,
                cost_model=self.model,
                measure_callbacks=[
                    ms.measure_callback.AddToDatabase(),
                    ms.measure_callback.UpdateCostModel(),
                    ms.measure_callback.RemoveBuildArtifact(),
                    _Watch(self),
                ],
                task_scheduler="gradient",
            )
        except Exception:
            if not self.stopped:
                raise

    def _confirm(self) -> None:
        """Measure what won once again, side by side with the default, until it is sure."""
        for _ in range(CONFIRM_ROUNDS):
            if self.interrupt.seen:
                return
            todo = []
            for i, (task, timings) in enumerate(zip(self.tasks, self.timings())):
                default = task.default.to_json()
                best = contender(timings, default)
                if best is None:
                    continue
                by_choice: dict[str, Any] = {}
                for record in self._mine(task):
                    candidate = record.as_measure_candidate()
                    by_choice.setdefault(_choice_text(candidate), candidate)
                todo += [(i, by_choice[c]) for c in (default, best.choice) if c in by_choice]
            if not todo:
                return
            self._measure(todo)

    def _measure(self, candidates: list[tuple[int, Any]]) -> None:
        """Build, run and record candidates of several tasks."""
        inputs = [ms.builder.BuilderInput(c.sch.mod, self.tasks[i].target) for i, c in candidates]
        built = self.builder.build(inputs)
        results: list[Any] = [
            ms.runner.RunnerResult(None, b.error_msg) if b.error_msg is not None else None
            for b in built
        ]
        ready = [at for at, result in enumerate(results) if result is None]
        futures = self.runner.run(
            [
                ms.runner.RunnerInput(built[at].artifact_path, "cpu", candidates[at][1].args_info)
                for at in ready
            ]
        )
        for at, future in zip(ready, futures):
            results[at] = future.result()
        failures = [r.error_msg for r in results if r.error_msg is not None]
        if len(failures) == len(results):
            reason = (str(failures[0]).strip().splitlines() or ["?"])[-1]
            raise TuningError(f"candidates cannot be built or measured: {reason}")
        for index in dict.fromkeys(i for i, _ in candidates):
            pairs = [
                (c, r)
                for (i, c), r in zip(candidates, results)
                if i == index and r.error_msg is None
            ]
            self._record(index, pairs)
        self.report(self.state())

    def _record(self, index: int, measured: list[tuple[Any, Any]]) -> None:
        """Append what was measured of one task, and teach the cost model."""
        task = self.tasks[index]
        workload = self.records.commit_workload(task.module)
        for candidate, result in measured:
            self.records.commit_tuning_record(
                ms.database.TuningRecord(
                    candidate.sch.trace,
                    workload,
                    list(result.run_secs),
                    task.target,
                    candidate.args_info,
                )
            )
        if measured:
            candidates, results = zip(*measured)
            self.model.update(self.contexts[index], list(candidates), list(results))


@derived_object
class _Watch(ms.measure_callback.PyMeasureCallback):
    """Reports after each batch, and stops the search when the minutes are over."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    def apply(
        self, _scheduler: Any, _task: int, _candidates: Any, _built: Any, _results: Any
    ) -> None:
        self.run.report(self.run.state())
        if self.run.stopped:
            raise _Stop


def _choice_text(candidate: Any) -> str:
    return choice_text(str(candidate.sch.mod["main"].body.block.annotations[CHOICE]))


@contextlib.contextmanager
def _no_workers_left() -> Iterator[None]:
    """End the processes that MetaSchedule started in the block, however it ends."""
    me = psutil.Process(os.getpid())
    before = {p.pid for p in me.children(recursive=True)}
    try:
        yield
    finally:
        for child in me.children(recursive=True):
            if child.pid not in before:
                with contextlib.suppress(psutil.Error):
                    child.kill()
