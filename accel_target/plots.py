"""Plots of simulations' reports; they need Matplotlib (``pip install 'ttsnn[plots]'``)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttsnn.accel_target.energy import CATEGORIES
from ttsnn.errors import TargetError
from ttsnn.files import check_replaceable

__all__ = ["check_plot", "pareto", "plot_energy", "plot_layers", "plot_sweep", "plot_units"]

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: str | os.PathLike) -> Path:
    """A path that a plot can be written to.

    Raises:
        TargetError: Matplotlib is missing, the format is unknown, or there is no such folder.
        OSError: a device is in its place.
    """
    path = Path(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise TargetError("plots need Matplotlib: pip install 'ttsnn[plots]'") from None
    if path.suffix not in FORMATS:
        raise TargetError(f"plot {path}: unknown format; end its name in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise TargetError(f"plot {path}: there is no folder {path.parent}; make it first")
    check_replaceable(path)
    return path


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    """Under a temporary name first, so that no half-written plot stays."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _stacked(ax: Any, names: Sequence[str], energies: Sequence[Mapping[str, float]]) -> None:
    """A bar for each name, its energies in µJ on top of each other."""
    bottom = [0.0] * len(names)
    for category in CATEGORIES:
        values = [e.get(category, 0.0) / 1e3 for e in energies]
        if any(values):
            ax.bar(range(len(names)), values, bottom=bottom, label=category)
            bottom = [b + v for b, v in zip(bottom, values)]
    ax.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0)
    ax.set_ylabel("energy, µJ")
    ax.legend()


def plot_energy(reports: Mapping[str, Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Name → report of :func:`~ttsnn.accel_target.report.simulation_report`: energies in bars."""
    out = check_plot(path)
    figure = _figure(max(5.0, 1.2 * len(reports) + 2), 4.5)
    _stacked(figure.subplots(), list(reports), [r["energy_nj"] for r in reports.values()])
    _save(figure, out)


def plot_layers(report: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Energies of each layer in bars."""
    out = check_plot(path)
    rows = report["layers"]
    figure = _figure(max(6.0, 0.25 * len(rows) + 3), 5.0)
    _stacked(figure.subplots(), [r["layer"] for r in rows], [r["energy_nj"] for r in rows])
    _save(figure, out)


def plot_units(reports: Mapping[str, Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Busy share of every unit, one panel a report."""
    out = check_plot(path)
    figure = _figure(max(6.0, 3.5 * len(reports)), 4.5)
    panels = figure.subplots(1, len(reports), squeeze=False)[0]
    for ax, (name, report) in zip(panels, reports.items()):
        rows = report["units"]
        where = range(len(rows))
        ax.barh(where, [100 * r["busy_share"] for r in rows], label="busy")
        used = [100 * r.get("utilization", 0.0) for r in rows]
        ax.barh(where, used, height=0.4, label="PEs in use")
        ax.set_yticks(where, [r["unit"] for r in rows])
        ax.invert_yaxis()
        ax.set(xlim=(0, 100), xlabel="% of the cycles", title=name)
        ax.legend()
    _save(figure, out)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates, by the first coordinate."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    best, front = float("inf"), []
    for i in order:
        if points[i][1] < best:
            best = points[i][1]
            front.append(i)
    return front


def plot_sweep(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Cycles against energy of a sweep's rows (``name``, ``cycles``, ``energy_nj``)."""
    out = check_plot(path)
    points = [(float(r["cycles"]), r["energy_nj"]["total"] / 1e3) for r in rows]
    figure = _figure(7.0, 5.0)
    ax = figure.subplots()
    ax.scatter(*zip(*points))
    front = pareto(points)
    ax.plot([points[i][0] for i in front], [points[i][1] for i in front], label="Pareto front")
    for row, (x, y) in zip(rows, points):
        ax.annotate(row["name"], (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    ax.set(xlabel="cycles", ylabel="energy, µJ")
    ax.legend()
    _save(figure, out)
