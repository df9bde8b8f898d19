"""VerifyDifferentiable: refuse what ``relax.transform.Gradient`` would differentiate to zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax
from tvm.ir import Op

from ttsnn.errors import PassError
from ttsnn.ops.types import shape_text
from ttsnn.passes.module_pass import ModulePass
from ttsnn.program import num_inputs, param_names

__all__ = ["VerifyDifferentiable"]

# Operands that carry a choice and no value: their derivative is zero almost everywhere.
_CHOICE = {"relax.where": (0,), "relax.take": (1,), "relax.nn.nll_loss": (1, 2)}
# Results that do not depend on the operand's values.
_SHAPE_ONLY = {"relax.zeros_like", "relax.ones_like", "relax.full_like"}
# Gradient handles these itself.
_IDENTITY = {"relax.grad.start_checkpoint", "relax.grad.end_checkpoint"}
_STOP = "relax.grad.no_grad"


@tvm.transform.module_pass(opt_level=0, name="VerifyDifferentiable")
class VerifyDifferentiable(ModulePass):
    """Check that gradients reach the parameters; the module is returned unchanged.

    ``relax.transform.Gradient`` gives zeros, without a word, where a value passes through a call
    of another function, or through a comparison whose result is cast back to numbers (a spike
    written out). Both are refused, and so are operators without a registered gradient, whose
    error inside TVM names no parameter.

    Not refused: the condition of ``where`` beside branches that depend on the parameter, indices,
    ``zeros_like`` and the like, what ``relax.grad.no_grad`` cuts off on purpose, and a parameter
    that the output does not use.

    Args:
        params: names of the parameters that need a gradient (of ``ttsnn.params``, or of
            arguments of the function); None for all parameters of floating-point type.
        output: index of the result that will be differentiated; None for all results.
        function: the function's name.

    Raises:
        PassError: naming the parameter, the operator and what to do.
    """

    def __init__(
        self,
        params: Sequence[str] | None = None,
        *,
        output: int | None = None,
        function: str = "main",
    ) -> None:
        self.params = None if params is None else list(params)
        self.output = output
        self.function = function

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Check; return ``mod`` itself."""
        func = mod[self.function]
        names = self._required(mod, func)
        flow = _Flow(func, set(names), self.output)
        for var, value in flow.live_bindings():
            problem = flow.problem(value)
            if problem is not None:
                params, what, cure = problem
                listed = ", ".join(sorted(repr(names[p]) for p in params)[:3])
                more = f" and {len(params) - 3} more" if len(params) > 3 else ""
                raise PassError(
                    f"VerifyDifferentiable: no gradient for parameter {listed}{more}: {what}, at "
                    f"{var.name} {_type_text(var)}; {cure}"
                )
        return mod

    def _required(self, mod: tvm.IRModule, func: relax.Function) -> dict[relax.Var, str]:
        names = {v: v.name for v in func.params}
        if self.function == "main" and mod.attrs is not None and "ttsnn.params" in mod.attrs:
            names |= param_names(mod)
        if self.params is None:
            return {v: names[v] for v in func.params[num_inputs(func) :] if _is_float(v)}
        by_name = {name: v for v, name in names.items()}
        missing = [p for p in self.params if p not in by_name]
        if missing:
            raise PassError(
                f"VerifyDifferentiable: function {self.function!r} has no parameter "
                f"{', '.join(map(repr, missing))}; it has {', '.join(by_name)}"
            )
        return {by_name[p]: p for p in self.params}


