"""PackWeights: weights in the order in which the kernels of this CPU read them."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax

from ttsnn.passes.cpu.kernels.pack import pack_layer_weights
from ttsnn.passes.cpu.kernels.tiles import LayerTiles
from ttsnn.passes.layers import layer_call, layer_config_of
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.static_values import op_name

__all__ = ["PackWeights", "TilesOf"]

TilesOf = Callable[[LayerConfig, int | None], LayerTiles | None]
"""Tiles of a layer with plain weights, for a batch size (None: symbolic); None: the defaults."""


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
class PackWeights(ModulePass):
    """Replace the weights [taps, Cin, Cout] of every ``relax.snn.layer`` by packed ones.

    Args:
        target: the CPU whose vector width decides the panels.
        tiles: asked for the tiles of each layer, which have a say in the panels; the layer
            carries its answer on to the schedule rule. None leaves them to the rule.
    """

    def __init__(self, target: tvm.target.Target, tiles: TilesOf | None = None) -> None:
        self.target = target
        self.tiles = tiles

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return prune(_Packer(mod, self.target, self.tiles).run())


class _Packer(BindingRewriter):
    def __init__(self, mod: tvm.IRModule, target: tvm.target.Target, tiles: TilesOf | None) -> None:
        super().__init__(mod)
        self.target = target
        self.tiles = tiles
        self._packed: dict[tuple[relax.Var, int], relax.Var] = {}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        if op_name(value) != "relax.snn.layer":
            return self.get(value)
        config = layer_config_of(value)
        count = len(config.stages) + len(config.half_stages)
        weights = list(value.args[1 : 1 + count])
        values = self.static.all(weights)
        if config.packing is not None or values is None:
            return self.get(value)
        batch = known_dims(value.args[0])[1]
        tiles = None
        if self.tiles is not None:
            tiles = self.tiles(config, batch if isinstance(batch, int) else None)
        vectors = None if tiles is None else tiles.panel_vectors
        config, packed = pack_layer_weights(config, values, self.target, vectors)
        keys = [(weight, vectors or 0) for weight in weights]
        for key, data in zip(keys, packed):
            if key not in self._packed:
                name = self.name_of(key[0]) or f"{config.name}.weight"
                self._packed[key] = self.fresh_param(f"{name}.packed", data)
        rest = [self.get(a) for a in value.args[1 + count :]]
        operands = [self.get(value.args[0]), *(self._packed[k] for k in keys), *rest]
        return layer_call(config, operands, None if tiles is None else tiles.to_json())
