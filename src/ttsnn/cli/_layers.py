"""Layers of a planned network as rows of a table, for ``plan`` and ``report``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ttsnn.plans import (
    LayerInfo,
    NetworkCost,
    TTPlan,
    core_names,
    cores_of_layer,
    errors_of_layer,
)
from ttsnn.tt import FitErrors

if TYPE_CHECKING:
    from rich.console import Console

    from ttsnn.sources import ModelSource

__all__ = ["fit_errors", "layer_rows", "print_layers", "weights_note"]

_RANDOM = "the weights are random (no --weights): these errors say nothing of a trained network"


def fit_errors(
    infos: Sequence[LayerInfo], plan: TTPlan, params: Mapping[str, Any] | None = None
) -> dict[str, FitErrors]:
    """Layer name → relative errors of its cores against the dense weight.

    Args:
        infos: the dense layers, with weights.
        plan: the layers that are fitted.
        params: parameters of the decomposed program; where None, the cores are fitted here.
    """
    errors = {}
    for info in infos:
        layer = plan.layers.get(info.name)
        if layer is None:
            continue
        if params is None:
            cores = cores_of_layer(info.name, layer, info.values(), T=plan.T)
        else:
            cores = {key: params[f"{info.name}.{key}"] for key in core_names(layer)}
        errors[info.name] = errors_of_layer(layer, info.values(), cores)
    return errors


def layer_rows(cost: NetworkCost, errors: Mapping[str, FitErrors]) -> list[dict[str, Any]]:
    """One JSON object a layer: shape, form and ranks, parameters, FLOPs, errors of the fit."""
    rows = []
    for c in cost.layers:
        row: dict[str, Any] = {
            "name": c.info.name,
            "kind": c.info.kind,
            "shape": list(c.info.weight_shape),
            "steps": c.info.steps,
            "mode": "dense" if c.layer is None else c.layer.mode,
            "ranks": None if c.layer is None else list(c.layer.ranks),
            "timesteps": None if c.layer is None else c.layer.timesteps,
            "params": {"dense": c.dense_params, "tt": c.params},
            "flops": {"dense": c.dense_flops, "tt": c.flops},
            "error": errors[c.info.name].to_json() if c.info.name in errors else None,
        }
        rows.append(row)
    return rows


_ERRORS = (("weight", "fit error"), ("cross", "of cross"), ("half", "1×1 steps"))


def print_layers(console: Console, rows: list[dict[str, Any]]) -> None:
    """The rows for people: tensor-train counts with their ratio, then the errors there are."""
    from rich.table import Table

    if not console.is_terminal:  # a file or a pipe has no width that lines should break at
        console.width = max(console.width, 120)
    errors = [
        (key, title)
        for key, title in _ERRORS
        if any(r["error"] and r["error"][key] is not None for r in rows)
    ]
    table = Table("layer", "weight", "form", "ranks", box=None, pad_edge=False)
    for title in ("parameters", "MFLOPs", *(t for _, t in errors)):
        table.add_column(title, justify="right", no_wrap=True)
    for r in rows:
        form = r["mode"] if r["timesteps"] is None else f"{r['mode']} {r['timesteps']}/{r['steps']}"
        distinct = set(r["ranks"] or ())
        ranks = ",".join(map(str, distinct if len(distinct) == 1 else r["ranks"] or ()))
        counts = [_count(r["params"], 1), _count(r["flops"], 1e6)]
        for key, _ in errors:
            value = r["error"][key] if r["error"] else None
            counts.append("" if value is None else f"{value:.4f}")
        table.add_row(r["name"], "×".join(map(str, r["shape"])), form, ranks, *counts)
    console.print(table)
    if any(key == "cross" for key, _ in errors):
        console.print(
            "fit error: ‖W − TT‖/‖W‖ of the whole kernel; of cross: against its centre row and "
            "column, all that ptt and htt can represent"
        )


def _count(pair: Mapping[str, int], unit: float) -> str:
    """``294,912 (8.0×)``; the dense count alone where the layer is dense."""
    digits = 0 if unit == 1 else 2
    text = f"{pair['tt'] / unit:,.{digits}f}"
    if pair["tt"] == pair["dense"]:
        return text
    return f"{text} ({pair['dense'] / max(pair['tt'], 1):.1f}×)"


def weights_note(source: ModelSource) -> str | None:
    """What to say of errors where the weights are not trained."""
    return None if source.trained else _RANDOM
