"""``ttsnn export``: a network as an ONNX or ``.pt2`` file, or as a bundle that runs without TVM."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common
from ttsnn.errors import ModelImportError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run"]

_DETAILS = """\
ONNX files run in ONNX Runtime: neurons and tensor-train layers are functions of the domain
"ttsnn" whose bodies are standard operators. `ttsnn compile` reads both kinds of file.
A bundle is a folder with the compiled network (or one that is compiled already: net.ttsnn), TVM's
runtime and a loader; on another machine `python FOLDER/ttsnn_bundle.py` checks it."""


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "export",
        "Write a network as an ONNX or .pt2 file, or as a bundle that runs without TVM.",
        "ttsnn export ms_resnet18 --to onnx --plan paper --dynamic-batch -o net.onnx\n"
        "ttsnn export ms_resnet18 --plan paper --target cuda:arch=sm_80+sm_90 --bundle folder",
        _DETAILS,
    )
    _common.add_model(parser, artifact=True)
    _common.add_plan(parser)
    group = parser.add_argument_group("file")
    group.add_argument("--to", choices=("onnx", "pt2"), default="onnx", help="(default: onnx)")
    _common.add_dtype(group)
    group.add_argument(
        "--batch", type=_common.positive, default=1, metavar="N", help="(default: 1)"
    )
    group.add_argument("--dynamic-batch", action="store_true", help="leave the batch size open")
    group.add_argument("--bundle", metavar="DIR", help="write a bundle there instead of a file")
    _common.add_target(group)
    group.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="3.12",
        help="a bundle for this Python version too; what it needs is downloaded by pip",
    )
    group.add_argument(
        "--add", action="append", default=[], metavar="PATH", help="take a file or folder along"
    )
    group.add_argument("-o", "--out", metavar="FILE", help="(default: <MODEL>.onnx or .pt2)")


def run(args: argparse.Namespace) -> int:
    """Import, decompose where a plan is given, write."""
    if args.bundle is not None:
        return _bundle(args)
    source = _common.resolve_model(args)
    out = args.out or f"{source.name}.{args.to}"
    with _common.status(args, f"exporting {source.name}"):
        if args.to == "onnx":
            _write_onnx(args, source, out)
        else:
            _write_pt2(args, source, out)
    data = {"path": out, "format": args.to, "bytes": os.path.getsize(out), "dtype": args.dtype}

    def show(console: Console) -> None:
        console.print(f"[bold]{out}[/bold]  {data['bytes'] / 1e6:.2f} MB")

    _common.emit(args, data, show)
    return 0


def _bundle(args: argparse.Namespace) -> int:
    """Compile for the target and bundle it, with results of this machine's CPU to check it by."""
    from ttsnn.runtime.bundle import write_network

    with _common.status(args, f"bundling {args.model}"):
        source = args.model if args.model.endswith(".ttsnn") else _common.resolve_model(args)
        size, target = write_network(
            args.bundle,
            source,
            target=args.target,
            python=args.python,
            extra=[Path(p) for p in args.add],
            plan=_common.plan_of(args),
            mode=args.mode,
            init=args.init,
            seed=args.seed,
            dtype=args.dtype,
            batch=args.batch,
            dynamic_batch=args.dynamic_batch,
        )
    data = {"path": args.bundle, "format": "bundle", "bytes": size, "target": target}

    def show(console: Console) -> None:
        console.print(f"[bold]{args.bundle}[/bold]  {size / 1e6:.1f} MB, for {target}")
        console.print(f"  check it where it will run: python {args.bundle}/ttsnn_bundle.py")

    _common.emit(args, data, show)
    return 0


def _write_onnx(args: argparse.Namespace, source: Any, out: str) -> None:
    from ttsnn import driver
    from ttsnn.frontend import export_onnx
    from ttsnn.frontend.onnx_graph import require_onnx

    require_onnx()
    mod = driver.import_source(
        source, dtype=args.dtype, dynamic_batch=args.dynamic_batch, batch=args.batch
    )
    plan = _common.plan_of(args)
    if plan is not None:
        chosen = driver.make_plan(mod, plan, args.mode)
        mod = driver.decompose(mod, chosen, init=args.init, seed=args.seed)
    export_onnx(mod, out)


def _write_pt2(args: argparse.Namespace, source: Any, out: str) -> None:
    from ttsnn import driver
    from ttsnn.frontend import export_pt2
    from ttsnn.models import apply_plan

    if source.kind != "module":
        raise ModelImportError(
            f"{source.path} holds no PyTorch module to write as .pt2; export it with --to onnx"
        )
    model = source.module
    plan = _common.plan_of(args)
    if plan is not None:
        chosen = driver.plan(source, plan, args.mode)
        model = apply_plan(model, chosen, init=args.init, seed=args.seed)
    export_pt2(
        model,
        out,
        source.example(args.batch, args.dtype, args.seed),
        args.dynamic_batch,
        dtype=args.dtype,
        batch_dim=source.input.batch_axis,
    )
