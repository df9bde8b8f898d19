"""ExposeSpikes: every neuron's spikes become results of ``main``."""

from __future__ import annotations

import json

import tvm
from tvm import relax

from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter
from ttsnn.passes.static_values import op_name

__all__ = ["ExposeSpikes", "extend_meta", "extended_result"]


@tvm.transform.module_pass(opt_level=0, name="ExposeSpikes")
class ExposeSpikes(ModulePass):
    """Append the spikes [T, N, …] of every ``snn.lif`` to the results, in execution order.

    ``main → y`` becomes ``main → (y, spikes_0, spikes_1, …)``; a tuple of results is extended.
    For comparing two compilations, or a compilation with PyTorch, neuron by neuron.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        exposer = _Exposer(mod)
        out = exposer.run()
        names = [f"spikes_{i}" for i in range(len(exposer.spikes))]
        return extend_meta(out, list(zip(names, exposer.spikes)))


class _Exposer(BindingRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.spikes: list[relax.Var] = []

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        new = self.get(value)
        if op_name(value) == "relax.snn.lif":
            new = self.emit(new, var.name)
            name = f"spikes_{len(self.spikes)}"
            self.spikes.append(self.builder_.emit_output(relax.TupleGetItem(new, 0), name))
        return new

    def result(self, expr: relax.Expr) -> relax.Expr:
        return extended_result(self.get(expr), self.spikes)


def extended_result(expr: relax.Expr, more: list[relax.Var]) -> relax.Expr:
    """A result of ``main`` as a tuple with more behind it; the same where there is no more."""
    if not more:
        return expr
    fields = expr.fields if isinstance(expr, relax.Tuple) else [expr]
    if not isinstance(expr, relax.Tuple) and isinstance(expr.ty, relax.TupleType):
        fields = [relax.TupleGetItem(expr, i) for i in range(len(expr.ty.fields))]
    return relax.Tuple([*fields, *more])


def extend_meta(mod: tvm.IRModule, named: list[tuple[str, relax.Var]]) -> tvm.IRModule:
    """Append the specs of new results to ``outputs`` of the attribute ``ttsnn.meta``."""
    if not named or mod.attrs is None or "ttsnn.meta" not in mod.attrs:
        return mod
    meta = json.loads(str(mod.attrs["ttsnn.meta"]))
    for name, var in named:
        shape = [int(d) if isinstance(d, tvm.tirx.IntImm) else str(d) for d in var.ty.shape.values]
        spec = {"name": name, "shape": shape, "dtype": str(var.ty.dtype)}
        meta.setdefault("outputs", []).append(spec)
    return mod.with_attr("ttsnn.meta", json.dumps(meta))
