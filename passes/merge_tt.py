"""MergeTT: tensor trains become the dense layers that they equal."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.ops import tt_conv_attrs_of
from ttsnn.passes.layer_calls import LayerCall, layer_calls
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.shapes import known_dims, product
from ttsnn.tt import ConvCores, check_mode, reconstruct_conv, reconstruct_linear

__all__ = ["MergeTT"]


@tvm.transform.module_pass(opt_level=0, name="MergeTT")
class MergeTT(ModulePass):
    """Multiply the cores of every tensor train out; exact up to one rounding of the weight.

    ``tt.conv2d → conv2d`` with the weight ``layer.weight``; htt has a weight for each kind of
    timestep: the time axis is split, the other steps run a 1×1 convolution with
    ``layer.weight_half``, and the results are concatenated. ``tt.linear → matmul``. A time axis
    is folded into the batch around the convolution.

    Raises:
        PassError: cores that are no parameters.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return prune(_Merger(mod).run())


class _Merger(BindingRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._at: dict[relax.Var, LayerCall] = {
            c.var: c
            for calls in layer_calls(mod).values()
            for c in calls
            if c.kind.startswith("tt.")
        }
        self._made: dict[tuple, relax.Var] = {}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        if var not in self._at:
            return self.get(value)
        call = self._at[var]
        x = self.emit(self.get(value.args[0]))
        if call.kind == "tt.linear":
            weight = self._dense(call, "weight", lambda cores: reconstruct_linear(cores))
            return relax.op.matmul(x, self.emit(relax.op.permute_dims(weight)))
        return self._convolution(call, x)

    def _dense(self, call: LayerCall, suffix: str, merge) -> relax.Var:
        """The merged weight as a parameter; one for all calls of the same cores."""
        key = (tuple(call.call.args[1:]), suffix)
        if key not in self._made:
            cores = self.static.all(call.call.args[1:])
            if cores is None:
                raise PassError(
                    f"layer {call.name!r}: {call.call.op.name} has cores that are computed at run "
                    "time and cannot be merged; merge before training passes"
                )
            dtype = cores[0].dtype
            weight = merge([np.asarray(c, np.float64) for c in cores]).astype(dtype)
            self._made[key] = self.fresh_param(f"{call.name}.{suffix}", weight)
        return self._made[key]

    def _convolution(self, call: LayerCall, x: relax.Var) -> relax.Expr:
        attrs = tt_conv_attrs_of(call.call)
        mode = check_mode(attrs.mode)
        geometry = {
            "strides": list(attrs.strides),
            "padding": list(attrs.padding),
            "dilation": list(attrs.dilation),
        }
        in_shape, out_shape = known_dims(call.call.args[0]), known_dims(call.call)

        def full(y: relax.Var) -> relax.Expr:
            weight = self._dense(call, "weight", lambda g: reconstruct_conv(ConvCores(*g), mode))
            return relax.op.nn.conv2d(y, weight, **geometry)

        if len(in_shape) == 4:
            return full(x)
        steps = int(in_shape[0])
        count = steps if mode != "htt" or attrs.timesteps < 0 else min(attrs.timesteps, steps)
        batch = in_shape[1]
        if count == steps or count == 0:
            parts = [(x, steps)]
        else:
            split = self.emit(relax.op.split(x, [count], axis=0))
            pieces = [self.emit(relax.TupleGetItem(split, i)) for i in (0, 1)]
            parts = [(pieces[0], count), (pieces[1], steps - count)]
        results = []
        for i, (part, t) in enumerate(parts):
            folded = self.emit(relax.op.reshape(part, [product([t, batch]), *in_shape[2:]]))
            half = count == 0 or i == 1
            y = self.emit(self._half(call, folded, geometry) if half else full(folded))
            results.append(self.emit(relax.op.reshape(y, [t, *out_shape[1:]])))
        return results[0] if len(results) == 1 else relax.op.concat(results, axis=0)

    def _half(self, call: LayerCall, x: relax.Var, geometry: dict) -> relax.Expr:
        """htt's other steps. With the usual padding, which centres the kernel, a 1×1 convolution;
        with any other, the kernel with nothing but its centre tap."""
        kernel = [int(g.ty.shape.values[2]) for g in call.call.args[2:4]]
        centred = [d * (k // 2) for d, k in zip(geometry["dilation"], kernel)]
        if geometry["padding"] == [*centred, *centred]:
            weight = self._dense(call, "weight_half", lambda g: (g[3] @ g[0])[:, :, None, None])
            return relax.op.nn.conv2d(x, weight, strides=geometry["strides"])
        weight = self._dense(
            call, "weight_half", lambda g: reconstruct_conv(ConvCores(*g), "htt", full=False)
        )
        return relax.op.nn.conv2d(x, weight, **geometry)
