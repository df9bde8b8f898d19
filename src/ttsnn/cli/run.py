"""``ttsnn run``: one call of a compiled network."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ttsnn.cli import _common, _io

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "run",
        "Run a compiled network once, on a file, on samples of a dataset, or on random input.",
        "ttsnn run net.ttsnn --input x.npy -o y.npy\n"
        "ttsnn run net.ttsnn --dataset digits --samples 0,1,2",
        "A network that is not compiled yet is compiled first (and not kept).",
    )
    _common.add_model(parser, artifact=True)
    _common.add_plan(parser)
    _common.add_compile(parser)
    _common.add_threads(parser)
    group = parser.add_argument_group("input (random, if none is given)")
    group.add_argument("--input", metavar="FILE", help=".npy, .npz or .safetensors")
    group.add_argument("--samples", metavar="I,J,…", help="samples of --dataset, by index")
    _io.add_dataset(group)
    parser.add_argument("-o", "--out", metavar="FILE", help="write the outputs there")


def run(args: argparse.Namespace) -> int:
    """Run and show what came out."""
    _io.check_output(args.out)
    net = _common.load_net(args)
    labels = None
    if args.input is not None:
        inputs = _io.read_inputs(args.input, net.inputs)
    elif args.samples is not None:
        x, labels = _samples(args, net)
        inputs = [x]
    else:
        inputs = _io.random_inputs(net.inputs, args.batch, args.seed)
    start = time.perf_counter()
    result = net(*inputs, threads=args.threads)
    elapsed = time.perf_counter() - start
    outputs = result if isinstance(result, tuple) else (result,)
    named = {s.name: v for s, v in zip(net.outputs, outputs)}
    if args.out is not None:
        _io.write_outputs(args.out, named)
    first = outputs[0]
    data: dict[str, Any] = {
        "model": net.manifest.model,
        "outputs": {k: {"shape": list(v.shape), "dtype": str(v.dtype)} for k, v in named.items()},
        "time_ms": elapsed * 1e3,
        "out": args.out,
    }
    if first.ndim == 2:
        data["top1"] = [int(i) for i in np.argmax(first, axis=1)]
    if labels is not None:
        data["labels"] = labels
    if net.manifest.spikes:
        data["firing_rates"] = {k: float(np.mean(named[k])) for k in net.manifest.spikes}
    if first.size <= 1000:
        data["values"] = first.tolist()

    def show(console: Console) -> None:
        for name, spec in data["outputs"].items():
            console.print(f"{name}: {spec['dtype']}{spec['shape']}")
        if "top1" in data:
            console.print(f"top-1: {data['top1']}")
        if labels is not None:
            console.print(f"label: {labels}")
        for name, rate in data.get("firing_rates", {}).items():
            console.print(f"{name}: {100 * rate:.2f} % fire")
        console.print(f"{data['time_ms']:.2f} ms (the first call, cold)")
        if args.out is not None:
            console.print(f"written to {args.out}")

    _common.emit(args, data, show)
    return 0


def _samples(args: argparse.Namespace, net: Any) -> tuple[np.ndarray, list[int]]:
    from ttsnn.errors import DataError

    try:
        indices = [int(i) for i in args.samples.split(",")]
    except ValueError:
        raise DataError(f"--samples takes indices such as 0,1,2, got {args.samples!r}") from None
    args.dataset = args.dataset or "cifar10"
    spec = net.inputs[0]
    size = spec.shape[-1] if len(spec.shape) >= 4 and isinstance(spec.shape[-1], int) else None
    dataset = _io.dataset_of(args, net.manifest.T, size)
    wrong = [i for i in indices if not 0 <= i < len(dataset)]
    if wrong:
        raise DataError(
            f"{args.dataset} {args.split} has samples 0 … {len(dataset) - 1}, not {wrong[0]}"
        )
    x, y = dataset.batch(indices)
    return x.numpy().astype(spec.dtype), [int(v) for v in y]
