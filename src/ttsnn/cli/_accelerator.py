"""Tables of simulations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["layers", "phases", "runs", "totals", "units"]

_PARTS = ("compute", "sram", "scratchpad", "link", "dram", "leakage")


def _table(*columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    from rich.table import Table

    table = Table(*columns)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _uj(nj: float) -> str:
    return f"{nj / 1e3:,.2f}"


def totals(console: Console, reports: Sequence[dict[str, Any]]) -> None:
    """Everything that is one number, side by side; with two reports the first over the second."""
    pair = len(reports) == 2
    table = _table("", *(r["architecture"] for r in reports), *(["ratio"] if pair else []))

    def row(name: str, values: list[float], text: list[str]) -> None:
        ratio = []
        if pair:
            ratio = [f"{values[0] / values[1]:.3f}" if values[1] else ""]
        table.add_row(name, *text, *ratio)

    def add(name: str, values: list[float], form: str = "{:,.0f}") -> None:
        row(name, values, [form.format(v) for v in values])

    add("cycles", [r["cycles"] for r in reports])
    add("time, µs", [r["time_us"] for r in reports], "{:,.1f}")
    add("least cycles", [max(r["least_cycles"].values()) for r in reports])
    add("PEs in use, %", [100 * r["utilization"] for r in reports], "{:.1f}")
    add("instructions", [r["instructions"] for r in reports])
    add("macs", [r["macs"] for r in reports])
    for name, what in (("mac8", "8-bit"), ("mac16", "16-bit"), ("acc", "spikes"), ("gated", "")):
        add(f"  {name} {what}".rstrip(), [r["executed"][name] for r in reports])
    add("DRAM, bytes", [r["dram_bytes"] for r in reports])
    add("links, bytes", [r["events"]["link_sent"] for r in reports])
    energies = [r["energy_nj"] for r in reports]
    row("energy, µJ", [e["total"] for e in energies], [_uj(e["total"]) for e in energies])
    for part in _PARTS:
        values = [e[part] for e in energies]
        if any(values):
            row(f"  {part}", values, [_uj(v) for v in values])
    console.print(table)


def phases(console: Console, data: dict[str, Any]) -> None:
    """One row a phase."""
    table = _table("phase", "cycles", "macs", "DRAM, bytes", "energy, µJ", "of it DRAM")
    for row in data["phases"]:
        energy = row["energy_nj"]
        table.add_row(
            row["phase"],
            f"{row['cycles']:,}",
            f"{row['macs']:,}",
            f"{row['dram_bytes']:,}",
            _uj(energy["total"]),
            f"{100 * energy['dram'] / max(energy['total'], 1e-12):.0f} %",
        )
    console.print(table)


def units(console: Console, data: dict[str, Any]) -> None:
    """One row a unit that did something."""
    table = _table(
        "unit", "busy, cycles", "busy, %", "waits, cycles", "PEs in use, %", "energy, µJ"
    )
    for row in data["units"]:
        if not row["busy"]:
            continue
        used = f"{100 * row['utilization']:.1f}" if "utilization" in row else ""
        table.add_row(
            row["unit"],
            f"{row['busy']:,}",
            f"{100 * row['busy_share']:.1f}",
            f"{row['stalled']:,}",
            used,
            _uj(row["energy_nj"]["total"]),
        )
    console.print(table)


def layers(console: Console, data: dict[str, Any]) -> None:
    """One row a layer."""
    shown = [p for p in _PARTS if any(r["energy_nj"].get(p) for r in data["layers"])]
    spikes = ["spikes"] if data["density"] else []
    table = _table("layer", "macs", "executed", *spikes, "DRAM, bytes", "energy, µJ", *shown)
    for row in data["layers"]:
        density = data["density"].get(row["layer"])
        table.add_row(
            row["layer"],
            f"{row['macs']:,}",
            f"{row['executed']:,}",
            *([f"{100 * density:.1f} %" if density is not None else ""] if spikes else []),
            f"{row['dram_bytes']:,}",
            _uj(row["energy_nj"]["total"]),
            *(_uj(row["energy_nj"].get(p, 0.0)) for p in shown),
        )
    console.print(table)


def runs(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """One row a simulation, compared with the first."""
    table = _table(
        title, "cycles", "", "energy, µJ", "", "compute", "sram", "dram", "DRAM, bytes", "PEs, %"
    )
    first = next((r for r in rows if "error" not in r), None)
    for row in rows:
        if "error" in row or first is None:
            table.add_row(row["name"], f"[yellow]{row['error']}[/yellow]")
            continue
        energy = row["energy_nj"]
        table.add_row(
            row["name"],
            f"{row['cycles']:,}",
            f"{100 * (row['cycles'] / first['cycles'] - 1):+.1f} %",
            _uj(energy["total"]),
            f"{100 * (energy['total'] / first['energy_nj']['total'] - 1):+.1f} %",
            _uj(energy["compute"]),
            _uj(energy["sram"]),
            _uj(energy["dram"]),
            f"{row['dram_bytes']:,}",
            f"{100 * row['utilization']:.1f}",
        )
    console.print(table)
