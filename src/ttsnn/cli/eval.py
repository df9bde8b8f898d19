"""``ttsnn eval``: accuracy and firing rates on a dataset."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ttsnn.cli import _common, _io
from ttsnn.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run"]

Step = Callable[[Any], tuple[np.ndarray, dict[str, np.ndarray]]]


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "eval",
        "Accuracy and firing rates of a network on a dataset. An artifact runs compiled; any "
        "other network runs in PyTorch (with its TT layers, if a plan is given), or compiled with "
        "--compiled.",
        "ttsnn eval net.ttsnn --dataset digits\n"
        "ttsnn eval ms_resnet18 --dataset cifar10 --data ~/data --weights best.pt --limit 1000",
        "Firing rates of an artifact need one compiled with --record-spikes.",
    )
    _common.add_model(parser, artifact=True)
    _common.add_plan(parser)
    _common.add_compile(parser)
    _common.add_threads(parser)
    group = parser.add_argument_group("data")
    _io.add_dataset(group)
    group.add_argument("--limit", type=_common.positive, metavar="K", help="samples at most")
    parser.add_argument("--compiled", action="store_true", help="compile, then evaluate that")


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    args.dataset = args.dataset or "cifar10"
    artifact = args.model.lower().endswith(".ttsnn")
    if artifact or args.compiled:
        net = _common.load_net(args, record_spikes=True)
        if len(net.inputs) != 1:
            raise DataError(f"{args.model} takes {len(net.inputs)} inputs; eval feeds one")
        spec = net.inputs[0]
        T, size = net.manifest.T, spec.shape[-1]
        step, engine = _compiled_step(net, args.threads), "ttsnn"
        axis = 1 if len(spec.shape) == 5 else 0
        batch_size = spec.shape[axis]
        fixed = batch_size if isinstance(batch_size, int) else None
        name, dtype = net.manifest.model, spec.dtype
    else:
        source = _common.resolve_model(args)
        if source.kind != "module":
            raise DataError(f"{args.model}: evaluate it with --compiled")
        assert source.input is not None
        T = source.input.shape[0] if source.input.batch_axis == 1 else source.options.timesteps
        size, axis, fixed = source.input.shape[-1], source.input.batch_axis, None
        step, engine = _torch_step(args, source), "pytorch"
        name, dtype = source.name, args.dtype
    dataset = _io.dataset_of(args, T, size if isinstance(size, int) else None)
    if dataset.spec.static != (axis == 0):
        kind = "images" if dataset.spec.static else "event frames"
        raise DataError(f"{args.dataset} holds {kind}, which {name} does not take")
    data = _evaluate(
        dataset, step, fixed or max(args.batch, 1 if fixed else 32), axis, fixed, dtype, args
    )
    data = {"model": name, "engine": engine, "dataset": args.dataset, "split": args.split, **data}

    def show(console: Console) -> None:
        from rich.table import Table

        console.print(
            f"[bold]{name}[/bold] ({engine}) on {args.dataset} {args.split}: "
            f"{100 * data['accuracy']:.2f} % of {data['samples']} samples, "
            f"{data['samples_per_s']:.0f} samples/s"
        )
        if data["firing_rates"]:
            table = Table("neurons", "firing rate")
            for layer, rate in data["firing_rates"].items():
                table.add_row(layer, f"{100 * rate:.2f} %")
            console.print(table)

    _common.emit(args, data, show)
    return 0


def _evaluate(
    dataset: Any,
    step: Step,
    batch: int,
    axis: int,
    fixed: int | None,
    dtype: str,
    args: argparse.Namespace,
) -> dict:
    """Run batches; the last one is padded where the network's batch size is fixed."""
    correct = count = 0
    seconds = 0.0
    fired: dict[str, float] = {}
    for x, y in dataset.batches(batch, limit=args.limit):
        x = x.numpy().astype(dtype)
        real = len(y)
        if fixed is not None and real < fixed:
            padding = [(0, 0)] * x.ndim
            padding[axis] = (0, fixed - real)
            x = np.pad(x, padding)
        start = time.perf_counter()
        logits, spikes = step(x)
        seconds += time.perf_counter() - start
        if logits.ndim != 2 or logits.shape[0] != x.shape[axis]:
            raise DataError(
                f"the network's output {list(logits.shape)} is no [N, classes] logits; "
                "eval needs a classifier"
            )
        correct += int((np.argmax(logits[:real], axis=1) == y.numpy()).sum())
        count += real
        for name, s in spikes.items():
            fired[name] = fired.get(name, 0.0) + float(s[:, :real].mean()) * real
    if count == 0:
        raise DataError(f"{args.dataset} {args.split} has no samples")
    return {
        "samples": count,
        "accuracy": correct / count,
        "firing_rates": {k: v / count for k, v in fired.items()},
        "samples_per_s": count / seconds,
        "threads": args.threads,
    }


def _compiled_step(net: Any, threads: int | None) -> Step:
    names = [s.name for s in net.outputs]

    def step(x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        net.reset()
        out = net(x, threads=threads)
        named = dict(zip(names, out if isinstance(out, tuple) else (out,)))
        return named[names[0]], {k: named[k] for k in net.manifest.spikes}

    return step


def _torch_step(args: argparse.Namespace, source: Any) -> Step:
    import torch

    from ttsnn import driver, models

    module = source.module.to(getattr(torch, args.dtype))
    rule = source.plan_to_apply(_common.plan_of(args), args.mode)
    if rule is not None:
        program = driver.import_source(source, dtype=args.dtype)
        plan = driver.make_plan(program, rule, args.mode)
        module = models.apply_plan(module, plan, init=args.init, seed=args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)

    def step(x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        logits, spikes = models.spikes_of(module, torch.from_numpy(x))
        return logits.numpy(), {name: s.numpy() for name, s in spikes}

    return step
