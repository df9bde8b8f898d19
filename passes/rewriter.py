"""Base of the graph passes: ``main`` rewritten binding by binding, parameters included."""

from __future__ import annotations

from collections import Counter

import numpy as np
import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.passes.static_values import StaticValues
from ttsnn.program import ParamMutator, layer_name

__all__ = ["BindingRewriter", "bindings_of", "prune", "use_counts"]


def bindings_of(func: relax.Function) -> dict[relax.Var, relax.Expr]:
    """Variable → bound expression, in order of execution (match casts: the value cast)."""
    return {b.var: b.value for block in func.body.blocks for b in block.bindings}


def use_counts(func: relax.Function) -> Counter:
    """How many times each variable is read, results of the function included."""
    counts: Counter = Counter()

    def read(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Var):
            counts[expr] += 1
        elif isinstance(expr, relax.Call):
            for arg in expr.args:
                read(arg)
        elif isinstance(expr, relax.Tuple):
            for field in expr.fields:
                read(field)
        elif isinstance(expr, relax.TupleGetItem):
            read(expr.tuple_value)

    for value in bindings_of(func).values():
        read(value)
    read(func.body.body)
    return counts


class BindingRewriter(ParamMutator):
    """Visits the bindings of ``main`` in order; a subclass overrides :meth:`rewrite`.

    ``self.bound`` holds the *original* bindings, ``self.uses`` their use counts and
    ``self.static`` the values of expressions over parameters alone. :meth:`get` gives the new
    expression of an original one. Bindings that become dead stay until :func:`prune`.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        main = mod["main"]
        self.bound = bindings_of(main)
        self.uses = use_counts(main)
        self.static = StaticValues(self.bound, self.value)
        self._remap: dict[relax.Var, relax.Expr] = {}
        self._in_dataflow = False

    # -- to override -------------------------------------------------------------------------

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """New expression for one binding; default: the same with its operands replaced.

        None defers it: :meth:`materialise` is asked for the variable where it is read.
        """
        return self.get(value)

    def materialise(self, var: relax.Var) -> relax.Expr:
        """New expression of a variable that :meth:`rewrite` deferred; called once for each."""
        return var

    def result(self, expr: relax.Expr) -> relax.Expr:
        """New result of ``main``."""
        return self.get(expr)

    # -- helpers -----------------------------------------------------------------------------

    def get(self, expr: relax.Expr) -> relax.Expr:
        """The new expression that stands for an original one."""
        if isinstance(expr, relax.Var):
            if expr not in self._remap and expr in self.bound:
                self._remap[expr] = self.materialise(expr)
            return self._remap.get(expr, expr)
        if isinstance(expr, relax.Call):
            args = [self.get(a) for a in expr.args]
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.get(f) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self.get(expr.tuple_value), expr.index)
        if isinstance(expr, relax.If):
            raise PassError(
                "the network branches on a value that is known at run time only; "
                "write it with torch.where, which computes both sides"
            )
        return expr

    def emit(self, expr: relax.Expr, name: str = "lv") -> relax.Var:
        """Bind an expression in the block that is being built; a variable is returned as it is."""
        return expr if isinstance(expr, relax.Var) else self.builder_.emit(expr, name)

    def definition(self, expr: relax.Expr) -> relax.Expr | None:
        """Original expression bound to an original variable; None for parameters and inputs."""
        return self.bound.get(expr) if isinstance(expr, relax.Var) else None

    def owner(self, expr: relax.Expr) -> str:
        """Name of the layer whose parameter an original expression is made from."""
        while self.name_of(expr) is None:
            inner = self.definition(expr)
            if not isinstance(inner, relax.Call) or not inner.args:
                return "layer"
            expr = inner.args[0]
        return layer_name(self.name_of(expr) or "")

    def fresh_param(self, name: str, value: np.ndarray) -> relax.Var:
        """A new parameter called ``name``, or ``name_1``, … where that is taken already."""
        unique, n = name, 0
        while unique in self._values:
            n += 1
            unique = f"{name}_{n}"
        return self.add_param(unique, value)

    # -- the walk ----------------------------------------------------------------------------

    def visit_expr(self, expr: relax.Expr) -> relax.Expr:
        """Rewrite the body of ``main``."""
        bb = self.builder_
        bb.begin_scope(list(self.mod["main"].params))
        blocks = []
        for block in expr.blocks:
            self._in_dataflow = isinstance(block, relax.DataflowBlock)
            if self._in_dataflow:
                bb._begin_dataflow_block()
            else:
                bb._begin_binding_block()
            for binding in block.bindings:
                self._visit(binding)
            blocks.append(bb._end_block())
        seq = bb.normalize(relax.SeqExpr(blocks, self.result(expr.body)))
        bb.end_scope()
        return seq

    def _visit(self, binding: relax.Binding) -> None:
        var = binding.var
        if isinstance(binding, relax.MatchCast):
            new: relax.Expr = self.builder_.match_cast(self.get(binding.value), binding.ty)
        else:
            new = self.rewrite(var, binding.value)
        is_output = self._in_dataflow and not isinstance(var, relax.DataflowVar)
        if new is None and is_output:
            new = self.materialise(var)
        if new is None:
            return
        if is_output:
            self._remap[var] = self.builder_.emit_output(new, var.name)
        else:
            self._remap[var] = self.emit(new, var.name)


def prune(mod: tvm.IRModule) -> tvm.IRModule:
    """Remove bindings nothing uses, aliases, and the parameters that then nothing uses."""
    mod = tvm.transform.Sequential(
        [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
    )(mod)
    return BindingRewriter(mod).run()
