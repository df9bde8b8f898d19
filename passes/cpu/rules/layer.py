"""Rule for ``relax.snn.layer``: replaces the reference function by the fused kernel."""

from __future__ import annotations

from tvm import s_tir
from tvm.target import Target
from tvm.tirx import IntImm, PrimFunc

from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.kernels.fused import fused_layer
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, default_tiles
from ttsnn.passes.cpu.rules.replace import replaced
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.layers.signature import CONFIG_ATTR, TILES_ATTR

__all__ = ["DEFAULT_THREADS", "event_rule", "layer_rule", "threads_of"]

DEFAULT_THREADS = 2
"""Threads that a single image should keep busy where the target has no ``num-cores``."""


def threads_of(target: Target) -> int:
    """Threads that a single image should keep busy."""
    return int(target.attrs.get("num-cores", 0)) or DEFAULT_THREADS


def event_rule(func: PrimFunc, target: Target) -> s_tir.Schedule | None:
    """The fused kernel of a layer whose tiles say that it is event-driven, else None."""
    if func.attrs is None or TILES_ATTR not in func.attrs:
        return None
    tiles = LayerTiles.from_json(str(func.attrs[TILES_ATTR]))
    return layer_rule(func, target, tiles) if tiles.events else None


def layer_rule(
    func: PrimFunc, target: Target, tiles: LayerTiles | None = None
) -> s_tir.Schedule | None:
    """The fused kernel of a layer, or None where ``func`` is no layer.

    Args:
        func: a function that ``relax.snn.layer`` was legalised to.
        target: the CPU.
        tiles: tile parameters; None takes those of the function's attribute, or without one
            the defaults for the shapes and the CPU.
    """
    if func.attrs is None or CONFIG_ATTR not in func.attrs:
        return None
    config = LayerConfig.from_json(str(func.attrs[CONFIG_ATTR]))
    size = func.params[0].shape[1]
    batch = int(size) if isinstance(size, IntImm) else None
    isa = isa_of(target)
    if tiles is None and TILES_ATTR in func.attrs:
        tiles = LayerTiles.from_json(str(func.attrs[TILES_ATTR]))
    if tiles is None:
        tiles = default_tiles(config, batch, isa, threads_of(target))
    return replaced(func, fused_layer(config, batch, isa, tiles, "layer"))
