"""``ttsnn report``: parameters and arithmetic of a network, counted and executed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common

if TYPE_CHECKING:
    import tvm
    from rich.console import Console

    from ttsnn.sources import ModelSource

__all__ = ["add_parser", "executed_macs", "report", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "report",
        "Count parameters and multiply-accumulates of a network, dense and as tensor trains, and "
        "what the compiler really executes.",
        "ttsnn report ms_resnet34 --dataset ncaltech101 --plan paper --mode ptt --json",
        "Counted FLOPs follow the literature: multiply-accumulates of convolutions and linear "
        "layers for\none sample over all timesteps, all cores of a layer at its output "
        "resolution. Executed ones are\nthose of the generated kernels: branches merged, a "
        "static image's stem computed once, strided\ncores at their true resolution.",
    )
    _common.add_model(parser)
    _common.add_plan(parser)
    _common.add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Count and print."""
    source = _common.resolve_model(args, calibrated=False)
    with _common.status(args, f"counting {source.name}"):
        data = report(
            source,
            _common.plan_of(args),
            args.mode,
            init=args.init,
            seed=args.seed,
            target=args.target,
        )

    def show(console: Console) -> None:
        from rich.table import Table

        from ttsnn.cli._layers import print_layers

        print_layers(console, data["layers"])
        totals = Table("", "parameters", "MFLOPs a sample")
        for title, key in (("dense", "dense"), ("tensor trains", "tt")):
            counts = data[key]
            totals.add_row(title, f"{counts['params']:,}", f"{counts['flops'] / 1e6:,.1f}")
        ratio, executed = data["ratio"], data["executed"]
        totals.add_row("ratio", f"{ratio['params']:.2f}", f"{ratio['flops']:.2f}")
        totals.add_row(
            f"executed ({executed['target']})",
            "",
            f"{executed['macs'] / 1e6:,.1f} ({executed['ratio']:.2f}× fewer than dense)",
        )
        console.print(totals)
        for note in [*data["notes"], *([data["weights_note"]] if data["weights_note"] else [])]:
            console.print(f"note: {note}")

    _common.emit(args, data, show)
    return 0


def report(
    source: ModelSource,
    rule: Any = None,
    mode: str = "ptt",
    *,
    init: str = "fit",
    seed: int = 0,
    target: str = "cpu",
) -> dict[str, Any]:
    """Counts of a network.

    Args:
        source: the network.
        rule: a rule, a plan or a plan file; None for the dense network.
        mode: form of the convolutions, for rules.
        init: ``"fit"`` also measures how well the cores fit; ``"fresh"`` only counts.
        seed: of fresh cores.
        target: whose kernels count as executed.

    Returns:
        ``dense``, ``tt`` and ``ratio`` with ``params`` and ``flops`` by the counting rule of
        :mod:`ttsnn.plans.counting`; ``executed`` with the ``macs`` of one sample in the
        kernels that the target emits, and the dense network's FLOPs as their ``ratio``;
        ``layers`` with shape, ranks, counts and errors of each; ``notes``.
    """
    from ttsnn import driver
    from ttsnn.cli._layers import fit_errors, layer_rows, weights_note
    from ttsnn.passes import DecomposeToTT, count, layer_infos
    from ttsnn.passes.layer_calls import network_steps
    from ttsnn.plans import TTPlan, plan_for
    from ttsnn.program import params_of
    from ttsnn.targets import get_target

    chosen_target = get_target(target)
    dense = driver.import_source(source)
    infos = layer_infos(dense)
    plan = TTPlan({})
    rule = source.plan_to_apply(rule, mode)
    if rule is not None:
        plan = plan_for(rule, infos, mode, T=network_steps(dense))
    program = DecomposeToTT(plan, init=init, seed=seed)(dense) if len(plan) else dense
    cost = count(program)
    errors = fit_errors(infos, plan, params_of(program)) if init == "fit" else {}
    macs = executed_macs(chosen_target, chosen_target.lower(program))
    return {
        "model": source.name,
        "dataset": source.options.dataset,
        "T": network_steps(dense),
        "rule": plan.rule or None,
        "mode": mode if len(plan) else None,
        **cost.to_json(),
        "executed": {
            "target": chosen_target.name,
            "macs": macs,
            "ratio": round(cost.dense_flops / max(macs, 1), 2),
        },
        "weights": "given" if source.trained else "random",
        "weights_note": weights_note(source) if errors else None,
        "notes": list(plan.notes),
        "layers": layer_rows(cost, errors),
    }


def executed_macs(target: Any, lowered: tvm.IRModule) -> int:
    """Multiply-accumulates of one run of a lowered module: each kernel's, times its calls."""
    import tvm
    from tvm import relax

    macs = {k.name: k.macs for k in target.kernels(lowered)}
    total = 0

    def add(node: Any) -> None:
        nonlocal total
        if isinstance(node, tvm.ir.GlobalVar):
            total += macs.get(node.name_hint, 0)

    for block in lowered["main"].body.blocks:
        for binding in block.bindings:
            relax.analysis.post_order_visit(binding.value, add)
    return total
