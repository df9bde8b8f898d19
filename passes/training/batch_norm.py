"""TrainingBatchNorm: batch norms of an eval-mode program learn from the batch."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.ops.batch_norm import batch_norm_train
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.static_values import op_name
from ttsnn.passes.training.graph import Emitter, Graph, fresh_vars, require_static
from ttsnn.program import layer_name, param_names

__all__ = ["BATCH_NORM", "BatchNormInfo", "TrainingBatchNorm", "batch_norm_info"]

BATCH_NORM = "ttsnn.batch_norm"
"""Module attribute that the pass leaves: JSON of :class:`BatchNormInfo`'s fields."""

_OP = "relax.nn.batch_norm"


class BatchNormInfo:
    """What :class:`TrainingBatchNorm` did.

    Attributes:
        layers: one entry a batch norm layer: ``name``, ``momentum``, ``epsilon``, ``calls`` (in
            one forward), ``frozen``, ``running_mean`` and ``running_var`` (parameter names).
        updates: parameter name of a running statistic → index of its new value among the
            results of ``main``.
    """

    def __init__(self, layers: list[dict[str, Any]], updates: dict[str, int]) -> None:
        self.layers = layers
        self.updates = updates

    def attach(self, mod: tvm.IRModule) -> tvm.IRModule:
        """The module with this as its attribute."""
        return mod.with_attr(
            BATCH_NORM, json.dumps({"layers": self.layers, "updates": self.updates})
        )

    def statistics(self) -> set[str]:
        """Parameter names of all running statistics, frozen ones too."""
        return {n for la in self.layers for n in (la["running_mean"], la["running_var"])}


def batch_norm_info(mod: tvm.IRModule) -> BatchNormInfo:
    """What :class:`TrainingBatchNorm` left on a module; empty where it did not run."""
    if mod.attrs is None or BATCH_NORM not in mod.attrs:
        return BatchNormInfo([], {})
    data = json.loads(str(mod.attrs[BATCH_NORM]))
    return BatchNormInfo(data["layers"], data["updates"])


@tvm.transform.module_pass(opt_level=0, name="TrainingBatchNorm")
class TrainingBatchNorm(ModulePass):
    """``nn.batch_norm`` on running statistics → ``snn.batch_norm_train`` on those of the batch.

    Momentum and epsilon are the layer's, from the imported call. New running statistics are
    appended to the results of ``main``, mean and variance a layer, in the layers' order; a layer
    that runs several times updates them each time, as PyTorch does. A frozen layer becomes
    arithmetic on its running statistics, through which gradients to its input, weight and bias
    flow.

    Args:
        frozen: True for all layers, or the names of layers that keep their statistics.
        momentum: replaces the layers' own momentum.

    Raises:
        PassError: symbolic sizes; one value a channel; a layer without its own running
            statistics; a cumulative average (``momentum=None`` in PyTorch), unless ``momentum``
            is given; an unknown name in ``frozen``.
    """

    def __init__(
        self, frozen: bool | Collection[str] = False, *, momentum: float | None = None
    ) -> None:
        self.frozen = frozen
        self.momentum = momentum

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        require_static(mod["main"])
        return _Rewrite(mod, self.frozen, self.momentum).run()


