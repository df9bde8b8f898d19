"""``ttsnn inspect``: the kernels of a compiled network."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common, _io

if TYPE_CHECKING:
    from rich.console import Console

    from ttsnn.runtime.net import Net

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "inspect",
        "List each kernel: the schedule rule that made it, the layers that it computes, its share "
        "of the time, its speed. Exit code 1 where a kernel has no schedule.",
        "ttsnn inspect net.ttsnn --threads 1\nttsnn inspect ms_resnet18 --plan paper --mode ptt",
    )
    _common.add_model(parser, artifact=True)
    _common.add_plan(parser)
    _common.add_compile(parser)
    _common.add_threads(parser)
    parser.add_argument(
        "--repeats", type=_common.positive, default=10, help="measured calls (default: 10)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and list."""
    net = _common.load_net(args)
    data = inspect_net(net, batch=args.batch, repeats=args.repeats, threads=args.threads)
    _common.emit(args, data, lambda console: _show(console, data))
    _common.warn_fallbacks(data["fallback_kernels"])
    return 1 if data["fallback_kernels"] else 0


def inspect_net(net: Net, *, batch: int = 1, repeats: int = 10, threads: int | None = None) -> dict:
    """What ``ttsnn inspect --json`` prints.

    ``share`` is of the time in all kernels, the virtual machine's own steps included; ``gflops``
    counts two operations a MAC.
    """
    from ttsnn.runtime.profile import profile

    inputs = _io.random_inputs(net.inputs, batch, 0)
    times, whole = profile(net, inputs, repeats=repeats, threads=threads)
    shape = net.inputs[0].shape if net.inputs else ()
    axis = 1 if len(shape) == 5 else 0
    samples = inputs[0].shape[axis] if inputs else 1
    total = sum(t.ms for t in times) or 1.0
    measured = {t.name: t for t in times}
    kernels = []
    for kernel in net.manifest.kernels:
        time = measured.pop(kernel.name, None)
        ms = time.ms if time is not None else 0.0
        macs = kernel.macs * kernel.calls * (samples if net.manifest.batch is None else 1)
        kernels.append(
            {
                "name": kernel.name,
                "rule": kernel.rule,
                "layers": list(kernel.layers),
                "calls": time.calls if time is not None else 0,
                "scheduled": kernel.scheduled,
                "macs": macs,
                "ms": ms,
                "share": ms / total,
                "gflops": 2 * macs / ms / 1e6 if ms and macs else None,
            }
        )
    for name in [n for n in measured if not n.startswith(("vm.builtin.", "shape_func"))]:
        time = measured.pop(name)
        kernels.append(
            {
                "name": name,
                "rule": "(not listed by the target)",
                "layers": [],
                "calls": time.calls,
                "scheduled": True,
                "macs": 0,
                "ms": time.ms,
                "share": time.ms / total,
                "gflops": None,
            }
        )
    return {
        "model": net.manifest.model,
        "target": net.manifest.target,
        "versions": net.manifest.versions,
        "inputs": [s.to_json() for s in net.inputs],
        "outputs": [s.to_json() for s in net.outputs],
        "plan": _common.plan_summary(net.manifest.plan),
        "batch": samples,
        "threads": threads,
        "time_ms": whole,
        "kernels": kernels,
        "vm_ms": sum(t.ms for t in measured.values()),
        "vm_share": sum(t.ms for t in measured.values()) / total,
        "fallback_kernels": net.manifest.fallback_kernels,
    }


def _show(console: Console, data: dict) -> None:
    from rich.table import Table

    takes = ", ".join(f"{s['name']} {s['dtype']}{s['shape']}" for s in data["inputs"])
    console.print(f"[bold]{data['model']}[/bold] for {data['target']['name']}, takes {takes}")
    console.print(f"{data['time_ms']:.3f} ms a call at batch {data['batch']}")
    table = Table("kernel", "rule", "layers", "calls", "MMAC", "ms", "share", "GFLOP/s")
    for column in table.columns[3:]:
        column.justify = "right"
    for k in sorted(data["kernels"], key=lambda k: -k["ms"]):
        layers = k["layers"]
        shown = ", ".join(layers[:2]) + (f" +{len(layers) - 2}" if len(layers) > 2 else "")
        table.add_row(
            k["name"],
            k["rule"] if k["scheduled"] else f"[bold red]{k['rule']}[/bold red]",
            shown,
            str(k["calls"]),
            f"{k['macs'] / 1e6:.2f}" if k["macs"] else "",
            f"{k['ms']:.4f}",
            f"{100 * k['share']:.1f} %",
            f"{k['gflops']:.1f}" if k["gflops"] else "",
        )
    table.add_row(
        "(virtual machine)",
        "",
        "",
        "",
        "",
        f"{data['vm_ms']:.4f}",
        f"{100 * data['vm_share']:.1f} %",
    )
    console.print(table)
