"""Compiling the cases, and computing what they must give."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from gpu import agreement
from gpu.cases import INDEX, MOMENTUM, Case, batch_of, dense_network, first_cases, grid
from gpu.store import Store, strip, write_json

CALIBRATION = 8  # samples; the same weights at every batch size


def imported(case: Case, rule: str) -> tuple[torch.nn.Module, Any, Any]:
    """The network with a plan of that rule, the program, and the plan (None for dense)."""
    from ttsnn import models
    from ttsnn.driver import make_plan
    from ttsnn.frontend import import_model

    model = dense_network(case)
    x, _ = batch_of(case, model)
    plan = None
    if case.mode != "dense":
        plan = make_plan(import_model(model, example=x), rule, case.mode)
        model = models.apply_plan(model, plan, init="fresh").eval()
        models.calibrate(model, models.example_input(model, CALIBRATION))
    return model, import_model(model, example=x), plan


def lowered_of(case: Case, program: Any, target: Any) -> Any:
    """The kernels of a case, before they are compiled."""
    from ttsnn.passes.training import SGD, CrossEntropy, build_train_step

    if case.phase == "inference":
        return target.lower(program)
    step = build_train_step(program, CrossEntropy(), SGD(momentum=MOMENTUM))
    return target.lower_training(step)


def compile_case(
    case: Case, folder: Path, store: Store, args: argparse.Namespace
) -> dict[str, Any]:
    """Write a case's files, and what ``run`` wants to know of it."""
    from safetensors.numpy import save_file as save_arrays

    from ttsnn.driver import build
    from ttsnn.passes.traffic import traffic
    from ttsnn.passes.training import SGD, CrossEntropy
    from ttsnn.runtime.step_file import save_step
    from ttsnn.runtime.training.step import TrainStep
    from ttsnn.targets import get_target

    model, program, plan = imported(case, args.plan)
    options = f"arch={args.archs},precision={case.precision}{',graph=on' if case.graph else ''}"
    target = get_target(f"{args.target}:{options}")
    file = case.file(folder, "ttsnn")
    recorded = case.phase == "inference" and case.batch <= args.record_batch and not case.graph
    start = time.perf_counter()
    if case.phase == "inference":
        build(program, target, name=case.name).save(file)
        if recorded:
            recording = build(program, target, name=case.name, record_spikes=True)
            recording.save(case.file(folder, "spikes.ttsnn"))
    else:
        step = TrainStep(program, CrossEntropy(), SGD(momentum=MOMENTUM), target=target)
        save_step(step, file, model=case.name)
    seconds = time.perf_counter() - start
    kernels = traffic(lowered_of(case, program, target))
    kinds = ("ttsnn", *(["spikes.ttsnn"] if recorded else []))
    artifacts = {kind: strip(case.file(folder, kind), store) for kind in kinds}
    if case.phase == "inference" or case.batch <= args.check_batch:
        want = agreement.reference(case, model, *batch_of(case, model), spikes=recorded)
        save_arrays(want, case.file(folder, "check.safetensors"))
    return asdict(case) | {
        "plan": None if plan is None else plan.to_json(),
        "artifacts": artifacts,
        "weights": store.add({k: v.numpy() for k, v in model.state_dict().items()}),
        "macs": sum(k.macs for k in kernels),
        "bytes": sum(k.bytes for k in kernels),
        "launches": sum(k.calls for k in kernels),
        "compile_s": seconds,
        "file_bytes": sum(f.stat().st_size for f in folder.glob(f"{case.name}.*")),
    }


def compile_all(args: argparse.Namespace) -> int:
    """Write all cases."""
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.preset == "first":
        cases = first_cases()
    else:
        lists = (args.phases, args.networks, args.modes, args.batches, args.timesteps)
        cases = grid(*lists, args.precisions, args.dataset)
    done, store = [], Store(args.folder)
    for case in (c for c in cases if fnmatch(c.name, args.only)):
        done.append(compile_case(case, args.folder, store, args))
        store.save()
        size = done[-1]["file_bytes"] / 2**20
        print(f"{case.name}: {done[-1]['compile_s']:.0f} s, {size:.1f} MiB", flush=True)
        write_json(args.folder / INDEX, done)
    total = sum(f.stat().st_size for f in args.folder.iterdir())
    print(f"{len(done)} cases, {total / 2**20:.1f} MiB in {args.folder}")
    return 0
