"""Options and output that the commands share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ttsnn.cli import COMMANDS
from ttsnn.sources import ModelOptions, ModelSource, parse_input_shape, resolve

if TYPE_CHECKING:
    from rich.console import Console

    from ttsnn.driver import CompiledModel
    from ttsnn.runtime.net import Net

__all__ = [
    "MODES",
    "add_calibration",
    "add_checkpointing",
    "add_compile",
    "add_dtype",
    "add_model",
    "add_plan",
    "add_target",
    "add_threads",
    "calibration_of",
    "command",
    "compile_model",
    "console",
    "emit",
    "load_net",
    "options_of",
    "plan_of",
    "plan_summary",
    "positive",
    "resolve_model",
    "status",
    "warn_fallbacks",
]

MODES = ("stt", "ptt", "htt")


def command(
    subparsers: Any, name: str, description: str, example: str, details: str = ""
) -> argparse.ArgumentParser:
    """A subcommand's parser with ``--json`` and a help that ends with an example.

    ``example`` may have several lines, each a command; ``details`` comes before it.
    """
    lines = [f"  {line}" for line in example.strip().splitlines()]
    epilog = "\n".join([*([details.strip(), ""] if details else []), "example:", *lines])
    parser = subparsers.add_parser(
        name,
        help=COMMANDS[name],
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    return parser


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def add_model(parser: argparse.ArgumentParser, *, artifact: bool = False) -> None:
    """MODEL and everything that says which network it is; ``artifact``: .ttsnn is welcome too."""
    files = ".pt2, .onnx or .ttsnn file" if artifact else ".pt2 or .onnx file"
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"zoo name (ms_resnet18 …), package.module:factory, or a {files}",
    )
    group = parser.add_argument_group("network")
    group.add_argument("--dataset", help="shapes and classes of this dataset (default: cifar10)")
    group.add_argument("--timesteps", "--T", type=positive, metavar="T", help="timesteps")
    group.add_argument("--image-size", type=positive, metavar="PX", help="image height and width")
    group.add_argument("--in-channels", type=positive, metavar="C", help="input channels")
    group.add_argument("--num-classes", type=positive, metavar="K", help="classes")
    group.add_argument(
        "--input-shape",
        metavar="N,C,H,W",
        help="input of a network that does not say it, N is the batch: N,3,32,32 or 4,N,2,48,48",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="state_dict (.pt or .safetensors), or a run of `ttsnn train`: its folder or its "
        "checkpoint.json",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of random weights and inputs")


def add_plan(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """``--plan``, ``--mode`` and ``--init``."""
    group = parser.add_argument_group("tensor trains")
    group.add_argument(
        "--plan",
        default=default,
        metavar="PLAN",
        help="none, vbmf, paper, rank=R, ratio=X, energy=X, or a plan.json "
        f"(default: {default or 'none'})",
    )
    group.add_argument(
        "--mode", choices=MODES, default="ptt", help="form of the TT convolutions (default: ptt)"
    )
    group.add_argument(
        "--init",
        choices=("fit", "fresh"),
        default="fit",
        help="cores fitted to the dense weight, or fresh (default: fit)",
    )


def add_target(parser: argparse._ActionsContainer) -> None:
    """``--target``."""
    parser.add_argument("--target", default="cpu", help="see `ttsnn targets` (default: cpu)")


def add_dtype(parser: argparse._ActionsContainer) -> None:
    """``--dtype``."""
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``."""
    parser.add_argument(
        "--threads", type=positive, metavar="K", help="CPU threads (default: all cores)"
    )


def add_checkpointing(parser: argparse._ActionsContainer) -> None:
    """``--activation-checkpointing``."""
    parser.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="compute activations again in the backward pass: less memory, more time, same bits",
    )


def add_compile(parser: argparse.ArgumentParser) -> None:
    """What every command that compiles asks: target, dtype, batch, dumps."""
    group = parser.add_argument_group("compilation")
    add_target(group)
    add_dtype(group)
    group.add_argument("--batch", type=positive, default=1, metavar="N", help="(default: 1)")
    group.add_argument("--dynamic-batch", action="store_true", help="leave the batch size open")
    group.add_argument("--dump-ir", metavar="DIR", help="write the IR after every pass there")
    add_calibration(group, "layers whose inputs spike seldom on them become event-driven")
    tuned = group.add_mutually_exclusive_group()
    tuned.add_argument("--database", metavar="DIR", help="records of `ttsnn tune` to use")
    tuned.add_argument(
        "--no-database", action="store_true", help="use no records (default: the target's own)"
    )