@dataclass
class _Flow:
    """Which parameters each value of a function depends on."""

    func: relax.Function
    required: set[relax.Var]
    output: int | None
    bindings: dict[relax.Var, relax.Expr] = field(init=False, default_factory=dict)
    depends: dict[relax.Var, frozenset[relax.Var]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for p in self.func.params:
            self.depends[p] = frozenset([p] if p in self.required else [])
        for block in self.func.body.blocks:
            for b in block.bindings:
                self.bindings[b.var] = b.value
                self.depends[b.var] = self._of(_data_operands(b.value))

    def _of(self, operands: Iterable[relax.Expr]) -> frozenset[relax.Var]:
        """Parameters on which some of the operands depend."""
        found: set[relax.Var] = set()
        for e in operands:
            for var in _variables(e):
                found |= self.depends.get(var, frozenset())
        return frozenset(found)

    def live_bindings(self) -> Iterable[tuple[relax.Var, relax.Expr]]:
        """Bindings to which a gradient flows back from the output, first to last."""
        result = self.func.body.body
        roots = [result]
        if self.output is not None:
            fields = self._tuple_fields(result)
            if fields is not None:
                if not 0 <= self.output < len(fields):
                    raise PassError(
                        f"VerifyDifferentiable: output {self.output} is asked for, the function "
                        f"has {len(fields)} results"
                    )
                roots = [fields[self.output]]
        live: set[relax.Var] = set()
        stack = [v for r in roots for v in _variables(r)]
        while stack:
            var = stack.pop()
            if var in live or var not in self.bindings:
                continue
            live.add(var)
            stack += [v for e in _gradient_operands(self.bindings[var]) for v in _variables(e)]
        return [(v, e) for v, e in self.bindings.items() if v in live]

    def _tuple_fields(self, expr: relax.Expr) -> list[relax.Expr] | None:
        while isinstance(expr, relax.Var) and expr in self.bindings:
            expr = self.bindings[expr]
        return list(expr.fields) if isinstance(expr, relax.Tuple) else None

    def problem(self, value: relax.Expr) -> tuple[frozenset[relax.Var], str, str] | None:
        """Parameters whose gradient stops at this value, what stops it, and the cure."""
        if isinstance(value, relax.If):
            hit = self._of([value])
            return (hit, "it passes through a branch (If)", "use relax.where") if hit else None
        if not isinstance(value, relax.Call):
            return None
        hit = self._of(_data_operands(value))
        if not hit:
            return None
        if not isinstance(value.op, Op):
            name = getattr(value.op, "name_hint", getattr(value.op, "global_symbol", value.op))
            return (
                hit,
                f"it passes through a call of function {str(name)!r}, which Gradient skips",
                "inline the function first (relax.transform.InlinePrivateFunctions)",
            )
        name = value.op.name
        if name in _SHAPE_ONLY or name in _IDENTITY or name == _STOP:
            return None
        if name == "relax.astype" and not _is_float(value.args[0]):
            return (
                hit,
                f"it passes through {self._step(value.args[0])}, whose result is cast to "
                f"{value.ty.dtype}",
                "use relax.snn.lif for a spike, or relax.grad.no_grad where zero is meant",
            )
        if name == "relax.where":
            chosen = self._of(value.args[:1])
            lost = chosen - self._of(value.args[1:])
            if lost:
                return (
                    lost,
                    f"it only chooses between values, through {self._step(value.args[0])} and "
                    "relax.where",
                    "use relax.snn.lif for a spike, or relax.grad.no_grad where zero is meant",
                )
            return None
        if value.op.get_attr("FPrimalGradient") is None:
            return (
                hit,
                f"operator {name} has no gradient",
                "rewrite it, or register a gradient for it (tvm.relax.op.base.register_gradient)",
            )
        return None

    def _step(self, expr: relax.Expr) -> str:
        """The operator that turned numbers into a bool or an integer, upstream of ``expr``."""
        while isinstance(expr, relax.Var) and expr in self.bindings:
            value = self.bindings[expr]
            if not isinstance(value, relax.Call) or not isinstance(value.op, Op):
                expr = next(iter(_variables(value)), None)
                continue
            inner = [a for a in value.args if self._of([a])]
            if not inner or any(map(_is_float, inner)):
                return f"{value.op.name} of {shape_text(inner[0].ty) if inner else 'a value'}"
            expr = inner[0]
        return f"{_type_text(expr)} values"


def _data_operands(value: relax.Expr) -> list[relax.Expr]:
    """Operands whose values the result depends on, unless cut off on purpose."""
    if isinstance(value, relax.Call):
        name = value.op.name if isinstance(value.op, Op) else ""
        return [] if name == _STOP or name in _SHAPE_ONLY else list(value.args)
    return [value]


def _gradient_operands(value: relax.Expr) -> list[relax.Expr]:
    """Operands to which Gradient, or a right one in its place, sends a gradient."""
    operands = _data_operands(value)
    if isinstance(value, relax.Call) and isinstance(value.op, Op):
        choice = _CHOICE.get(value.op.name, ())
        return [e for i, e in enumerate(operands) if i not in choice and _is_float(e)]
    return operands


def _variables(expr: relax.Expr) -> list[relax.Var]:
    return [expr] if isinstance(expr, relax.Var) else list(relax.analysis.free_vars(expr))


def _is_float(expr: relax.Expr) -> bool:
    """Whether a value holds floating-point numbers (some field of a tuple does)."""

    def of(ty: tvm.ir.Type) -> bool:
        if isinstance(ty, relax.TupleType):
            return any(of(f) for f in ty.fields)
        return isinstance(ty, relax.TensorType) and "float" in str(ty.dtype)

    return of(expr.ty)


def _type_text(expr: relax.Expr) -> str:
    ty = expr.ty
    if isinstance(ty, relax.TupleType):
        return f"({', '.join(shape_text(f) for f in ty.fields if isinstance(f, relax.TensorType))})"
    return f"{shape_text(ty)} {ty.dtype}" if isinstance(ty, relax.TensorType) else str(ty)
