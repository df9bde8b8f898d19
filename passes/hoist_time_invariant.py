"""HoistTimeInvariant: work that does not change with time is done once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import tvm
from tvm import relax

from ttsnn.ops.batch_norm import BATCH_NORM_TRAIN, batch_norm_train
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.shapes import dims, known_dims, product, same, same_dims
from ttsnn.passes.static_values import op_name

__all__ = ["HoistTimeInvariant"]

_UNARY = {
    f"relax.{n}"
    for n in [
        "nn.relu",
        "nn.leakyrelu",
        "nn.gelu",
        "nn.silu",
        "sigmoid",
        "tanh",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "abs",
        "negative",
        "square",
        "clip",
        "astype",
        "floor",
        "ceil",
        "round",
        "sign",
    ]
}
_BINARY = {
    f"relax.{n}"
    for n in [
        "add",
        "subtract",
        "multiply",
        "divide",
        "maximum",
        "minimum",
        "power",
        "greater",
        "greater_equal",
        "less",
        "less_equal",
        "equal",
        "not_equal",
    ]
}
# first operand [batch, C, H, W]; the others do not depend on the batch
_PER_IMAGE = {
    f"relax.nn.{n}"
    for n in (
        [
            "conv2d",
            "max_pool2d",
            "avg_pool2d",
            "adaptive_avg_pool2d",
            "adaptive_max_pool2d",
            "batch_norm",
        ]
    )
}
_LINEAR = {"relax.matmul", "relax.tt.linear"}
_REDUCTIONS = {"relax.mean", "relax.sum", "relax.max", "relax.min"}


@dataclass(frozen=True)
class _Constant:
    """A value that is ``base`` [N, …] repeated over T.

    Its shape is [T, N, …], or [T·N, …] where it is folded.
    """

    base: relax.Expr
    steps: int
    folded: bool


@tvm.transform.module_pass(opt_level=0, name="HoistTimeInvariant")
class HoistTimeInvariant(ModulePass):
    """Sink the repetition of a static image over time below all that carries no state.

    ``f(broadcast_to(x, [T, N, …])) → broadcast_to(f(x), [T, N, …])`` for convolutions, pools,
    elementwise operators with operands that do not change with time, products with a
    parameter, reductions over other axes, and reshapes that fold time into the batch or back;
    so a stem runs once instead of T times. The broadcast stays where something needs time: a
    neuron, an addition with a value that changes, ``htt`` layers. Repetitions written as
    ``broadcast_to``, ``tile`` or ``stack`` of one tensor are seen. A batch norm on the batch's
    statistics is told how many copies its input stands for.

    Args:
        prune: remove what nothing reads afterwards, parameters too.
    """

    def __init__(self, prune: bool = True) -> None:
        self.prune = prune

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        new = _Hoister(mod).run()
        return prune(new) if self.prune else new


class _Hoister(BindingRewriter):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self._constant: dict[relax.Var, _Constant] = {}
        self._norms: dict[relax.Var, tuple[relax.Var, _Constant]] = {}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if op_name(value) == BATCH_NORM_TRAIN:
            return self._batch_norm(var, value)
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in self._norms:
            norm, x = self._norms[value.tuple_value]
            item = self.emit(relax.TupleGetItem(norm, value.index))
            if value.index != 0:
                return item  # statistics
            self._constant[var] = replace(x, base=item)
            return None
        found = self._repetition(value) or self._hoist(value)
        if found is None:
            return self.get(value)
        self._constant[var] = found
        return None

    def materialise(self, var: relax.Var) -> relax.Expr:
        found = self._constant[var]
        wide = self.emit(relax.op.expand_dims(found.base, 0))
        sizes = [found.steps, *known_dims(found.base)]
        out = self.emit(relax.op.broadcast_to(wide, relax.ShapeExpr(sizes)))
        return self.emit(relax.op.reshape(out, self.bound[var].ty.shape)) if found.folded else out

    # -- where it begins ---------------------------------------------------------------------

    def _repetition(self, value: relax.Expr) -> _Constant | None:
        name, after = op_name(value), dims(value)
        if name == "relax.stack" and after is not None and int(value.attrs.axis) == 0:
            fields = value.args[0].fields if isinstance(value.args[0], relax.Tuple) else []
            if len(fields) > 1 and all(f.same_as(fields[0]) for f in fields):
                return _Constant(self.emit(self.get(fields[0])), len(fields), False)
        if name not in ("relax.broadcast_to", "relax.tile") or after is None or len(after) < 2:
            return None
        x = value.args[0]
        before = dims(x)
        if before is None or not isinstance(after[0], int) or after[0] == 1 or x in self._constant:
            return None
        new = self.emit(self.get(x))
        if same_dims(before, after[1:]):
            return _Constant(new, after[0], False)
        if len(before) == len(after) and same_dims(before, [1, *after[1:]]):
            made = self.definition(x)
            if made is not None and op_name(made) == "relax.expand_dims":
                (narrow,) = made.args
                if same_dims(known_dims(narrow), after[1:]):
                    return _Constant(self.emit(self.get(narrow)), after[0], False)
            base = self.emit(relax.op.reshape(new, relax.ShapeExpr(after[1:])))
            return _Constant(base, after[0], False)
        return None

    # -- how far it goes ---------------------------------------------------------------------

    def _hoist(self, value: relax.Expr) -> _Constant | None:
        if isinstance(value, relax.Var):
            return self._constant.get(value)
        if not isinstance(value, relax.Call) or not value.args:
            return None
        found = self._constant.get(value.args[0]) if isinstance(value.args[0], relax.Var) else None
        name = op_name(value)
        if name in _BINARY:
            return self._binary(value)
        if found is None:
            return None
        if name == "relax.reshape":
            return self._reshape(value, found)
        if name == "relax.tt.conv2d":
            # htt treats timesteps differently, so its input's repetition has to stay
            fits = str(value.attrs["mode"]) != "htt"
        elif name in _LINEAR:
            fits = int(value.args[0].ty.ndim) >= 2 + (not found.folded) and not any(
                a in self._constant for a in value.args[1:]
            )
            fits = fits and (name != "relax.matmul" or int(value.args[1].ty.ndim) == 2)
        elif name in _REDUCTIONS:
            return self._reduction(value, found)
        else:
            fits = name in _UNARY or (name in _PER_IMAGE and found.folded)
            fits = fits and isinstance(value.ty, relax.TensorType)
        if not fits:
            return None
        args = [found.base, *(self.get(a) for a in value.args[1:])]
        return self._made(relax.Call(value.op, args, value.attrs, value.ty_args), found)

    def _batch_norm(self, var: relax.Var, value: relax.Call) -> relax.Expr:
        x, *channels = value.args
        found, attrs = self._constant.get(x), value.attrs
        if found is None or not found.folded:
            return self.get(value)
        new = batch_norm_train(
            found.base,
            *(self.get(a) for a in channels),
            axis=int(attrs["axis"]),
            epsilon=float(attrs["epsilon"]),
            momentum=float(attrs["momentum"]),
            repeats=int(attrs["repeats"]) * found.steps,
        )
        norm = self.emit(new)
        self._norms[var] = norm, found
        return norm

    def _made(self, call: relax.Expr, found: _Constant) -> _Constant:
        return _Constant(self.emit(call), found.steps, found.folded)

    def _binary(self, value: relax.Call) -> _Constant | None:
        known = [self._constant.get(a) if isinstance(a, relax.Var) else None for a in value.args]
        found = next((k for k in known if k is not None), None)
        if found is None or not same_dims(dims(value) or [], self._dims(value.args, known) or [0]):
            return None
        args = []
        for arg, k in zip(value.args, known):
            if k is not None:
                if k.steps != found.steps or k.folded != found.folded:
                    return None
                args.append(k.base)
                continue
            sizes = dims(arg)
            if sizes is None:
                return None
            full = len(sizes) == int(value.ty.ndim)
            if full and sizes[0] != 1:
                return None  # changes with time (or with the folded time and batch)
            new = self.get(arg)
            if full and not found.folded:
                new = self.emit(relax.op.reshape(new, relax.ShapeExpr(sizes[1:])))
            args.append(new)
        return self._made(relax.Call(value.op, args, value.attrs, value.ty_args), found)

    @staticmethod
    def _dims(args, known):
        """Shape of the repeated operand: the result has to have it too."""
        return next((dims(a) for a, k in zip(args, known) if k is not None), None)

    def _reduction(self, value: relax.Call, found: _Constant) -> _Constant | None:
        lead = 1 if found.folded else 2
        if value.attrs.axis is None:
            return None
        ndim = int(value.args[0].ty.ndim)
        axes = [int(a) % ndim for a in value.attrs.axis]
        if min(axes) < lead:
            return None
        axes = axes if found.folded else [a - 1 for a in axes]
        make = getattr(relax.op, op_name(value).removeprefix("relax."))
        return self._made(make(found.base, axes, bool(value.attrs.keepdims)), found)

    def _reshape(self, value: relax.Call, found: _Constant) -> _Constant | None:
        """Reshapes that keep time and batch in front, folded or not."""
        after, (batch, *rest) = dims(value), known_dims(found.base)
        if after is None:
            return None
        options = []
        if len(after) > 1 and same_dims(after[:2], [found.steps, batch]):
            options.append((False, after[2:]))
        if same(after[0], product([found.steps, batch])):
            options.append((True, after[1:]))
        if not options:
            return None
        # with a batch of 1 both may fit: prefer what keeps the other axes, then the folding
        options.sort(key=lambda o: (not same_dims(o[1], rest), o[0] != found.folded))
        folded, tail = options[0]
        if same_dims(tail, rest):
            return _Constant(found.base, found.steps, folded)
        base = self.emit(relax.op.reshape(found.base, relax.ShapeExpr([batch, *tail])))
        return _Constant(base, found.steps, folded)
