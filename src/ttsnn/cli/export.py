"""``ttsnn export``: a network as a file for others, its weights, or a bundle without TVM."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common
from ttsnn.errors import ModelImportError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run"]

_DETAILS = """\
safetensors: the state_dict, for --weights; cores carry their plan along. --merge multiplies the
cores of every tensor train out first: a dense network, whose state_dict fits the network as it is.
ONNX files run in ONNX Runtime: neurons and tensor-train layers are functions of the domain
"ttsnn" whose bodies are standard operators. `ttsnn compile` reads both kinds of file.
A bundle is a folder with the compiled network (or one that is compiled already: net.ttsnn), TVM's
runtime and a loader; on another machine `python FOLDER/ttsnn_bundle.py` checks it."""


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser = _common.command(
        subparsers,
        "export",
        "Write a network as an ONNX or .pt2 file, its weights, or a bundle that runs without TVM.",
        "ttsnn export ms_resnet18 --to onnx --plan paper --dynamic-batch -o net.onnx\n"
        "ttsnn export ms_resnet18 --dataset digits --weights runs/digits --to safetensors --merge "
        "-o dense.safetensors\n"
        "ttsnn export ms_resnet18 --plan paper --target cuda:arch=sm_80+sm_90 --bundle folder",
        _DETAILS,
    )
    _common.add_model(parser, artifact=True)
    _common.add_plan(parser)
    group = parser.add_argument_group("file")
    group.add_argument(
        "--to", choices=("onnx", "pt2", "safetensors"), default="onnx", help="(default: onnx)"
    )
    group.add_argument("--merge", action="store_true", help="tensor trains as dense layers again")
    _common.add_dtype(group)
    group.add_argument(
        "--batch", type=_common.positive, default=1, metavar="N", help="(default: 1)"
    )
    group.add_argument("--dynamic-batch", action="store_true", help="leave the batch size open")
    group.add_argument("--bundle", metavar="DIR", help="write a bundle there instead of a file")
    _common.add_target(group)
    group.add_argument(
        "--train",
        action="store_true",
        help="a bundle with the network's training step too (cross-entropy, SGD with momentum)",
    )
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
    group.add_argument("-o", "--out", metavar="FILE", help="(default: <MODEL>.onnx …)")


def run(args: argparse.Namespace) -> int:
    """Import, decompose where a plan is given, write."""
    if args.bundle is not None:
        return _bundle(args)
    source = _common.resolve_model(args)
    out = args.out or f"{source.name}.{args.to}"
    with _common.status(args, f"exporting {source.name}"):
        if args.merge or args.to != "onnx":
            source = _in_pytorch(args, source)
        if args.to == "onnx":
            _write_onnx(args, source, out)
        elif args.to == "pt2":
            _write_pt2(args, source, out)
        else:
            _write_weights(args, source, out)
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
            training=args.train,
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
    plan = source.plan_to_apply(_common.plan_of(args), args.mode)
    if plan is not None and not args.merge:
        chosen = driver.make_plan(mod, plan, args.mode)
        mod = driver.decompose(mod, chosen, init=args.init, seed=args.seed)
    export_onnx(mod, out)


def _in_pytorch(args: argparse.Namespace, source: Any) -> Any:
    """The source with the plan applied to its module, then merged where asked for."""
    from ttsnn import driver
    from ttsnn.models import apply_plan, merge_tt

    if source.kind != "module":
        raise ModelImportError(
            f"{source.path} holds no PyTorch module to write as .pt2 or .safetensors, or to merge; "
            "export it with --to onnx"
        )
    plan = source.plan_to_apply(_common.plan_of(args), args.mode)
    if plan is not None:
        made = driver.plan(source, plan, args.mode)
        module = apply_plan(source.module, made, init=args.init, seed=args.seed)
        source = replace(source, module=module, plan=made)
    if args.merge:
        source = replace(source, module=merge_tt(source.module).eval(), plan=None)
    return source


def _write_pt2(args: argparse.Namespace, source: Any, out: str) -> None:
    from ttsnn.frontend import export_pt2

    export_pt2(
        source.module,
        out,
        source.example(args.batch, args.dtype, args.seed),
        args.dynamic_batch,
        dtype=args.dtype,
        batch_dim=source.input.batch_axis,
    )


def _write_weights(args: argparse.Namespace, source: Any, out: str) -> None:
    import torch
    from safetensors.torch import save

    from ttsnn.artifact import replacing
    from ttsnn.models import TwoWeightConv2d
    from ttsnn.weights import PLAN_KEY

    two = next(
        (n for n, m in source.module.named_modules() if isinstance(m, TwoWeightConv2d)), None
    )
    if two is not None:
        raise ModelImportError(
            f"layer {two!r}: a merged htt layer has two weights, which no dense layer takes; leave "
            "--merge out, or export --to onnx or pt2"
        )

    module = source.module.to(getattr(torch, args.dtype))
    state = {k: v.contiguous() for k, v in module.state_dict().items()}
    plan = None if source.plan is None else {PLAN_KEY: json.dumps(source.plan.to_json())}
    with replacing(out) as temporary:
        temporary.write_bytes(save(state, plan))
