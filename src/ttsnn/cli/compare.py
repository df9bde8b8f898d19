"""``ttsnn compare``: a compiled network against its PyTorch twin and other runtimes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common, _io

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run", "show_comparison"]

_DETAILS = """\
Both run the same input; every spike of every neuron layer is compared. Times are medians of
interleaved pairs; ratios are peer / ours, so above 1 means that ttsnn is faster. Memory is what
one call needs beside the loaded network. Exit code 1 where the two do not agree.
peers: eager, eager_loop, eager_channels_last, inductor, onnxruntime; with dense_ in front the
network without tensor trains (dense_eager, dense_loop …); all, none."""


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "compare",
        "Compile a network, check that it computes what PyTorch computes, and time it against "
        "PyTorch and other runtimes.",
        "ttsnn compare ms_resnet18 --plan paper --mode ptt --batch 8 --threads 1\n"
        "ttsnn compare mynets:build --weights best.pt --plan vbmf --dtype float64 --against eager",
        _DETAILS,
    )
    _common.add_model(parser)
    _common.add_plan(parser)
    _common.add_target(parser)
    _common.add_dtype(parser)
    parser.add_argument("--batch", type=_common.positive, default=1, metavar="N", help="samples")
    _common.add_threads(parser)
    parser.add_argument("--against", metavar="PEER,…", help="(default: all but some dense ones)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="time for each peer (default: 2)"
    )
    parser.add_argument(
        "--repeats", type=_common.positive, metavar="K", help="pairs for each peer, instead"
    )
    parser.add_argument(
        "--phase",
        choices=("inference", "train"),
        default="inference",
        help="train: one whole training step (default: inference)",
    )
    _common.add_checkpointing(parser)
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="let firing rates on the input choose event-driven layers",
    )
    group = parser.add_argument_group("real input instead of random")
    group.add_argument("--real", action="store_true", help="the first samples of --dataset")
    _io.add_dataset(group)


def run(args: argparse.Namespace) -> int:
    """Compare and show."""
    from ttsnn.driver import compare
    from ttsnn.runtime.peers import parse_peers
    from ttsnn.targets import get_target

    parse_peers(args.against)
    get_target(args.target)
    source = _common.resolve_model(args, calibrated=False)
    x = None
    if args.real:
        x = _real_input(args, source)
    spinner = _common.status(args, f"comparing {source.name}")
    with spinner as live:
        data = compare(
            source,
            target=args.target,
            plan=_common.plan_of(args),
            mode=args.mode,
            init=args.init,
            dtype=args.dtype,
            batch=args.batch,
            threads=args.threads,
            against=args.against,
            seconds=args.seconds,
            repeats=args.repeats,
            seed=args.seed,
            x=x,
            phase=args.phase,
            activation_checkpointing=args.activation_checkpointing,
            calibrate=args.calibrate,
            report=live.update if live is not None else None,
        )
    show = show_comparison if args.phase == "inference" else _show_training
    _common.emit(args, data, lambda console: show(console, data))
    _common.warn_fallbacks(data["fallback_kernels"])
    return 0 if data["ok"] else 1


def _real_input(args: argparse.Namespace, source: Any) -> Any:
    """The first samples of the dataset, shaped for the network."""
    import torch

    from ttsnn.errors import DataError

    args.dataset = args.dataset or "cifar10"
    shape, axis = source.input.shape, source.input.batch_axis
    dataset = _io.dataset_of(args, shape[0] if axis else None, shape[-1])
    x, _ = dataset.batch(range(min(args.batch, len(dataset))))
    expected = source.input.sized(x.shape[axis]) if x.dim() == len(shape) else None
    if expected != tuple(x.shape):
        raise DataError(
            f"{args.dataset} gives input {list(x.shape)}, {source.name} takes "
            f"{list(source.input.sized(args.batch))}"
        )
    return x.to(getattr(torch, args.dtype))


def show_comparison(console: Console, data: dict[str, Any]) -> None:
    """Print the result of :func:`ttsnn.compare` for people."""
    from rich.table import Table

    verdict = "[green]agrees[/green]" if data["ok"] else "[bold red]does NOT agree[/bold red]"
    plan = data["plan"]
    own = data["params"]["tt"] != data["params"]["dense"]
    what = "tensor trains of its own" if own else "dense"
    if plan:
        what = f"{plan['layers']} {'/'.join(plan['modes'])} layers, {plan['rule']}"
    console.print(
        f"[bold]{data['model']}[/bold] ({what}) on {data['target']}, {data['dtype']}, batch "
        f"{data['batch']}, {data['threads']} thread(s): {verdict} with PyTorch"
    )
    flipped = data["flipped_spikes"]
    spikes = (
        f"{flipped} of {data['spike_places']} places flipped ({data['total_spikes']} spikes)"
        if flipped is not None
        else "not compared (the neurons are not ttsnn.models.LIF)"
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_row("logits, max relative error", f"{data['max_rel_error']:.2e}")
    facts.add_row("spikes", spikes)
    facts.add_row("same top-1", f"{100 * data['agreement']:.1f} %")
    if data["dense"]:
        facts.add_row("same top-1 as dense", f"{100 * data['dense']['agreement']:.1f} %")
    for key, name, unit, scale in (
        ("params", "parameters", "M", 1e6),
        ("flops", "MACs (counted)", "M", 1e6),
    ):
        dense, tt = data[key]["dense"], data[key]["tt"]
        text = f"{tt / scale:.2f} {unit}"
        if plan or own:
            text += f", dense {dense / scale:.2f} {unit}: {dense / max(tt, 1):.2f}× fewer"
        facts.add_row(name, text)
    facts.add_row("MACs (executed)", f"{data['executed_macs'] / 1e6:.2f} M")
    facts.add_row("artifact", f"{data['artifact_bytes'] / 1e6:.2f} MB")
    facts.add_row("compiled in", f"{sum(data['compile_s'].values()):.1f} s")
    facts.add_row("weights", data["weights"])
    console.print(facts)

    _show_times(console, data, "ms a call")


def _show_training(console: Console, data: dict[str, Any]) -> None:
    from rich.table import Table

    verdict = "[green]agrees[/green]" if data["ok"] else "[bold red]does NOT agree[/bold red]"
    console.print(
        f"[bold]{data['model']}[/bold] ({data['mode'] or 'dense'}), one training step, "
        f"{data['dtype']}, batch {data['batch']}, {data['threads']} thread(s): {verdict} with "
        "PyTorch"
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_row("change of weights, relative error", f"{data['max_rel_error']:.2e}")
    facts.add_row("worst parameter", f"{data['worst']} of {data['parameters']}")
    facts.add_row("loss, relative error", f"{data['loss_rel_error']:.2e}")
    facts.add_row("flipped spikes", f"{data['flipped_spikes']} of {data['spike_places']}")
    planned = [f"{mb:.1f} MB ({name})" for name, mb in data["planned_mb"].items()]
    facts.add_row("buffers between kernels", ", ".join(planned))
    console.print(facts)
    _show_times(console, data, "ms a step")


def _show_times(console: Console, data: dict[str, Any], unit: str) -> None:
    from rich.table import Table

    table = Table("", unit, "time / ours", "quartiles", "peak MB")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, ms in data["time_ms"].items():
        ratio, spread = data["time_ratio"].get(name), data["time_spread"].get(name)
        memory = data["peak_memory_mb"].get(name)
        table.add_row(
            name,
            f"{ms:.3f}",
            f"{ratio:.2f}×" if ratio is not None else "1",
            f"{spread[0]:.2f} … {spread[1]:.2f}" if spread is not None else "",
            f"{memory:.1f}" if memory is not None else "?",
            style="bold" if name == "ttsnn" else None,
        )
    console.print(table)
    for name, reason in data["skipped"].items():
        console.print(f"[yellow]skipped[/yellow] {name}: {reason}", markup=True)
