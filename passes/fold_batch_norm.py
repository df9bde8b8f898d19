"""FoldBatchNorm: batch norm in inference becomes part of the layer before it."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.shapes import dims, same_dims
from ttsnn.passes.static_values import op_name
from ttsnn.program import layer_name

__all__ = ["FoldBatchNorm"]

# operator → (index of the weight operand, axis of its output channels)
_FOLDABLE = {"relax.nn.conv2d": (1, 0), "relax.tt.conv2d": (4, 0), "relax.matmul": (1, 1)}


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm(ModulePass):
    """Fold evaluation-mode batch norm into the layer before it.

    ``batch_norm(conv(x, w) [+ b]) → conv(x, k·w) + (k·b + β − k·μ)`` with ``k = γ/√(σ² + ε)``
    for each output channel, for ``conv2d``, ``tt.conv2d`` (the last core is scaled), and
    ``matmul`` by a parameter, also through reshapes that merge or split the leading (time,
    batch) axes, where nothing else reads the layer's output. Any other batch norm becomes
    ``k·x + (β − k·μ)``. The arithmetic is in float64, rounded once. Statistics or weights that
    are not parameters are left alone.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return prune(_Folder(mod).run())


class _Folder(BindingRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._folded: dict[relax.Var, relax.Expr] = {}
        self._made: dict[tuple, relax.Var] = {}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in self._folded:
            norm = self.bound[value.tuple_value]
            # the running statistics come out of batch_norm as they went in
            return (
                self._folded[value.tuple_value] if value.index == 0 else norm.args[2 + value.index]
            )
        if op_name(value) == "relax.nn.batch_norm" and not bool(value.attrs.training):
            stats = [self.static(a) for a in value.args[1:]]
            if all(s is not None for s in stats):
                self._folded[var] = self._fold(value, *stats)
                # nothing reads the original tuple as a whole but its items, handled above
                return relax.Tuple([self._folded[var], *value.args[3:5]])
        return self.get(value)

    def _fold(self, norm: relax.Call, gamma, beta, mean, var) -> relax.Expr:
        wide = [np.asarray(s, np.float64) for s in (gamma, beta, mean, var)]
        gamma, beta, mean, var = wide
        attrs = norm.attrs
        scale = 1 / np.sqrt(var + float(attrs.epsilon))
        if bool(attrs.scale):
            scale = scale * gamma
        shift = -mean * scale + (beta if bool(attrs.center) else 0.0)
        axis = int(attrs.axis) % int(norm.args[0].ty.ndim)
        folded = self._into_layer(norm, scale, shift, axis)
        return self._apart(norm, scale, shift, axis) if folded is None else folded

    def _key(self, norm: relax.Call) -> tuple:
        return tuple(norm.args[1:5])

    def _param(self, key: tuple, name: str, value: np.ndarray, dtype: str) -> relax.Var:
        """One parameter for each (layer, batch norm), however many times they are called."""
        if key not in self._made:
            self._made[key] = self.fresh_param(name, value.astype(dtype))
        return self._made[key]

    def _into_layer(self, norm, scale, shift, axis) -> relax.Expr | None:
        ndim = int(norm.args[0].ty.ndim)
        chain: list[relax.Expr] = []  # from the layer's output to the batch norm's input
        bias = np.zeros_like(shift)
        var, expr = norm.args[0], self.definition(norm.args[0])
        while expr is not None and self.uses[var] == 1 and op_name(expr) not in _FOLDABLE:
            name = op_name(expr)
            if name == "relax.reshape" and _same_tail(expr, axis - ndim):
                chain.append(expr)
                var = expr.args[0]
            elif name == "relax.add":
                split = self._split_bias(expr, len(shift), axis - ndim)
                if split is None:
                    return None
                var, extra = split
                bias = bias + extra
            else:
                return None
            expr = self.definition(var)
        if expr is None or self.uses[var] != 1 or not self._channel_axis_fits(expr, axis - ndim):
            return None
        where, out_axis = _FOLDABLE[op_name(expr)]
        weight = self.static(expr.args[where])
        if weight is None:
            return None
        owner = self.owner(expr.args[where])
        key = (expr.args[where], *self._key(norm))
        along = [1] * weight.ndim
        along[out_axis] = -1
        dtype = str(norm.args[0].ty.dtype)
        new_weight = self._param(
            (*key, "w"), f"{owner}.weight_folded", weight * scale.reshape(along), dtype
        )
        tail = (-1,) + (1,) * (ndim - 1 - axis)
        new_bias = self._param(
            (*key, bias.tobytes(), "b"),
            f"{owner}.bias_folded",
            (bias * scale + shift).reshape(tail),
            dtype,
        )
        args = [self.get(a) for a in expr.args]
        args[where] = new_weight
        out = self.emit(relax.Call(expr.op, args, expr.attrs, expr.ty_args))
        out = self.emit(relax.op.add(out, new_bias))
        for reshape in reversed(chain):
            out = self.emit(relax.op.reshape(out, reshape.args[1]))
        return out

    def _apart(self, norm, scale, shift, axis) -> relax.Expr:
        x = norm.args[0]
        dtype = str(x.ty.dtype)
        tail = (-1,) + (1,) * (int(x.ty.ndim) - 1 - axis)
        owner = layer_name(self.name_of(norm.args[1]) or "batch_norm.weight")
        k = self._param((*self._key(norm), "scale"), f"{owner}.scale", scale.reshape(tail), dtype)
        b = self._param((*self._key(norm), "shift"), f"{owner}.shift", shift.reshape(tail), dtype)
        return self.emit(relax.op.add(self.emit(relax.op.multiply(self.get(x), k)), b))

    def _channel_axis_fits(self, layer: relax.Call, axis_from_end: int) -> bool:
        if op_name(layer) == "relax.matmul":
            return axis_from_end == -1 and int(layer.args[1].ty.ndim) == 2
        if op_name(layer) == "relax.nn.conv2d" and str(layer.attrs.out_layout) != "NCHW":
            return False
        return axis_from_end == -3

    def _split_bias(self, add, channels, axis_from_end):
        """``add(y, b)`` with b of one value a channel → (y, b as a vector)."""
        for y, b in (add.args, reversed(add.args)):
            value = self.static(b)
            if value is None or self.static(y) is not None:
                continue
            want = (channels,) + (1,) * (-axis_from_end - 1)
            core = value.shape
            while len(core) > len(want) and core[0] == 1:
                core = core[1:]
            if core == want:
                return y, value.astype(np.float64).reshape(channels)
        return None


def _same_tail(reshape: relax.Call, axis_from_end: int) -> bool:
    """Whether a reshape keeps the channel axis and all after it, and no other axis is touched."""
    before, after = dims(reshape.args[0]), dims(reshape)
    return (
        before is not None
        and after is not None
        and min(len(before), len(after)) >= -axis_from_end
        and same_dims(before[axis_from_end:], after[axis_from_end:])
    )
