"""``ttsnn tune``: measure forms and tiles of a network's layers, for ``ttsnn compile`` to use."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run"]

_DETAILS = """\
Records are appended to a database, by default of the target in $TTSNN_TUNE_DIR or the user's
cache; `ttsnn compile` finds them by itself. A run that was interrupted, or killed, goes on where
it stopped: --trials counts earlier records too. Run it on an idle machine."""


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "tune",
        "Search the fastest form (which cores are merged) and tiles of every layer by measuring "
        "candidates on this machine, or on others.",
        "ttsnn tune ms_resnet18 --plan paper --mode ptt --threads 1 --trials 200\n"
        "ttsnn tune mynets:build --batch 8 --minutes 30 --tracker 192.168.0.2:9190 --key board",
        _DETAILS,
    )
    _common.add_model(parser)
    _common.add_plan(parser)
    group = parser.add_argument_group("what to tune for")
    _common.add_target(group)
    _common.add_dtype(group)
    group.add_argument(
        "--batch", type=_common.positive, default=1, metavar="N", help="(default: 1)"
    )
    _common.add_calibration(group, "layers are measured with as many spikes, event-driven as well")
    _common.add_threads(parser)
    group = parser.add_argument_group("search")
    group.add_argument(
        "--trials",
        type=_common.positive,
        metavar="N",
        help="measured candidates, earlier runs included (default: 200, without --minutes)",
    )
    group.add_argument("--minutes", type=float, metavar="M", help="stop after so many minutes")
    group.add_argument("--database", metavar="DIR", help="folder of the records")
    group.add_argument("--tracker", metavar="HOST:PORT", help="measure on devices of TVM's RPC")
    group.add_argument("--key", help="the devices' key at the tracker")


def run(args: argparse.Namespace) -> int:
    """Tune and report."""
    from ttsnn.tuning.network import tune

    calibration = _common.calibration_of(args)
    source = _common.resolve_model(args, calibrated=calibration is not None)
    with _Bar(args) as bar:
        data = tune(
            source,
            target=args.target,
            plan=_common.plan_of(args),
            mode=args.mode,
            init=args.init,
            seed=args.seed,
            dtype=args.dtype,
            batch=args.batch,
            threads=args.threads,
            trials=args.trials,
            minutes=args.minutes,
            database=args.database,
            calibration=calibration,
            tracker=args.tracker,
            key=args.key,
            report=bar.update,
        )
    _common.emit(args, data, lambda console: _show(console, data))
    if data["interrupted"]:
        print("ttsnn: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


class _Bar:
    """A progress bar on stderr: trials, and the time of all layers, default → best so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.total = args.trials or (None if args.minutes else 200)
        self.shown = not args.json and sys.stderr.isatty()
        self.progress: Any = None

    def __enter__(self) -> _Bar:
        if self.shown:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            self.progress = Progress(
                TextColumn("tuning"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
            )
            self.progress.start()
            self.task = self.progress.add_task("preparing", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self, state: dict) -> None:
        """Show a state of :data:`ttsnn.tuning.tuner.Progress`."""
        if self.progress is not None:
            text = _gain(state) or "measuring defaults"
            self.progress.update(self.task, completed=state["trials"], description=text)


def _gain(state: dict) -> str:
    """``layers 7.10 → 6.52 ms``; empty where that is not known yet."""
    if state["default_ms"] is None or state["best_ms"] is None:
        return ""
    return f"layers {state['default_ms']:.3f} → {state['best_ms']:.3f} ms"


def _form(layer: dict, prefix: str) -> str:
    """A layer's choice in words; ``prefix``: ``default_`` for the untuned one."""
    words = [layer[f"{prefix}form"], *(["events"] if layer[f"{prefix}events"] else [])]
    return ", ".join(filter(None, words))


def _show(console: Console, data: dict) -> None:
    from rich.table import Table

    table = Table("layers", "rate", "form", "default µs", "best µs", "gain", "trials")
    for column in table.columns[3:]:
        column.justify = "right"
    for layer in data["layers"]:
        names, base, best = layer["layers"], layer["default_us"], layer["best_us"]
        form, default = _form(layer, ""), _form(layer, "default_")
        if form != default:
            form = f"[bold]{form}[/bold] (was {default})"
        table.add_row(
            names[0] + (f" +{len(names) - 1}" if len(names) > 1 else ""),
            f"{layer['firing_rate']:.1%}" if layer["firing_rate"] is not None else "",
            form,
            f"{base:.1f}" if base is not None else "?",
            f"{best:.1f}" if best is not None else "?",
            f"{base / best:.2f}×" if base is not None and best is not None else "",
            str(layer["trials"]),
        )
    console.print(table)
    console.print(
        f"[bold]{data['model']}[/bold] for {data['target']}, batch {data['batch']}, "
        f"{data['threads']} thread(s): {data['trials']} trials ({data['new_trials']} new), "
        f"{_gain(data) or 'not every layer measured yet'}"
    )
    console.print(f"records in {data['database']}; `ttsnn compile` finds them")
