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
    from rich.table import Table

    from ttsnn.sources import ModelSource

__all__ = ["fit_errors", "layer_rows", "layers_table", "weights_note"]

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


def layers_table(rows: list[dict[str, Any]]) -> Table:
    """The rows for people; columns of errors only where there are any."""
    from rich.table import Table

    kinds = [
        (key, title)
        for key, title in (
            ("weight", "error of the fit"),
            ("cross", "of the cross"),
            ("half", "other steps"),
        )
        if any(r["error"] and r["error"][key] is not None for r in rows)
    ]
    table = Table("layer", "weight", "form", "ranks", title=None)
    for title in ("parameters", "TT", "MFLOPs", "TT", *(t for _, t in kinds)):
        table.add_column(title, justify="right")
    for r in rows:
        form = r["mode"] if r["timesteps"] is None else f"{r['mode']} ({r['timesteps']} full)"
        numbers = [
            f"{r['params']['dense']:,}",
            f"{r['params']['tt']:,}",
            f"{r['flops']['dense'] / 1e6:,.2f}",
            f"{r['flops']['tt'] / 1e6:,.2f}",
        ]
        for key, _ in kinds:
            value = r["error"][key] if r["error"] else None
            numbers.append("" if value is None else f"{value:.4f}")
        shape = "×".join(map(str, r["shape"]))
        ranks = "" if r["ranks"] is None else ", ".join(map(str, r["ranks"]))
        table.add_row(r["name"], shape, form, ranks, *numbers)
    return table


def weights_note(source: ModelSource) -> str | None:
    """What to say of errors where the weights are not trained."""
    return None if source.trained else _RANDOM
