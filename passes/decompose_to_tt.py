"""DecomposeToTT: dense convolutions and linear layers become tensor-train operators."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.ops import tt_conv2d, tt_linear
from ttsnn.passes.layer_calls import LayerCall, layer_calls, network_steps
from ttsnn.passes.layer_infos import layer_infos
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.shapes import known_dims
from ttsnn.plans import LayerInfo, TTLayer, TTPlan, cores_of_layer

__all__ = ["DecomposeToTT"]


@tvm.transform.module_pass(opt_level=0, name="DecomposeToTT")
class DecomposeToTT(ModulePass):
    """Replace the layers that a plan names by tensor trains; a bias stays the add behind them.

    ``conv2d(x, W) → tt.conv2d(x, g1, g2, g3, g4)`` and ``matmul(x, Wᵀ) → tt.linear(x, cores…)``;
    the parameter ``layer.weight`` goes, ``layer.g1`` … or ``layer.cores.0`` … come, in the
    network's dtype. htt needs to see time: where T is folded into the batch, x [T·N, …] is
    reshaped to [T, N, …] around the operator; where the program calls the layer once a
    timestep, the k-th call gets the chain of timestep k.

    Args:
        plan: names, modes and ranks; checked against the program.
        init: ``"fit"`` approximates the dense weight, ``"fresh"`` draws cores for training.
        seed: of fresh cores.

    Raises:
        PlanError: the plan does not fit the program.
        PassError: htt of a layer that does not run on every timestep.
    """

    def __init__(self, plan: TTPlan, init: str = "fit", seed: int = 0) -> None:
        self.plan = plan
        self.init = init
        self.seed = seed

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        infos = layer_infos(mod)
        self.plan.check(infos, network_steps(mod))
        rewriter = _Decomposer(mod, self.plan)
        for info in infos:
            if info.name in self.plan.layers:
                rewriter.add_cores(info, self.init, self.seed)
        return prune(rewriter.run())


class _Decomposer(BindingRewriter):
    def __init__(self, mod: tvm.IRModule, plan: TTPlan) -> None:
        super().__init__(mod)
        self.plan = plan
        self.cores: dict[str, list[relax.Var]] = {}
        self._at: dict[relax.Var, tuple[LayerCall, int, int]] = {}
        for name, calls in layer_calls(mod).items():
            if name in plan.layers:
                self._at |= {c.var: (c, k, len(calls)) for k, c in enumerate(calls)}

    def add_cores(self, info: LayerInfo, init: str, seed: int) -> None:
        """Compute a layer's cores and make them parameters."""
        layer, weight = self.plan.layers[info.name], info.weight
        assert weight is not None  # layer_infos of a program has the values
        if layer.mode == "htt" and (info.steps != self.plan.T or info.calls not in (1, info.steps)):
            raise PassError(
                f"layer {info.name!r}: htt needs to see {self.plan.T} timesteps, but this layer "
                f"runs {info.steps} times per sample in {info.calls} calls; use mode 'ptt' for it"
            )
        cores = cores_of_layer(info.name, layer, weight, T=self.plan.T, init=init, seed=seed)
        self.cores[info.name] = [
            self.add_param(f"{info.name}.{key}", core.astype(weight.dtype))
            for key, core in cores.items()
        ]

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        if var not in self._at:
            return self.get(value)
        call, k, count = self._at[var]
        layer, cores = self.plan.layers[call.name], self.cores[call.name]
        x = self.emit(self.get(value.args[0]))
        if layer.kind == "linear":
            return tt_linear(x, *cores)
        if layer.mode == "htt":
            return self._htt(call, layer, x, k, count)
        return tt_conv2d(x, *cores, mode=layer.mode, **_geometry(value))

    def _htt(
        self, call: LayerCall, layer: TTLayer, x: relax.Expr, k: int, count: int
    ) -> relax.Expr:
        T, timesteps, cores = self.plan.T, layer.timesteps, self.cores[call.name]
        assert T is not None  # TTPlan asks for both
        assert timesteps is not None
        lead, *image = known_dims(call.call.args[0])
        geometry = _geometry(call.call)
        if count > 1 and k < timesteps:  # one step in full needs no time axis
            return tt_conv2d(x, *cores, mode="ptt", **geometry)
        if count > 1:
            shape, timesteps = [1, lead, *image], 0
        else:
            shape = [T, _divided(lead, T), *image]
        x = self.emit(relax.op.reshape(x, shape))
        y = self.emit(tt_conv2d(x, *cores, mode="htt", timesteps=timesteps, **geometry))
        return relax.op.reshape(y, [lead, *known_dims(call.call)[1:]])


def _geometry(conv: relax.Call) -> dict[str, Any]:
    """Strides, padding and dilation of a convolution."""
    keys = ("strides", "padding", "dilation")
    return {key: [int(v) for v in getattr(conv.attrs, key)] for key in keys}


def _divided(size: Any, count: int) -> Any:
    if isinstance(size, int):
        return size // count
    return tvm.sym.Analyzer().simplify(tvm.tirx.floordiv(size, count))