class _Rewrite:
    def __init__(
        self, mod: tvm.IRModule, frozen: bool | Collection[str], momentum: float | None
    ) -> None:
        self.mod = mod
        self.frozen = frozen
        self.momentum = momentum
        self.main = mod["main"]
        self.graph = Graph.of(self.main)
        self.names = param_names(mod)
        self.layers: dict[str, dict[str, Any]] = {}
        self.new_stats: dict[str, relax.Expr] = {}
        env = fresh_vars(self.main.params)
        self.e = Emitter("main", list(env.values()), env)

    def run(self) -> tvm.IRModule:
        func = self.e.build(self._body, dict(self.main.attrs or {}))
        self._check_frozen()
        out = tvm.IRModule({"main": func}, attrs=self.mod.attrs)
        count = len(self.graph.results)
        updates = {name: count + i for i, name in enumerate(self.new_stats)}
        return BatchNormInfo(list(self.layers.values()), updates).attach(out)

    def _body(self) -> list[relax.Expr]:
        e, graph = self.e, self.graph
        for var in graph.needed(graph.results):
            value = graph.bindings[var]
            if op_name(value) == _OP:
                e.env[var] = self._batch_norm(var, value)
            else:
                e.env[var] = e.emit(e.get(value), var.name)
        return [*(e.get(r) for r in graph.results), *self.new_stats.values()]

    def _batch_norm(self, var: relax.Var, call: relax.Call) -> relax.Expr:
        x, gamma, beta, mean, var_ = call.args
        mean_name, var_name = self.names.get(mean), self.names.get(var_)
        if mean_name is None or var_name is None:
            raise PassError(
                f"TrainingBatchNorm: {var.name} has no running statistics of its own among the "
                "parameters; build it with track_running_stats=True"
            )
        name = layer_name(mean_name)
        axis, epsilon = int(call.attrs.axis), float(call.attrs.epsilon)
        momentum = float(call.attrs.momentum) if self.momentum is None else self.momentum
        frozen = self.frozen if isinstance(self.frozen, bool) else name in self.frozen
        entry = {
            "name": name,
            "momentum": momentum,
            "epsilon": epsilon,
            "calls": 0,
            "frozen": frozen,
            "running_mean": mean_name,
            "running_var": var_name,
        }
        self.layers.setdefault(name, entry)["calls"] += 1
        operands = [self.e.get(a) for a in (x, gamma, beta)]
        if frozen:
            return self._on_running(operands, [self.e.get(mean), self.e.get(var_)], axis, epsilon)
        if momentum == 0.0 and self.momentum is None:
            raise PassError(
                f"TrainingBatchNorm: layer {name!r} has momentum None or 0: a cumulative average "
                "is not supported; give the layer a momentum, or pass one to this pass"
            )
        old = [
            self.new_stats.get(n, self.e.get(v)) for n, v in ((mean_name, mean), (var_name, var_))
        ]
        try:
            new = batch_norm_train(*operands, *old, axis=axis, epsilon=epsilon, momentum=momentum)
        except PassError as error:
            raise PassError(f"layer {name!r}: {error}") from None
        out = self.e.emit(new, var.name)
        for i, stat in enumerate((mean_name, var_name), start=1):
            self.new_stats[stat] = self.e.emit(relax.TupleGetItem(out, i))
        return out

    def _on_running(
        self, operands: list[relax.Expr], stats: list[relax.Expr], axis: int, epsilon: float
    ) -> relax.Expr:
        """``x · scale + (beta - mean · scale)`` with ``scale = gamma / √(var + epsilon)``."""
        (x, gamma, beta), (mean, var) = operands, stats
        dtype, bb = str(x.ty.dtype), self.e.bb
        shape = [x.ty.shape.values[axis], *[1] * (x.ty.ndim - 1 - axis)]
        std = bb.emit(relax.op.sqrt(bb.emit(relax.op.add(var, relax.const(epsilon, dtype)))))
        scale = bb.emit(relax.op.divide(gamma, std))
        shift = bb.emit(relax.op.subtract(beta, bb.emit(relax.op.multiply(mean, scale))))
        scale, shift = (bb.emit(relax.op.reshape(v, shape)) for v in (scale, shift))
        y = bb.emit(relax.op.add(bb.emit(relax.op.multiply(x, scale)), shift))
        return bb.emit(relax.Tuple([y, mean, var]))

    def _check_frozen(self) -> None:
        if isinstance(self.frozen, bool):
            return
        missing = [n for n in self.frozen if n not in self.layers]
        if missing:
            raise PassError(
                f"TrainingBatchNorm: no batch norm is called {', '.join(map(repr, missing))}; "
                f"there are {', '.join(self.layers) or 'none'}"
            )
