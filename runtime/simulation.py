"""Networks on the simulated accelerator: import, plan, generate, simulate, report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.events import SimulationResult
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.report import simulation_report
from ttsnn.accel_target.simulate import simulate
from ttsnn.accel_target.target import inference_passes
from ttsnn.accel_target.tech import Technology
from ttsnn.driver import decompose, import_source, make_plan
from ttsnn.errors import DataError, TargetError
from ttsnn.passes.training import SGD, CrossEntropy, Manifest, build_train_step
from ttsnn.program import num_inputs, params_of
from ttsnn.sources import ModelSource

__all__ = ["IDEAS", "PHASES", "Run", "Workload", "attribution", "options_without", "prepare"]

PHASES = ("inference", "training")
IDEAS = (
    "fusion",
    "merge_cross",
    "recompute",
    "pack_spikes",
    "neurons",
    "norms",
    "updates",
    "orient",
    "clusters",
    "lockstep",
    "gating",
)
"""What the compiler and the machine do for energy and time; each can be switched off."""


@dataclass(frozen=True)
class Run:
    """A program and its simulation on one architecture."""

    program: Program
    result: SimulationResult
    arch: Architecture

    def report(self, tech: Technology, *, gating: bool = True) -> dict[str, Any]:
        """See :func:`ttsnn.accel_target.report.simulation_report`; and ``instructions``."""
        data = simulation_report(self.result, self.arch, tech, gating=gating)
        return data | {"instructions": len(self.program)}


@dataclass(frozen=True)
class Workload:
    """A network, lowered as far as no architecture matters.

    Attributes:
        name: of the network.
        mod: its program, or one training step.
        values: inputs and parameters by name; None: time and events alone.
        firing_rate: share of spikes that are 1, where there are no values.
        operand_rate: share of other operands that are not zero, where there are no values.
    """

    name: str
    mod: tvm.IRModule
    values: Mapping[str, np.ndarray] | None
    firing_rate: float
    operand_rate: float = 1.0

    def run(self, arch: Architecture, options: Options | None = None) -> Run:
        """Generate instructions and simulate them.

        Raises:
            TargetError: the architecture cannot run the network.
        """
        program = compile_program(self.mod, arch, options)
        result = simulate(
            program,
            arch,
            values=self.values,
            firing_rate=self.firing_rate,
            operand_rate=self.operand_rate,
        )
        return Run(program, result, arch)


def prepare(
    source: ModelSource,
    *,
    phase: str = "inference",
    plan: Any = None,
    mode: str = "ptt",
    init: str = "fit",
    seed: int = 0,
    batch: int = 1,
    timing_only: bool = False,
    firing_rate: float = 0.1,
    operand_rate: float = 1.0,
) -> Workload:
    """A network as a workload.

    Args:
        source: the network.
        phase: ``inference``, or ``training``: a step of SGD with momentum on cross-entropy.
        plan, mode, init, seed: as in :func:`ttsnn.compile`.
        batch: samples.
        timing_only: no values: spikes are 1 as often as ``firing_rate`` says, and no other number
            is zero. Else the network runs on its example input, and zeros are what they are.

    Raises:
        TTSNNError: one of its kinds.
    """
    if phase not in PHASES:
        raise DataError(f"unknown phase {phase!r}: use {' or '.join(PHASES)}")
    for what, rate in (("a firing rate", firing_rate), ("an operand rate", operand_rate)):
        if not 0 <= rate <= 1:
            raise DataError(f"{what} lies between 0 and 1, got {rate}")
    mod = import_source(source, batch=batch)
    if plan is not None:
        mod = decompose(mod, make_plan(mod, plan, mode), init=init, seed=seed)
    if phase == "inference":
        for step in inference_passes():
            mod = step(mod)
    else:
        # the sum over timesteps of a hoisted stem's gradient would go through DRAM
        mod = build_train_step(mod, CrossEntropy(), SGD(momentum=0.9), hoist=False)
    values = None if timing_only else _values(mod, seed)
    return Workload(source.name, mod, values, firing_rate, operand_rate)


def _values(mod: tvm.IRModule, seed: int) -> dict[str, np.ndarray]:
    """Random inputs and labels, the network's parameters."""
    rng, main, params = np.random.default_rng(seed), mod["main"], params_of(mod)
    roles: list[str] = []
    if "labels" in {a.name for a in main.params}:
        roles = [s.role for s in Manifest.of(mod).functions["main"].arguments]
    out: dict[str, np.ndarray] = {}
    names = iter(params)
    for i, arg in enumerate(main.params):
        shape = [int(s) for s in arg.ty.shape.values]
        if i >= num_inputs(main):
            name = next(names)
            out[name] = params[name]
        elif roles and roles[i] == "label":
            out[arg.name] = rng.integers(0, _classes(mod), shape)
        elif roles and roles[i] == "lr":
            out[arg.name] = np.array(0.1)
        elif roles and roles[i] == "step":
            out[arg.name] = np.array(1)
        else:
            out[arg.name] = rng.normal(size=shape).astype(str(arg.ty.dtype))
    return out


def _classes(mod: tvm.IRModule) -> int:
    """Of the logits: the last size of the results that are outputs."""
    results = Manifest.of(mod).functions["main"].results
    return int(next(s.shape[-1] for s in results if s.role == "output"))


def options_without(names: str | None) -> tuple[Options, bool]:
    """Options and gating without some of :data:`IDEAS`, ``"fusion,gating"``.

    Raises:
        TargetError: no such idea.
    """
    off = [n.strip().replace("-", "_") for n in (names or "").split(",") if n.strip()]
    for name in off:
        if name not in IDEAS:
            raise TargetError(f"there is no idea {name!r} to switch off; use {', '.join(IDEAS)}")
    options = replace(Options(), **{n: False for n in off if n != "gating"})
    return options, "gating" not in off


def attribution(
    workload: Workload,
    arch: Architecture,
    techs: Sequence[Technology],
    names: Collection[str] | None = None,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Reports with everything, then with each of :data:`IDEAS` switched off by itself.

    Args:
        workload: the network.
        arch: the machine.
        techs: energies are reported in each.
        names: of the runs wanted; None: all.

    Yields:
        Run, technology, report. The runs are ``all``, ``without fusion``, …, and ``none``, without
        any of the ideas. Where the network does not fit without one: ``{"error": message}``.
    """
    everything = Options()
    runs: dict[str, tuple[Options, bool]] = {"all": (everything, True)}
    for idea in IDEAS:
        changed = everything if idea == "gating" else replace(everything, **{idea: False})
        runs[f"without {idea}"] = changed, idea != "gating"
    nothing = {idea: False for idea in IDEAS if idea != "gating"}
    runs["none"] = replace(everything, **nothing), False
    done: dict[Options, Run | str] = {}
    for name, (options, gating) in runs.items():
        if names is not None and name not in names:
            continue
        if len(arch.clusters) == 1:  # where these change nothing
            options = replace(options, clusters=True, lockstep=True)
        if options not in done:
            try:
                done[options] = workload.run(arch, options)
            except TargetError as error:
                done[options] = str(error)
        run = done[options]
        for tech in techs:
            report = {"error": run} if isinstance(run, str) else run.report(tech, gating=gating)
            yield name, tech.name, report
