"""The command ``ttsnn``: one module a subcommand.

A command module ``ttsnn.cli.<name>`` has ``add_parser(subparsers) -> None`` and
``run(args) -> int``. Only the chosen command's module is imported, so ``ttsnn run`` on an
artifact never loads PyTorch or the compiler.

Exit codes: 0 done, 1 a check failed, 2 bad input (one message on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from ttsnn.errors import TTSNNError, first_line

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "compile": "compile a network to an artifact (.ttsnn)",
    "run": "run a compiled network on an array or a dataset's samples",
    "compare": "compare a compiled network with its PyTorch twin and other runtimes",
    "plan": "choose which layers become tensor trains, and their ranks",
    "report": "count parameters and arithmetic of a network, dense and decomposed",
    "inspect": "list the kernels of a compiled network: rule, layers, share of the time",
    "tune": "measure forms and tiles of a network's layers, for compile to use",
    "eval": "accuracy and firing rates of a network on a dataset",
    "train": "train a network on a dataset with compiled steps, with checkpoints that resume",
    "gradcheck": "compare every parameter's gradient with PyTorch's autograd",
    "simulate": "run a network on the simulated accelerator: cycles, events, energy",
    "export": "write a network as ONNX, or as a bundle that runs without TVM",
    "targets": "list the targets that networks can be compiled to",
    "doctor": "check this installation",
}
"""Command → its one-line help, in the order that ``ttsnn --help`` lists them."""


def _chosen(argv: Sequence[str]) -> str | None:
    """The command named on the command line, None where there is none."""
    for word in argv:
        if not word.startswith("-"):
            return word if word in COMMANDS else None
    return None


def _parser(chosen: str | None) -> tuple[argparse.ArgumentParser, object | None]:
    """The whole parser; only the chosen command's options are filled in."""
    parser = argparse.ArgumentParser(
        prog="ttsnn",
        description="Compile spiking PyTorch networks with tensor-train layers, run them, "
        "compare them.",
        epilog="example: ttsnn compile ms_resnet18 --plan paper --mode ptt -o net.ttsnn",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    module = None
    for name, help_text in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"ttsnn.cli.{name}")
            module.add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=help_text, add_help=False)
    return parser, module


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code.

    Args:
        argv: words after the program's name; ``sys.argv[1:]`` by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("ttsnn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `ttsnn … | head`: the reader has gone; keep the exit quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("TTSNN_DEBUG", "") not in ("", "0"):
            raise
        print(f"ttsnn: {_message(error)}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    """Parse and execute one command line."""
    parser, module = _parser(_chosen(argv))
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help (0) or bad usage (2); argparse printed its message
        return int(stop.code or 0)
    if args.version:
        from ttsnn import __version__

        print(f"ttsnn {__version__}")
        return 0
    if module is None:
        parser.print_help()
        return 2
    code = int(module.run(args) or 0)  # type: ignore[attr-defined]
    sys.stdout.flush()
    return code


def _message(error: Exception) -> str:
    """What the user is told of an error."""
    if isinstance(error, TTSNNError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller --batch or --image-size"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return (
        f"internal error, {type(error).__name__}: {first_line(error)}\n"
        "This is a bug of ttsnn. TTSNN_DEBUG=1 in the environment shows where it happened; please "
        "report it with the command line."
    )
