"""``ttsnn plan``: which layers become tensor trains, with which ranks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common

if TYPE_CHECKING:
    from rich.console import Console

    from ttsnn.sources import ModelSource

__all__ = ["add_parser", "plan", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "plan",
        "Choose the layers that become tensor trains and their ranks, and show how well the "
        "cores fit the network's weights.",
        "ttsnn plan ms_resnet18 --rule ratio=8 --mode ptt -o plan.json\n"
        "ttsnn plan mynets:build --weights best.pt --rule vbmf --mode stt --include classifier",
        "The stem, 1×1 and grouped convolutions and the last linear layer stay dense unless "
        "--include\nnames them. A PTT convolution can only represent the cross-shaped part of a "
        "kernel: the error of\nthe fit says how much of the trained weight is lost.",
    )
    _common.add_model(parser)
    group = parser.add_argument_group("tensor trains")
    group.add_argument(
        "--rule",
        "--plan",
        default="vbmf",
        metavar="RULE",
        help="vbmf, paper, rank=R, ratio=X (parameters of each layer), energy=X (share kept), or "
        "a plan.json to look at (default: vbmf)",
    )
    group.add_argument(
        "--mode",
        choices=_common.MODES,
        default="ptt",
        help="form of the convolutions (default: ptt)",
    )
    group.add_argument(
        "--full-timesteps",
        type=int,
        metavar="K",
        help="htt: leading timesteps that run in full (default: half of them)",
    )
    group.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="WHAT",
        help="also stem, pointwise (1×1 convolutions), classifier, or a layer's name; repeatable",
    )
    parser.add_argument("-o", "--out", metavar="FILE", help="write the plan there (JSON)")


def run(args: argparse.Namespace) -> int:
    """Make the plan, save it, show it."""
    source = _common.resolve_model(args, calibrated=False)
    with _common.status(args, f"planning {source.name}"):
        chosen, data = plan(
            source,
            args.rule,
            args.mode,
            timesteps=args.full_timesteps,
            include=tuple(args.include),
        )
    if args.out:
        chosen.save(args.out)
    data["path"] = args.out

    def show(console: Console) -> None:
        from ttsnn.cli._layers import print_layers

        print_layers(console, [r for r in data["layers"] if r["mode"] != "dense"])
        ratio, tt = data["ratio"], data["tt"]
        console.print(
            f"{len(chosen)} of {len(data['layers'])} layers; {tt['params']:,} parameters "
            f"({ratio['params']}× fewer), {tt['flops'] / 1e6:,.1f} MFLOPs ({ratio['flops']}× fewer)"
        )
        for note in [*data["notes"], *([data["weights_note"]] if data["weights_note"] else [])]:
            console.print(f"note: {note}")
        if args.out:
            console.print(f"wrote {args.out}")

    _common.emit(args, data, show)
    return 0


def plan(
    source: ModelSource,
    rule: Any,
    mode: str = "ptt",
    *,
    timesteps: int | None = None,
    include: tuple[str, ...] = (),
) -> tuple[Any, dict[str, Any]]:
    """A plan for a network, and what ``ttsnn plan --json`` prints of it.

    Args:
        source: the network.
        rule, mode, timesteps, include: see :func:`ttsnn.plans.plan_for`.

    Returns:
        The :class:`~ttsnn.plans.TTPlan`, and a dict: ``plan`` (its JSON), ``dense``, ``tt`` and
        ``ratio`` with ``params`` and ``flops``, ``layers`` with each layer's shape, ranks,
        counts and relative error of the fit, ``notes``, ``weights`` (``"given"`` or
        ``"random"``).
    """
    from ttsnn import driver
    from ttsnn.cli._layers import fit_errors, layer_rows, weights_note
    from ttsnn.passes import layer_infos
    from ttsnn.passes.layer_calls import network_steps
    from ttsnn.plans import network_cost, plan_for

    dense = driver.import_source(source)
    infos = layer_infos(dense)
    chosen = plan_for(
        rule, infos, mode, T=network_steps(dense), timesteps=timesteps, include=include
    )
    cost = network_cost(infos, chosen)
    errors = fit_errors(infos, chosen)
    return chosen, {
        "model": source.name,
        "plan": chosen.to_json(),
        **cost.to_json(),
        "weights": "given" if source.trained else "random",
        "weights_note": weights_note(source),
        "notes": list(chosen.notes),
        "layers": layer_rows(cost, errors),
    }
