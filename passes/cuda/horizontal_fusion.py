"""HorizontalFusion: small kernels that do not depend on each other become one launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax

from ttsnn.passes.cuda.batches import batches
from ttsnn.passes.cuda.kernels.side_by_side import launches_of, side_by_side
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.shapes import nbytes
from ttsnn.passes.static_values import op_name

__all__ = ["MOST_ARGUMENTS", "SMALL_BYTES", "HorizontalFusion"]

SMALL_BYTES = 4 << 20
"""What a call touches at most, to count as small: a GPU moves that in about a launch's time."""

MOST_ARGUMENTS = 128
"""Arrays of one kernel: CUDA takes 512 pointers, but compiling takes longer than in proportion."""


@tvm.transform.module_pass(opt_level=0, name="HorizontalFusion")
class HorizontalFusion(ModulePass):
    """Do small kernels at the same time, each in blocks of its own: results are the same bits.

    In a training step they are the weights of convolutions that are made of cores, the gradients
    of cores, and updates of parameters and of optimizers' states. Every function's calls are put
    into groups (:func:`~ttsnn.passes.cuda.batches.batches`), and each group into one kernel.
    Kernels whose threads exchange something stay as they are. Sizes must be static; expects
    scheduled kernels (``ScheduleKernels``).

    Args:
        functions: names of the Relax functions.
    """

    def __init__(self, functions: Sequence[str]) -> None:
        self.functions = list(functions)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        bb = relax.BlockBuilder(mod)
        merger = _Merger(mod, bb)
        new = {name: merger.function(mod[name]) for name in self.functions}
        out = bb.get()
        for name, func in new.items():
            out.update_func(out.get_global_var(name), func)
        return relax.transform.DeadCodeElimination(self.functions)(out)


@dataclass
class _Step:
    """A binding with those that take its result apart.

    Attributes:
        binding: the first.
        items: variable of each result that is taken, by its index.
        small: whether it may be part of a group.
    """

    binding: relax.Binding
    items: dict[int, relax.Var] = field(default_factory=dict)
    small: bool = False


class _Merger:
    def __init__(self, mod: tvm.IRModule, bb: relax.BlockBuilder) -> None:
        self.mod, self.bb = mod, bb
        self._can: dict[tvm.ir.GlobalVar, bool] = {}
        self._made: dict[tuple, tvm.ir.GlobalVar] = {}

    def function(self, func: relax.Function) -> relax.Function:
        """The function with its small calls in groups."""
        (block,) = func.body.blocks
        steps, owner = self._steps(block)
        reads = [sorted({owner[v] for v in _vars(s.binding.value) if v in owner}) for s in steps]
        bindings: list[relax.Binding] = []
        for group in batches(reads, [s.small for s in steps]):
            for part in _parts([steps[i] for i in group]):
                bindings += self._merged(part) if len(part) > 1 else _alone(part[0])
        body = relax.SeqExpr([relax.DataflowBlock(bindings)], func.body.body)
        out = relax.Function(func.params, body, func.ret_ty, func.is_pure)
        return out.with_attrs(func.attrs) if func.attrs else out

    def _steps(self, block: relax.BindingBlock) -> tuple[list[_Step], dict[relax.Var, int]]:
        """The block's steps, and which one each variable comes from."""
        steps: list[_Step] = []
        owner: dict[relax.Var, int] = {}
        whole: set[relax.Var] = set()  # tuples that are read as such
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.TupleGetItem) and value.tuple_value in owner:
                number = owner[value.tuple_value]
                if value.tuple_value == steps[number].binding.var:
                    steps[number].items[value.index] = binding.var
                    owner[binding.var] = number
                    continue
            whole.update(_vars(value))
            owner[binding.var] = len(steps)
            steps.append(_Step(binding))
        for step in steps:
            var = step.binding.var
            is_tuple = isinstance(var.ty, relax.TupleType)
            step.small = self._small(step.binding.value) and not (is_tuple and var in whole)
        return steps, owner

    def _small(self, value: relax.Expr) -> bool:
        if op_name(value) != "relax.call_tir":
            return False
        touched = nbytes(value.ty) + sum(nbytes(a.ty) for a in value.args[1].fields)
        return touched <= SMALL_BYTES and self._can_join(value.args[0])

    def _can_join(self, gvar: tvm.ir.GlobalVar) -> bool:
        if gvar not in self._can:
            self._can[gvar] = launches_of(self.mod[gvar]) is not None
        return self._can[gvar]

    def _merged(self, steps: Sequence[_Step]) -> list[relax.Binding]:
        """One call for all steps, and names for its results."""
        calls = [s.binding.value for s in steps]
        types = [_results(call) for call in calls]
        key = tuple(call.args[0] for call in calls)
        if key not in self._made:
            funcs = [(self.mod[g], len(t)) for g, t in zip(key, types)]
            self._made[key] = self.bb.add_func(side_by_side(funcs), "side_by_side")
        args = [a for call in calls for a in call.args[1].fields]
        call = relax.call_tir(self._made[key], args, [t for own in types for t in own])
        var = relax.DataflowVar("side_by_side", self.bb.normalize(call).ty)
        out: list[relax.Binding] = [relax.VarBinding(var, call)]
        base = 0
        for step, own in zip(steps, types):
            single = not isinstance(step.binding.var.ty, relax.TupleType)
            names = {0: step.binding.var} if single else step.items
            for index, name in names.items():
                item = self.bb.normalize(relax.TupleGetItem(var, base + index))
                out.append(relax.VarBinding(name, item))
            base += len(own)
        return out


def _alone(step: _Step) -> list[relax.Binding]:
    var = step.binding.var
    items = [relax.VarBinding(v, relax.TupleGetItem(var, i)) for i, v in step.items.items()]
    return [step.binding, *items]


def _parts(steps: Sequence[_Step]) -> Iterator[list[_Step]]:
    """A group cut where the arrays of one kernel would be too many."""
    part: list[_Step] = []
    arrays = 0
    for step in steps:
        value = step.binding.value
        own = len(value.args[1].fields) + len(_results(value)) if step.small else 0
        if part and arrays + own > MOST_ARGUMENTS:
            yield part
            part, arrays = [], 0
        part.append(step)
        arrays += own
    yield part


def _results(call: relax.Call) -> list[relax.TensorType]:
    return list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]


def _vars(expr: relax.Expr) -> list[relax.Var]:
    """Variables that an expression reads."""
    return list(relax.analysis.all_vars(expr))
