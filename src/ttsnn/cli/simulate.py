"""``ttsnn simulate``: a network on the simulated accelerator."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common

if TYPE_CHECKING:
    from rich.console import Console

    from ttsnn.accel_target.arch import Architecture
    from ttsnn.runtime.simulation import Run, Workload

__all__ = ["add_parser", "run"]

_DETAILS = """\
The network is compiled to the accelerator's instructions, executed instruction by instruction, and
timed; energies are counted events times a table with a cited source. Macs are the products of the
dense loops: zeros are counted, and said to be gated. With --timing-only no values are computed,
and --firing-rate says how many spikes are 1.
sweeps: clusters, pes, buffers (KiB), dram (bytes a cycle): --sweep "pes=64,128 buffers=208"."""


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "simulate",
        "Run a network, or one training step of it, on the simulated accelerator: cycles, events, "
        "energy.",
        "ttsnn simulate ms_resnet18 --plan paper --mode ptt --arch ttsnn4 --compare sata\n"
        "ttsnn simulate ms_resnet18 --plan paper --phase training --timing-only --firing-rate 0.1\n"
        'ttsnn simulate ms_resnet18 --plan paper --sweep "pes=64,128 buffers=104,208" --plots .',
        _DETAILS,
    )
    _common.add_model(parser)
    _common.add_plan(parser)
    group = parser.add_argument_group("accelerator")
    group.add_argument("--arch", default="ttsnn4", help="sata, ttsnn4 or a .toml file (ttsnn4)")
    group.add_argument(
        "--tech", default="sata16", help="sata16, sata28, horowitz45 or a .toml file (sata16)"
    )
    group.add_argument(
        "--phase", choices=("inference", "training"), default="inference", help="(inference)"
    )
    group.add_argument("--batch", type=_common.positive, default=1, metavar="N", help="samples (1)")
    group.add_argument(
        "--timing-only", action="store_true", help="no values: time and events alone"
    )
    group.add_argument(
        "--firing-rate",
        type=float,
        metavar="R",
        help="share of spikes that are 1, with --timing-only (0.1)",
    )
    group.add_argument(
        "--operand-rate",
        type=float,
        metavar="R",
        help="share of other operands that are not zero, with --timing-only (1)",
    )
    group.add_argument(
        "--without", metavar="IDEA,…", help="switch ideas off: fusion, merge_cross, recompute …"
    )
    group.add_argument(
        "--fixed-point", action="store_true", help="compute in the architecture's words"
    )
    group = parser.add_argument_group("reports")
    group.add_argument("--compare", metavar="ARCH", help="the same network on another one")
    group.add_argument("--sweep", metavar="AXES", help="other sizes of the architecture")
    group.add_argument("--attribute", action="store_true", help="each idea switched off by itself")
    group.add_argument("--trace", metavar="FILE", help="every instruction, for ui.perfetto.dev")
    group.add_argument("--plots", metavar="DIR", help="energy.png, layers.png, units.png there")


def run(args: argparse.Namespace) -> int:
    """Simulate and show."""
    from ttsnn.accel_target.arch import load_architecture
    from ttsnn.accel_target.sweep import parse_sweep
    from ttsnn.accel_target.tech import load_technology
    from ttsnn.errors import DataError
    from ttsnn.runtime.simulation import attribution, options_without, prepare

    # What is impossible should fail before a minute of work.
    arch, tech = load_architecture(args.arch), load_technology(args.tech)
    other = load_architecture(args.compare) if args.compare else None
    axes = parse_sweep(args.sweep) if args.sweep else None
    options, gating = options_without(args.without)
    if args.fixed_point:
        if args.timing_only:
            raise DataError("--fixed-point is about values; leave --timing-only out")
        arch = arch.with_number_format("fixed")
        other = other and other.with_number_format("fixed")
    for name, given in (("firing", args.firing_rate), ("operand", args.operand_rate)):
        if given is not None and not args.timing_only:
            raise DataError(
                f"--{name}-rate needs --timing-only: otherwise the data's spikes and zeros count"
            )
    if args.trace:
        _check_file(args.trace)
    if args.plots:
        _check_plots(args)
    rate = 0.1 if args.firing_rate is None else args.firing_rate
    source = _common.resolve_model(args)
    with _common.status(args, f"simulating {source.name} on {arch.name}"):
        workload = prepare(
            source,
            phase=args.phase,
            plan=_common.plan_of(args),
            mode=args.mode,
            init=args.init,
            seed=args.seed,
            batch=args.batch,
            timing_only=args.timing_only,
            firing_rate=rate,
            operand_rate=1.0 if args.operand_rate is None else args.operand_rate,
        )
        first = workload.run(arch, options)
        data: dict[str, Any] = {
            "model": source.name,
            "phase": args.phase,
            "batch": args.batch,
            "plan": _common.plan_of(args),
            "mode": args.mode if _common.plan_of(args) else None,
            "firing_rate": rate if args.timing_only else None,
            "options": options.to_json() | {"gating": gating},
            **first.report(tech, gating=gating),
        }
        if arch.words.number_format == "fixed" and not args.timing_only:
            exact = workload.run(arch.with_number_format("float"), options)
            data["fixed_point"] = _errors(first, exact)
        if other is not None:
            data["compare"] = workload.run(other, options).report(tech, gating=gating)
        if axes is not None:
            data["sweep"] = _swept(workload, arch, axes, options, tech, gating)
        if args.attribute:
            data["attribution"] = [
                {"name": name, **_row(report)}
                for name, _, report in attribution(workload, arch, [tech])
            ]
    if args.trace:
        _write_trace(args.trace, first)
    if args.plots:
        data["plots"] = _write_plots(args, data)
    _common.emit(args, data, lambda console: _show(console, data))
    return 0


def _errors(fixed: Run, exact: Run) -> dict[str, Any]:
    """What fixed-point numbers change, against the same program in floating point."""
    outputs = {}
    for name, value in exact.result.outputs.items():
        error = float(abs(fixed.result.outputs[name] - value).max())
        outputs[name] = {"max_error": error, "largest": float(abs(value).max())}
    layers = exact.result.density
    change = {k: fixed.result.density[k] - v for k, v in layers.items()}
    return {"outputs": outputs, "density_change": change}


def _check_file(path: str) -> None:
    from ttsnn.errors import DataError
    from ttsnn.files import check_replaceable

    check_replaceable(path)
    if not Path(path).absolute().parent.is_dir():
        raise DataError(f"{path}: there is no such folder; make it first")


def _check_plots(args: argparse.Namespace) -> None:
    from ttsnn.accel_target.plots import check_plot

    for name in ("energy", "layers", "units", *(["sweep"] if args.sweep else [])):
        check_plot(Path(args.plots) / f"{name}.png")


def _swept(
    workload: Workload, arch: Architecture, axes: dict, options: Any, tech: Any, gating: bool
) -> list[dict[str, Any]]:
    """A row for each architecture; those that cannot run the network say why."""
    from ttsnn.accel_target.sweep import sweep
    from ttsnn.errors import TargetError

    rows = []
    for name, scaled in sweep(arch, axes):
        row: dict[str, Any] = {"name": name, "pes": scaled.pes, "buffers": scaled.buffer_bytes}
        try:
            report = workload.run(scaled, options).report(tech, gating=gating)
        except TargetError as error:
            rows.append(row | {"error": str(error)})
        else:
            rows.append(row | _row(report))
    return rows


def _row(report: dict[str, Any]) -> dict[str, Any]:
    if "error" in report:
        return report
    names = ("cycles", "energy_nj", "macs", "dram_bytes", "utilization", "instructions")
    return {name: report[name] for name in names}


def _write_trace(path: str, done: Run) -> None:
    from ttsnn.accel_target.trace import trace_of
    from ttsnn.artifact import replacing

    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(trace_of(done.program, done.result, done.arch), file)


def _write_plots(args: argparse.Namespace, data: dict[str, Any]) -> list[str]:
    from ttsnn.accel_target import plots

    folder = Path(args.plots)
    reports = {data["architecture"]: data}
    if "compare" in data:
        reports[data["compare"]["architecture"]] = data["compare"]
    paths = [folder / f"{name}.png" for name in ("energy", "layers", "units")]
    plots.plot_energy(reports, paths[0])
    plots.plot_layers(data, paths[1])
    plots.plot_units(reports, paths[2])
    rows = [r for r in data.get("sweep", ()) if "error" not in r]
    if rows:
        paths.append(folder / "sweep.png")
        plots.plot_sweep(rows, paths[-1])
    return [str(p) for p in paths]


def _show(console: Console, data: dict[str, Any]) -> None:
    from ttsnn.cli import _accelerator as tables

    plan = f"{data['plan']}, {data['mode']}" if data["plan"] else "dense"
    spikes = "spikes of random input" if data["firing_rate"] is None else "assumed spikes"
    console.print(
        f"[bold]{data['model']}[/bold] ({plan}), {data['phase']}, batch {data['batch']}, on "
        f"{data['architecture']}, {data['technology']}, {spikes}"
    )
    reports = [data, *([data["compare"]] if "compare" in data else [])]
    tables.totals(console, reports)
    if "fixed_point" in data:
        for name, error in list(data["fixed_point"]["outputs"].items())[:3]:
            console.print(
                f"fixed point: {name} differs by up to {error['max_error']:.3g} of "
                f"{error['largest']:.3g}"
            )
    tables.phases(console, data)
    tables.units(console, data)
    tables.layers(console, data)
    for title, key in (("sweep", "sweep"), ("switched off", "attribution")):
        if key in data:
            tables.runs(console, title, data[key])
    for path in data.get("plots", ()):
        console.print(f"wrote {path}")
