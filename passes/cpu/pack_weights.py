"""PackWeights: weights in the order in which the kernels of this CPU read them."""

from __future__ import annotations

import tvm
from tvm import relax

from ttsnn.passes.cpu.kernels import cpu_layer, layer_config_of, pack_layer_weights
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.static_values import op_name

__all__ = ["PackWeights"]


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
class PackWeights(ModulePass):
    """Replace the weights [taps, Cin, Cout] of every ``relax.cpu.layer`` by packed ones.

    Args:
        target: the CPU whose vector width decides the panels.
    """

    def __init__(self, target: tvm.target.Target) -> None:
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return prune(_Packer(mod, self.target).run())


class _Packer(BindingRewriter):
    def __init__(self, mod: tvm.IRModule, target: tvm.target.Target) -> None:
        super().__init__(mod)
        self.target = target
        self._packed: dict[relax.Var, relax.Var] = {}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        if op_name(value) != "relax.cpu.layer":
            return self.get(value)
        config = layer_config_of(value)
        count = len(config.stages) + len(config.half_stages)
        weights = list(value.args[1 : 1 + count])
        values = self.static.all(weights)
        if config.packing is not None or values is None:
            return self.get(value)
        config, packed = pack_layer_weights(config, values, self.target)
        for weight, data in zip(weights, packed):
            if weight not in self._packed:
                name = self.name_of(weight) or f"{config.name}.weight"
                self._packed[weight] = self.fresh_param(f"{name}.packed", data)
        rest = [self.get(a) for a in value.args[1 + count :]]
        operands = [self.get(value.args[0]), *(self._packed[w] for w in weights), *rest]
        return cpu_layer(config, operands)