def add_calibration(parser: argparse._ActionsContainer, use: str) -> None:
    """``--calibration``; ``use``: what the firing rates on the inputs do."""
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help=f"inputs of typical use, .npy, .npz or .safetensors, or `example`: {use}",
    )


def calibration_of(args: argparse.Namespace) -> Any:
    """What ``--calibration`` names, as :func:`ttsnn.compile` takes it."""
    from ttsnn.calibration import EXAMPLE
    from ttsnn.cli._io import read_arrays

    if args.calibration in (None, EXAMPLE):
        return args.calibration
    return read_arrays(args.calibration)


def options_of(args: argparse.Namespace) -> ModelOptions:
    """The network options of :func:`add_model`."""
    return ModelOptions(
        dataset=args.dataset,
        timesteps=args.timesteps,
        image_size=args.image_size,
        in_channels=args.in_channels,
        num_classes=args.num_classes,
        input_shape=parse_input_shape(args.input_shape) if args.input_shape else None,
        weights=args.weights,
        plan=plan_of(args) if args.weights and hasattr(args, "init") else None,
        mode=args.mode if hasattr(args, "mode") else "ptt",
        seed=args.seed,
    )


def resolve_model(args: argparse.Namespace, *, calibrated: bool = True) -> ModelSource:
    """The network of a command line that has :func:`add_model`'s options.

    ``calibrated``: see :class:`~ttsnn.sources.ModelOptions`.
    """
    return resolve(args.model, replace(options_of(args), calibrated=calibrated))


def plan_of(args: argparse.Namespace) -> str | None:
    """``--plan``, None where the network stays dense."""
    return None if args.plan in (None, "none") else args.plan


def compile_model(
    args: argparse.Namespace,
    source: ModelSource,
    *,
    record_spikes: bool = False,
    out: str | None = None,
) -> CompiledModel:
    """Compile with :func:`add_plan`'s and :func:`add_compile`'s options, with a spinner."""
    from ttsnn import driver

    with status(args, f"compiling {source.name} for {args.target}"):
        return driver.compile(
            source,
            target=args.target,
            plan=plan_of(args),
            mode=args.mode,
            init=args.init,
            seed=args.seed,
            dtype=args.dtype,
            dynamic_batch=args.dynamic_batch,
            batch=args.batch,
            record_spikes=record_spikes,
            out=out,
            dump_ir=args.dump_ir,
            database=False if args.no_database else args.database,
            calibration=calibration_of(args),
        )


def load_net(args: argparse.Namespace, *, record_spikes: bool = False) -> Net:
    """The network of a command line: an artifact is loaded, anything else is compiled."""
    if args.model.lower().endswith(".ttsnn"):
        from ttsnn.runtime.net import load

        return load(args.model)
    return compile_model(args, resolve_model(args), record_spikes=record_spikes)


def plan_summary(plan: dict | None) -> dict | None:
    """The plan of a manifest in a few words; None without one."""
    if plan is None:
        return None
    layers = plan["layers"].values()
    return {
        "rule": plan.get("rule", ""),
        "layers": len(layers),
        "modes": sorted({layer["mode"] for layer in layers}),
    }


def warn_fallbacks(names: Sequence[str]) -> None:
    """Say loudly on stderr that kernels run as plain loops."""
    if names:
        print(
            f"WARNING: {len(names)} kernel(s) have no schedule and run as plain loops, many times "
            f"slower than they could: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
            file=sys.stderr,
        )


def status(args: argparse.Namespace, text: str) -> Any:
    """A spinner on stderr while something long runs; nothing where stderr is no terminal."""
    import contextlib

    if args.json or not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def console() -> Console:
    """Where tables go; 120 columns wide in a file or a pipe."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def emit(args: argparse.Namespace, data: dict, show: Callable[[Console], None]) -> None:
    """Print ``data`` as JSON under ``--json``, else let ``show`` print for people.

    NaN and infinity become null, since JSON has neither.
    """
    if args.json:
        print(json.dumps(_plain(data), indent=2, allow_nan=False))
    else:
        show(console())


def _plain(value: Any) -> Any:
    """``value`` with NumPy scalars, paths and non-finite floats made JSON."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item())
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return str(value)
