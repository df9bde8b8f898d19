"""``ttsnn inspect``: the kernels of a compiled network."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common, _io
from ttsnn.errors import DataError, DeviceError

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
        "of the time, its speed; for GPUs registers, shared memory and spilled bytes as the CUDA "
        "compiler reports them, without times where there is no GPU. Exit code 1 where a kernel "
        "has no schedule.",
        "ttsnn inspect net.ttsnn --threads 1\nttsnn inspect ms_resnet18 --plan paper --mode ptt\n"
        "ttsnn inspect spiking_mlp --target cuda:arch=sm_90 --source",
    )
    parser.add_argument(
        "--source", action="store_true", help="print the CUDA source of a network compiled now"
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
    net = _net(args)
    data = inspect_net(net, batch=args.batch, repeats=args.repeats, threads=args.threads)
    if args.source:
        data["source"] = _source(net)
    _common.emit(args, data, lambda console: _show(console, data))
    _common.warn_fallbacks(data["fallback_kernels"])
    return 1 if data["fallback_kernels"] else 0


def _net(args: argparse.Namespace) -> Net:
    """The network; of an artifact for a GPU that is not here, what its manifest says."""
    from ttsnn.artifact import read_artifact
    from ttsnn.runtime.net import Net

    try:
        return _common.load_net(args)
    except DeviceError:
        return Net(None, read_artifact(args.model, contents=False).manifest, {})


def _source(net: Net) -> str:
    """The CUDA source of a network that was compiled in this process.

    Raises:
        DataError: there is none: artifacts hold machine code alone.
    """
    modules = [net.executable.mod] if hasattr(net, "executable") else []
    sources = []
    while modules:
        module = modules.pop()
        modules += list(module.imports)
        if module.kind == "cuda":
            sources.append(str(module.inspect_source()))
    if not sources:
        raise DataError(
            "--source: no CUDA source here; name the network itself and a target cuda or "
            "cuda-emulated, artifacts hold machine code alone"
        )
    return "\n".join(sources)


def _usage(manifest: Any, kernel: str) -> list[dict]:
    """What the CUDA compiler said of a kernel, one entry an architecture and launch."""
    entries = manifest.info.get("cuda", {}).get("usage", [])
    return [u for u in entries if re.fullmatch(rf"{re.escape(kernel)}_kernel(_\d+)?", u["kernel"])]


def inspect_net(net: Net, *, batch: int = 1, repeats: int = 10, threads: int | None = None) -> dict:
    """What ``ttsnn inspect --json`` prints.

    ``share`` is of the time in all kernels, the virtual machine's own steps included; ``gflops``
    counts two operations a MAC. Where the network's GPU is not here, times are 0, ``time_ms`` is
    null and ``not_measured`` says why. ``usage`` is the CUDA compiler's report.
    """
    from ttsnn.runtime.profile import profile

    inputs = _io.random_inputs(net.inputs, batch, 0)
    not_measured = None
    times: list[Any] = []
    whole: float | None = None
    try:
        times, whole = profile(net, inputs, repeats=repeats, threads=threads)
    except DeviceError as error:
        not_measured = str(error)
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
                "usage": _usage(net.manifest, kernel.name),
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
                "usage": _usage(net.manifest, name),
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
        "not_measured": not_measured,
        "kernels": kernels,
        "vm_ms": sum(t.ms for t in measured.values()),
        "vm_share": sum(t.ms for t in measured.values()) / total,
        "fallback_kernels": net.manifest.fallback_kernels,
    }


def _show(console: Console, data: dict) -> None:
    from rich.table import Table

    takes = ", ".join(f"{s['name']} {s['dtype']}{s['shape']}" for s in data["inputs"])
    console.print(f"[bold]{data['model']}[/bold] for {data['target']['name']}, takes {takes}")
    timed = data["time_ms"] is not None
    if timed:
        console.print(f"{data['time_ms']:.3f} ms a call at batch {data['batch']}")
    else:
        console.print(f"not timed: {data['not_measured']}")
    reported = any(k["usage"] for k in data["kernels"])
    columns = ["kernel", "rule", "layers", *(["calls"] if timed else []), "MMAC"]
    columns += ["ms", "share", "GFLOP/s"] if timed else []
    columns += ["regs", "shared B", "spilled B"] if reported else []
    table = Table(*columns)
    for column in table.columns[3:]:
        column.justify = "right"
    for k in sorted(data["kernels"], key=lambda k: -k["ms"]):
        layers = k["layers"]
        shown = ", ".join(layers[:2]) + (f" +{len(layers) - 2}" if len(layers) > 2 else "")
        row = [
            k["name"],
            k["rule"] if k["scheduled"] else f"[bold red]{k['rule']}[/bold red]",
            shown,
            *([str(k["calls"])] if timed else []),
            f"{k['macs'] / 1e6:.2f}" if k["macs"] else "",
        ]
        if timed:
            row += [
                f"{k['ms']:.4f}",
                f"{100 * k['share']:.1f} %",
                f"{k['gflops']:.1f}" if k["gflops"] else "",
            ]
        if reported:
            row += _worst(k["usage"])
        table.add_row(*row)
    if timed:
        share = f"{100 * data['vm_share']:.1f} %"
        table.add_row("(virtual machine)", "", "", "", "", f"{data['vm_ms']:.4f}", share)
    console.print(table)
    if "source" in data:
        console.print(data["source"], markup=False, soft_wrap=True)


def _worst(usage: list[dict]) -> list[str]:
    """Most registers, shared memory and spilled bytes of a kernel on any architecture."""
    if not usage:
        return ["", "", ""]
    spilled = max(u["spill_stores"] + u["spill_loads"] for u in usage)
    return [
        str(max(u["registers"] for u in usage)),
        str(max(u["shared_bytes"] for u in usage)),
        f"[bold red]{spilled}[/bold red]" if spilled else "0",
    ]
