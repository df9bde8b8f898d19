"""The tuner's tasks as MetaSchedule takes them: design spaces, mutation, features, cost model.

Each form of a layer is a design space: a trace that samples a value for each knob. MetaSchedule's
evolutionary search samples and mutates the decisions; a postprocessor turns them into the choice
that a candidate is built by, so a record in the database says plainly what was measured.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms

__all__ = ["TuningTask", "candidates_of", "context_of", "cost_model", "seeds_of"]


class TuningTask(Protocol):
    """What a target says of one thing to tune."""

    @property
    def module(self) -> tvm.IRModule:
        """The workload."""

    @property
    def target(self) -> tvm.target.Target:
        """What it is built for."""

    def spaces(self, sch: Schedule, seed: bool = False) -> list[Schedule]:
        """Design spaces; ``seed``: with the decisions of the untuned default."""

    def settle(self, sch: Schedule) -> None:
        """Decisions → what is built."""

    def mutate(self, trace: Any, rng: random.Random) -> Any:
        """The trace with another decision, or None."""

    def features(self, mod: tvm.IRModule) -> np.ndarray:
        """Features [1, n] of a candidate."""


@derived_object
class _Settle(ms.postproc.PyPostproc):
    def __init__(self, task: TuningTask) -> None:
        super().__init__()
        self.task = task

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        pass

    def apply(self, sch: Schedule) -> bool:
        self.task.settle(sch)
        return True

    def clone(self) -> Any:
        return _Settle(self.task)


@derived_object
class _Mutate(ms.mutator.PyMutator):
    def __init__(self, task: TuningTask) -> None:
        super().__init__()
        self.task = task

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        pass

    def apply(self, trace: Any, seed: Any) -> Any:
        return self.task.mutate(trace, random.Random(int(seed)))

    def clone(self) -> Any:
        return _Mutate(self.task)


@derived_object
class _Features(ms.feature_extractor.PyFeatureExtractor):
    def __init__(self, tasks: Sequence[TuningTask]) -> None:
        super().__init__()
        self.tasks = tasks

    def extract_from(self, context: ms.TuneContext, candidates: list) -> list:
        task = self.tasks[int(context.task_name)]
        return [tvm.runtime.tensor(task.features(c.sch.mod)) for c in candidates]


def context_of(task: TuningTask, index: int, seed: int) -> ms.TuneContext:
    """MetaSchedule's context of the ``index``-th task."""
    space = ms.space_generator.ScheduleFn(
        task.spaces,
        sch_rules=[],
        postprocs=[_Settle(task)],
        mutator_probs={_Mutate(task): 1.0},
    )
    search = ms.search_strategy.EvolutionarySearch(
        population_size=64,
        init_measured_ratio=0.25,
        init_min_unmeasured=32,
        genetic_num_iters=3,
        eps_greedy=0.1,
    )
    with _without_intrinsics():
        return ms.TuneContext(
            task.module,
            target=task.target,
            space_generator=space,
            search_strategy=search,
            task_name=str(index),
            rand_state=1 + (seed * 7919 + index) % (2**31 - 2),
            num_threads=1,  # the callbacks are Python
        )


@contextlib.contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Keep ``TuneContext`` from importing TVM's tensor intrinsics, which we do not use.

    Parsing them takes a minute where PyTorch is loaded: for each, every module of the process is
    looked at.
    """
    name = "tvm.s_tir.tensor_intrin"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


def cost_model(tasks: Sequence[TuningTask]) -> Any:
    """MetaSchedule's gradient-boosted trees on our features."""
    return ms.cost_model.XGBModel(
        extractor=_Features(tasks),
        num_warmup_samples=16,
        num_tuning_cores=1,
        early_stopping_rounds=10,
        verbose_eval=10**9,
    )


def seeds_of(task: TuningTask) -> list[Any]:
    """The untuned default of each form, as candidates."""
    out = []
    for sch in task.spaces(Schedule(task.module), seed=True):
        sch.enter_postproc()
        task.settle(sch)
        out.append(ms.search_strategy.MeasureCandidate(sch, args_info(task)))
    return out


def args_info(task: TuningTask) -> list[Any]:
    """Shapes and dtypes of the arguments."""
    return list(ms.arg_info.ArgInfo.from_entry_func(task.module))


def candidates_of(records: Sequence[Any]) -> list[Any]:
    """Records of a database as candidates."""
    return [r.as_measure_candidate() for r in records]
