"""FuseLayers: bias, residual addition and neuron move into the layer before them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import tvm
from tvm import relax

from ttsnn.lif_attrs import LifAttrs
from ttsnn.ops import lif_attrs_of
from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.layers.config import LayerConfig, LifConfig
from ttsnn.passes.layers.op import layer_call, layer_config_of
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.shapes import dims, known_dims, same_dims
from ttsnn.passes.static_values import op_name

__all__ = ["FuseLayers"]

RECOMPUTE_MACS = 32
"""A convolution of a static image that several readers want is computed again for its neuron
where an output costs at most this many multiply-accumulates for each timestep: writing and
reading it for every timestep takes longer."""


@dataclass(frozen=True)
class _Pending:
    """A layer that still may take more in; its operands are new expressions."""

    config: LayerConfig
    operands: tuple[relax.Expr, ...]


@tvm.transform.module_pass(opt_level=0, name="FuseLayers")
class FuseLayers(ModulePass):
    """One kernel for a convolution, what is added to it and the neuron that reads it.

    - ``add(layer, vector[Cout]) →`` layer with bias,
    - ``add(layer, tensor) →`` layer with residual (of two layers the larger takes the other in),
    - ``lif(layer) →`` layer with neuron, which emits spikes, and the membrane where something
      else reads the sum, and the last membrane where that is read; also through a broadcast of
      the layer over time, which then contracts once for all timesteps.

    Only where nothing else reads the layer's result before the addition. Neurons with tensor
    operands for decay or threshold stay apart.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return prune(_Fuser(mod).run())


