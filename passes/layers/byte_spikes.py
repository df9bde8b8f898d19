"""ByteSpikes: spikes travel between layers as bytes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import tvm
from tvm import relax

from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.layers.op import layer_call, layer_config_of
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, bindings_of, prune
from ttsnn.passes.static_values import op_name

__all__ = ["ByteSpikes"]

_CARRIERS = {"relax.reshape", "relax.nn.max_pool2d"}
"""Operators that take bytes as they take numbers: the result is spikes too."""


@tvm.transform.module_pass(opt_level=0, name="ByteSpikes")
class ByteSpikes(ModulePass):
    """Layers hand spikes on as uint8 where another layer's convolution reads them.

    A quarter of the memory traffic of float32; the membrane and residual streams stay numbers.
    Also through a reshape or a max-pool between the two. Other readers get numbers by a cast;
    where a layer adds the spikes as its residual, or nobody convolves them, they stay numbers.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return prune(_Rewriter(mod).run())


class _Rewriter(BindingRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._readers = _readers(mod["main"])
        self._bytes: dict[relax.Var, relax.Var] = {}  # original spikes → the same as bytes

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if op_name(value) == "relax.snn.layer":
            return self._layer(var, value)
        source = value.tuple_value if isinstance(value, relax.TupleGetItem) else None
        if source in self.bound and op_name(self.bound[source]) == "relax.snn.layer":
            config = layer_config_of(self.bound[source])
            if config.emit[value.index] == "spikes" and self._byte_spikes(source, config):
                self._bytes[var] = self.emit(self.get(value))
                return None
        if op_name(value) in _CARRIERS and value.args[0] in self._bytes and self._convolved(var):
            moved = [self._bytes[value.args[0]], *value.args[1:]]
            self._bytes[var] = self.emit(relax.Call(value.op, moved, value.attrs, value.ty_args))
            return None
        return self.get(value)

    def materialise(self, var: relax.Var) -> relax.Expr:
        """Spikes as numbers, for those that cannot read bytes."""
        return self.emit(relax.op.astype(self._bytes[var], str(var.ty.dtype)))

    def _layer(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        config, x = layer_config_of(call), call.args[0]
        takes, gives = x in self._bytes, self._byte_spikes(var, config)
        if not takes and not gives:
            return self.get(call)
        config = replace(config, byte_x=takes, byte_spikes=gives)
        first = self._bytes[x] if takes else self.get(x)
        out = layer_call(config, [first, *map(self.get, call.args[1:])])
        if not gives or len(config.emit) > 1:
            return out
        self._bytes[var] = self.emit(out)
        return None

    def _byte_spikes(self, layer: relax.Var, config: LayerConfig) -> bool:
        if "spikes" not in config.emit:
            return False
        if len(config.emit) == 1:
            return self._convolved(layer)
        index = config.emit.index("spikes")
        items = [v for v, e in self._readers[layer] if isinstance(e, relax.TupleGetItem)]
        if len(items) < len(self._readers[layer]):
            return False  # someone takes the tuple as a whole
        return any(self._convolved(v) for v in items if self.bound[v].index == index)

    def _convolved(self, spikes: relax.Var) -> bool:
        """Whether a layer's convolution reads the spikes, and no layer needs them as numbers."""
        found = False
        for reader, expr in self._readers[spikes]:
            if op_name(expr) == "relax.snn.layer":
                if any(a.same_as(spikes) for a in expr.args[1:]):
                    return False
                found = True
            elif op_name(expr) in _CARRIERS and self._convolved(reader):
                found = True
        return found


def _readers(main: relax.Function) -> dict[relax.Var, list[tuple[relax.Var | None, relax.Expr]]]:
    """Variable → (bound variable, expression) of the bindings that read it; results: (None, …)."""
    out = defaultdict(list)

    def read(by: relax.Var | None, whole: relax.Expr, expr: relax.Expr) -> None:
        if isinstance(expr, relax.Var):
            out[expr].append((by, whole))
        elif isinstance(expr, relax.Call | relax.Tuple):
            for part in expr.args if isinstance(expr, relax.Call) else expr.fields:
                read(by, whole, part)
        elif isinstance(expr, relax.TupleGetItem):
            read(by, whole, expr.tuple_value)

    for var, value in bindings_of(main).items():
        read(var, value, value)
    read(None, main.body.body, main.body.body)
    return out
