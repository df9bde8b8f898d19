"""The command line."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

import gpu
from gpu.names import ORDER

HERE = Path(__file__).resolve().parent


def main(words: list[str] | None = None) -> int:
    """All parts; 2 for what the caller can mend."""
    args = _parser().parse_args(words)
    if importlib.util.find_spec("ttsnn_bundle") is not None and args.part != "compile":
        import ttsnn_bundle

        ttsnn_bundle.prepare()
    if importlib.util.find_spec("torch") is None:
        print(f"gpu {args.part}: needs PyTorch, which this Python lacks", file=sys.stderr)
        return 2
    from ttsnn.errors import TTSNNError

    module, function = args.entry
    try:
        return getattr(importlib.import_module(f"gpu.{module}"), function)(args)
    except TTSNNError as error:
        print(f"gpu {args.part}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu",
        description=gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(dest="part", required=True)
    _compile(parts.add_parser("compile", help="on any machine with TVM's compiler and nvcc"))
    _run(parts.add_parser("run", help="on the machine with the GPU"))
    _child(parts.add_parser("child"))
    _roofline(parts.add_parser("roofline", help="lower bounds from sizes and data sheets, no GPU"))
    part = parts.add_parser("summary", help="print what run measured")
    part.set_defaults(entry=("summary", "summary"))
    part.add_argument("results", type=Path)
    part = parts.add_parser("plot", help="draw what run measured; needs matplotlib")
    part.set_defaults(entry=("plot", "plot"))
    part.add_argument("results", type=Path)
    part.add_argument("--out", type=Path, help="(default: beside the results, .png)")
    return parser


def _compile(part: argparse.ArgumentParser) -> None:
    part.set_defaults(entry=("compile", "compile_all"))
    part.add_argument("folder", type=Path)
    part.add_argument("--archs", default="sm_80+sm_90")
    part.add_argument("--target", choices=("cuda", "cuda-emulated"), default="cuda")
    part.add_argument("--plan", default="paper", help="rule of the ranks")
    part.add_argument(
        "--preset",
        choices=("grid", "first"),
        default="grid",
        help="first: the cases of a first run on a GPU, instead of the lists below",
    )
    part.add_argument("--only", default="*", help="cases whose names fit, as 'train-*-ptt-*'")
    part.add_argument("--phases", default="inference,train")
    part.add_argument("--networks", default="ms_resnet18,ms_resnet34")
    part.add_argument("--modes", default="dense,stt,ptt,htt")
    part.add_argument("--batches", default="1,32,128")
    part.add_argument("--timesteps", default="4,6")
    part.add_argument("--precisions", default="fp32,tf32,bf16")
    part.add_argument("--dataset", default="cifar10")
    part.add_argument(
        "--record-batch", type=int, default=1, help="largest batch whose spikes are compared (1)"
    )
    part.add_argument(
        "--check-batch",
        type=int,
        default=8,
        help="largest batch whose training step PyTorch computes here, to compare with (8)",
    )


def _run(part: argparse.ArgumentParser) -> None:
    part.set_defaults(entry=("run", "run"))
    part.add_argument(
        "folder", type=Path, nargs="?", default=HERE.parent / "cases", help="(default: cases)"
    )
    part.add_argument("--out", type=Path, default=Path("gpu.json"), help="(default: gpu.json)")
    part.add_argument(
        "--minutes", type=float, default=60.0, help="for everything; what is left is named (60)"
    )
    part.add_argument(
        "--case-seconds", type=float, default=600.0, help="for all contenders of a case (600)"
    )
    part.add_argument("--only", default="*", help="cases whose names fit, as 'train-*-ptt-*'")
    _measuring(part)
    part.add_argument("--contenders", default=",".join(ORDER), help="(default: all)")


def _child(part: argparse.ArgumentParser) -> None:
    part.set_defaults(entry=("child", "run_child"))
    part.add_argument("folder", type=Path)
    part.add_argument("case")
    part.add_argument("--row", type=Path)
    _measuring(part)
    part.add_argument("--contenders", nargs="+")


def _measuring(part: argparse.ArgumentParser) -> None:
    part.add_argument("--repeats", type=int, default=20, help="blocks of calls, at most (20)")
    part.add_argument("--seconds", type=float, default=3.0, help="for them (3)")
    part.add_argument(
        "--contender-seconds",
        type=float,
        default=150.0,
        help="for one contender, torch.compile's work included (150)",
    )
    part.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: try the benchmark out on cases for cuda-emulated; its times mean nothing",
    )


def _roofline(part: argparse.ArgumentParser) -> None:
    part.set_defaults(entry=("roofline", "roofline"))
    part.add_argument("--gpu", choices=("H200", "H100", "A100"), default="H100")
    part.add_argument("--phase", choices=("inference", "train"), default="train")
    part.add_argument("--network", default="ms_resnet34")
    part.add_argument("--mode", default="ptt")
    part.add_argument("--plan", default="paper", help="rule of the ranks")
    part.add_argument("--batch", type=int, default=128)
    part.add_argument("--timesteps", type=int, default=6)
    part.add_argument("--precision", default="fp32")
    part.add_argument("--dataset", default="ncaltech101")
