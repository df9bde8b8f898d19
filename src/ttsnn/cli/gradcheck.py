"""``ttsnn gradcheck``: gradients of the compiled step against PyTorch's autograd."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run"]

_DETAILS = """\
Every parameter's gradient of the mean cross-entropy on random input, batch norms on batch
statistics. The error of a parameter is |g - g'| / |g'| in the 2-norm, g' being PyTorch's; |g'|
counts as at least 1e-6 (float32: 1e-3) of the largest of all parameters. Exit code 1 above the
tolerance: 1e-9 in float64, where no spike may flip; 1e-2 in float32, unless spikes flipped (then
at most 1 % of the places may)."""


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "gradcheck",
        "Compare the gradient of every parameter with PyTorch's autograd.",
        "ttsnn gradcheck ms_resnet18 --plan paper --mode ptt --dtype float64\n"
        "ttsnn gradcheck mynets:build --dataset digits --batch 5 --finite-differences",
        _DETAILS,
    )
    _common.add_model(parser)
    _common.add_plan(parser)
    _common.add_target(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float64", help="(default: float64)"
    )
    parser.add_argument("--batch", type=_common.positive, default=2, metavar="N", help="samples")
    _common.add_threads(parser)
    parser.add_argument("--tolerance", type=float, metavar="E", help="largest error that passes")
    parser.add_argument(
        "--frozen-bn", action="store_true", help="batch norms on their running statistics"
    )
    parser.add_argument(
        "--finite-differences",
        action="store_true",
        help="check the parameters behind the last spikes by differences of the loss too",
    )


def run(args: argparse.Namespace) -> int:
    """Check and show."""
    from ttsnn.runtime.training.gradcheck import gradcheck

    source = _common.resolve_model(args)
    with _common.status(args, f"checking {source.name}") as live:
        data = gradcheck(
            source,
            plan=_common.plan_of(args),
            mode=args.mode,
            init=args.init,
            dtype=args.dtype,
            batch=args.batch,
            seed=args.seed,
            target=args.target,
            threads=args.threads,
            tolerance=args.tolerance,
            finite_differences=args.finite_differences,
            frozen_bn=args.frozen_bn,
            report=live.update if live is not None else None,
        )
    _common.emit(args, data, lambda console: _show(console, data))
    _common.warn_fallbacks(data["fallback_kernels"])
    return 0 if data["ok"] else 1


def _show(console: Console, data: dict[str, Any]) -> None:
    from rich.table import Table

    verdict = "[green]agree[/green]" if data["ok"] else "[bold red]do NOT agree[/bold red]"
    console.print(
        f"[bold]{data['model']}[/bold] ({data['mode'] or 'dense'}), {data['dtype']}, batch "
        f"{data['batch']}, T {data['T']}: gradients {verdict} with PyTorch"
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_row("max relative error", f"{data['max_rel_error']:.2e} ({data['worst']})")
    facts.add_row("tolerance", f"{data['tolerance']:.0e}")
    facts.add_row("parameters", f"{data['parameters']}")
    facts.add_row("missing", ", ".join(data["missing"]) or "none")
    facts.add_row("loss", f"{data['loss']:.6f}, relative error {data['loss_rel_error']:.2e}")
    facts.add_row("running statistics", f"{data['statistics_error']:.2e}")
    if data["flipped_spikes"] is not None:
        facts.add_row("flipped spikes", f"{data['flipped_spikes']} of {data['spike_places']}")
    if data["finite_differences"]:
        worst = max(data["finite_differences"].values())
        facts.add_row("finite differences", f"{worst:.2e}")
    console.print(facts)
    table = Table("parameter", "relative error")
    table.columns[1].justify = "right"
    ranked = sorted(data["errors"].items(), key=lambda e: -e[1])
    for name, error in ranked[:10]:
        table.add_row(name, f"{error:.2e}")
    console.print(table)
