"""``ttsnn targets``: what networks can be compiled to."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    _common.command(
        subparsers, "targets", "List the targets that networks can be compiled to.", "ttsnn targets"
    )


def run(args: argparse.Namespace) -> int:
    """Print the registry."""
    from ttsnn.targets import get_target, target_names

    entries = []
    for name in target_names():
        entries.append(get_target(name).describe())

    def show(console: Console) -> None:
        from rich.table import Table

        table = Table("target", "what", "limits", "here")
        for entry in entries:
            here = ", ".join(f"{k} {entry[k]}" for k in ("mcpu", "isa", "arch") if k in entry)
            table.add_row(entry["name"], entry["description"], entry["constraints"], here)
        console.print(table)

    _common.emit(args, {"targets": entries}, show)
    return 0
