"""``ttsnn compile``: a network to a ``.ttsnn`` file."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "compile",
        "Compile a network to one file with machine code, parameters and a manifest.",
        "ttsnn compile ms_resnet18 --plan paper --mode ptt -o net.ttsnn\n"
        "ttsnn compile mynets:build --weights best.pt --input-shape N,3,64,64 --dynamic-batch",
    )
    _common.add_model(parser)
    _common.add_plan(parser)
    _common.add_compile(parser)
    parser.add_argument("--record-spikes", action="store_true", help="also return every spike")
    parser.add_argument("-o", "--out", metavar="FILE", help="(default: <MODEL>.ttsnn)")


def run(args: argparse.Namespace) -> int:
    """Compile, save, report."""
    source = _common.resolve_model(args)
    out = args.out or f"{source.name}.ttsnn"
    net = _common.compile_model(args, source, record_spikes=args.record_spikes, out=out)
    manifest = net.manifest
    fallbacks = manifest.fallback_kernels
    data = {
        "path": out,
        "artifact_bytes": os.path.getsize(out),
        "model": manifest.model,
        "target": manifest.target["name"],
        "inputs": [s.to_json() for s in net.inputs],
        "outputs": [s.to_json() for s in net.outputs],
        "state": [s.input for s in manifest.state],
        "T": manifest.T,
        "plan": _common.plan_summary(manifest.plan),
        "kernels": len(manifest.kernels),
        "fallback_kernels": fallbacks,
        "tuned_layers": len(manifest.info.get("tuning", ())),
        "event_driven_layers": [
            n for k in manifest.kernels if k.rule == "events" for n in k.layers
        ],
        "executed_macs": manifest.executed_macs,
        "compile_s": net.compile_s,
    }

    def show(console: Console) -> None:
        spec = ", ".join(f"{s.name}: {s.dtype}{list(s.shape)}" for s in net.inputs)
        seconds = sum(net.compile_s.values())
        console.print(f"[bold]{out}[/bold]  {data['artifact_bytes'] / 1e6:.2f} MB, {seconds:.1f} s")
        console.print(f"  {manifest.model} for {manifest.target['name']}, takes {spec}")
        if data["plan"]:
            console.print(
                f"  {data['plan']['layers']} tensor-train layers ({data['plan']['rule']})"
            )
        tuned = f", {data['tuned_layers']} layers tuned" if data["tuned_layers"] else ""
        events = len(data["event_driven_layers"])
        tuned += f", {events} layers event-driven" if events else ""
        console.print(f"  {len(manifest.kernels)} kernels{tuned}")
        _common.warn_fallbacks(fallbacks)

    _common.emit(args, data, show)
    return 0