class _Fuser(BindingRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._pending: dict[relax.Var, _Pending] = {}
        self._fused: dict[tuple[relax.Var, int], relax.Expr] = {}  # (neuron, index) → result
        self._neuron_of: dict[relax.Var, relax.Var] = {}
        self._item_reads: dict[tuple[relax.Var, int], int] = {}
        for var, value in self.bound.items():
            if op_name(value) == "relax.snn.lif" and isinstance(value.args[0], relax.Var):
                self._neuron_of.setdefault(value.args[0], var)
            if isinstance(value, relax.TupleGetItem):
                key = (value.tuple_value, value.index)
                self._item_reads[key] = self._item_reads.get(key, 0) + self.uses[var]

    # -- the walk ----------------------------------------------------------------------------

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        name = op_name(value)
        if (
            isinstance(value, relax.TupleGetItem)
            and (value.tuple_value, value.index) in self._fused
        ):
            return self._fused[value.tuple_value, value.index]
        if name == "relax.snn.layer":
            config = layer_config_of(value)
            if config.lif is None:
                operands = tuple(self.get(a) for a in value.args)
                self._pending[var] = _Pending(config, operands)
                return None
        if name == "relax.add":
            grown = self._add(value)
            if grown is not None:
                self._pending[var] = grown
                return None
        if name == "relax.broadcast_to" and var in self._neuron_of and self.uses[var] == 1:
            return None  # the neuron that reads it may do without
        if name == "relax.snn.lif":
            if (var, 0) not in self._fused:
                self._fuse_repeated(var, value)
            if (var, 0) in self._fused:
                return relax.Tuple([self._fused[var, 0], self._fused.get((var, 1), value.args[1])])
        return self.get(value)

    def materialise(self, var: relax.Var) -> relax.Expr:
        """Emit a layer, with its neuron where it has one that may move here."""
        if var not in self._pending:
            return self.emit(self.get(self.bound[var]), var.name)
        pending = self._pending[var]
        neuron = self._neuron_of.get(var)
        made = None if neuron is None else self._lif(neuron)
        if made is None:
            return self._emit_layer(pending)
        others = self.uses[var] > 1
        return self._with_neuron(pending, neuron, made, others)

    # -- what is added -----------------------------------------------------------------------

    def _add(self, call: relax.Call) -> _Pending | None:
        options = []
        for layer, other in (call.args, list(reversed(call.args))):
            if not isinstance(layer, relax.Var) or layer not in self._pending:
                continue
            if self.uses[layer] != 1 or self._pending[layer].config.residual:
                continue
            options.append((layer, other))
        options.sort(key=lambda o: -sum(map(stage_macs, self._pending[o[0]].config.stages)))
        for layer, other in options:
            grown = self._bias(self._pending[layer], other)
            if grown is None:
                grown = self._residual(self._pending[layer], layer, other, call)
            if grown is not None:
                return grown
        return None

    def _bias(self, pending: _Pending, other: relax.Expr) -> _Pending | None:
        channels = pending.config.stages[-1].out_channels
        value = self.static(other)
        if pending.config.bias or value is None or value.size != channels:
            return None
        if value.shape[-1] != channels:
            return None
        vector = self.get(other)
        if value.ndim != 1:
            vector = self.fresh_param(f"{pending.config.name}.bias_vector", value.reshape(channels))
        return _Pending(replace(pending.config, bias=True), (*pending.operands, vector))

    def _residual(
        self, pending: _Pending, layer: relax.Var, other: relax.Expr, call: relax.Call
    ) -> _Pending | None:
        if self.static(other) is not None or not isinstance(other.ty, relax.TensorType):
            return None
        want, mine, theirs = known_dims(call), known_dims(layer), dims(other)
        if (
            theirs is None
            or not same_dims(want[1:], mine[1:])
            or not same_dims(want[1:], theirs[1:])
        ):
            return None
        if len(theirs) != 5 or not all(isinstance(s, int) for s in (mine[0], theirs[0], want[0])):
            return None
        config, steps = pending.config, want[0]
        if config.half_stages and steps != config.T:
            return None
        config = replace(
            config,
            T=steps,
            timesteps=config.timesteps if config.half_stages else steps,
            residual=True,
            residual_T=theirs[0],
        )
        return _Pending(config, (*pending.operands, self.get(other)))

    # -- neurons -----------------------------------------------------------------------------

    def _lif(self, neuron: relax.Var) -> tuple[LifConfig, relax.Expr | None] | None:
        """Config and first membrane (None: zero) of a neuron that may move; else None."""
        call = self.bound[neuron]
        attrs = lif_attrs_of(call)
        if attrs.decay_operand or attrs.threshold_operand:
            return None
        v0 = call.args[1]
        value = self.static(v0)
        if op_name(self.definition(v0)) == "relax.zeros" or (value is not None and not value.any()):
            return _lif_config(attrs), None
        if v0 in self.bound and v0 not in self._remap:
            return None  # computed later than the place where the layer is wanted
        return _lif_config(attrs), self.get(v0)

    def _with_neuron(self, pending, neuron, made, others: bool) -> relax.Expr:
        """Emit a layer with its neuron; returns the membrane, or the spikes without one."""
        lif, v0 = made
        emit = ["membrane"] if others else []
        emit += ["spikes"]
        emit += ["v_last"] if self._item_reads.get((neuron, 1)) else []
        config = replace(pending.config, lif=lif, v0=v0 is not None, emit=tuple(emit))
        operands = (*pending.operands, *([] if v0 is None else [v0]))
        out = self._emit_layer(_Pending(config, operands))
        results = {
            name: out if len(emit) == 1 else self.emit(relax.TupleGetItem(out, i))
            for i, name in enumerate(emit)
        }
        self._fused[neuron, 0] = results["spikes"]
        if "v_last" in results:
            self._fused[neuron, 1] = results["v_last"]
        return results.get("membrane", results["spikes"])

    def _fuse_repeated(self, neuron: relax.Var, call: relax.Call) -> None:
        """``lif(layer)`` or ``lif(broadcast over time of a layer)``."""
        x = call.args[0]
        if x in self._pending:
            self.get(x)  # takes the first neuron that reads it in
            return
        repeat = self.definition(x)
        if repeat is None or op_name(repeat) != "relax.broadcast_to" or self.uses[x] != 1:
            return
        layer = repeat.args[0]
        pending = self._pending.get(layer) if isinstance(layer, relax.Var) else None
        steps = known_dims(x)[0]
        if pending is None or pending.config.T != 1:
            return
        made = self._lif(neuron)
        macs = sum(map(stage_macs, pending.config.stages))
        pixels = pending.config.stages[-1]
        outputs = pixels.out_size[0] * pixels.out_size[1] * pixels.out_channels
        if made is None or (self.uses[layer] > 1 and macs > RECOMPUTE_MACS * steps * outputs):
            return
        config = replace(pending.config, T=steps, timesteps=steps)
        if config.residual:
            config = replace(config, residual_T=1)
        self._with_neuron(replace(pending, config=config), neuron, made, others=False)

    def _emit_layer(self, pending: _Pending) -> relax.Var:
        config = pending.config
        if not config.residual:
            config = replace(config, residual_T=config.T)
        return self.emit(layer_call(config, list(pending.operands)))


def _lif_config(attrs: LifAttrs) -> LifConfig:
    names = LifConfig.__dataclass_fields__
    return LifConfig(**{n: getattr(attrs, n) for n in names})
