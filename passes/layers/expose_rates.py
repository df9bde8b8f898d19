"""ExposeRates: how often the inputs of layers spike, as results of ``main``."""

from __future__ import annotations

import tvm
from tvm import relax

from ttsnn.passes.expose_spikes import extend_meta, extended_result
from ttsnn.passes.layers.op import layer_config_of
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter
from ttsnn.passes.static_values import op_name

__all__ = ["RATE", "ExposeRates"]

RATE = "rate "
"""The results' names are this and the layer's name."""


@tvm.transform.module_pass(opt_level=0, name="ExposeRates")
class ExposeRates(ModulePass):
    """Append the share of ones in the input of every layer that reads spikes as bytes.

    ``main → y`` becomes ``main → (y, rate …)``, each a float64 scalar; after ``ByteSpikes``.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        exposer = _Exposer(mod)
        out = exposer.run()
        return extend_meta(out, exposer.rates)


class _Exposer(BindingRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.rates: list[tuple[str, relax.Var]] = []

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        new = self.get(value)
        if op_name(value) == "relax.snn.layer":
            config = layer_config_of(value)
            if config.byte_x:
                rate = self.emit(relax.op.mean(relax.op.astype(new.args[0], "float64")))
                self.rates.append((RATE + config.name, self.builder_.emit_output(rate)))
        return new

    def result(self, expr: relax.Expr) -> relax.Expr:
        return extended_result(self.get(expr), [v for _, v in self.rates])
