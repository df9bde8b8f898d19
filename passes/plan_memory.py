"""PlanMemory: tensors between kernels share one block of memory, where their lives allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tvm
from tvm import relax, tirx

from ttsnn.passes.arena import Life, arena
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.static_values import op_name

__all__ = ["PlanMemory"]

_ALLOC = "relax.builtin.alloc_tensor"


@tvm.transform.module_pass(opt_level=0, name="PlanMemory")
class PlanMemory(ModulePass):
    """Place a function's tensors in one block, at offsets of :func:`ttsnn.passes.arena.arena`.

    TVM's ``StaticPlanBlockMemory`` gives each tensor the whole of a buffer that is free, however
    small it is; for a training step that takes 10–15 % more. It still does the functions that have
    branches, or tensors whose size is not known.

    Expects calls with explicit destinations, as ``CallTIRRewrite`` leaves them. Results keep
    memory of their own.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        out = relax.transform.StaticPlanBlockMemory()(mod)
        for gvar, func in mod.functions_items():
            if isinstance(func, relax.Function):
                planned = _planned(func, mod)
                if planned is not None:
                    out.update_func(gvar, planned)
        return out


def _planned(func: relax.Function, mod: tvm.IRModule) -> relax.Function | None:
    if not isinstance(func.body, relax.SeqExpr):
        return None
    bindings = [b for block in func.body.blocks for b in block.bindings]
    if not all(isinstance(b, relax.VarBinding) for b in bindings):
        return None
    if any(isinstance(b.value, (relax.If, relax.SeqExpr, relax.Function)) for b in bindings):
        return None
    sizes = {b.var: _nbytes(b.value) for b in bindings if op_name(b.value) == _ALLOC}
    if any(size is None for size in sizes.values()):
        return None
    lives = _lives(bindings, func.body.body, {v: n for v, n in sizes.items() if n is not None}, mod)
    if not lives:
        return func
    offsets, total = arena([*lives.values()])
    return _rewritten(func, dict(zip(lives, offsets)), total)


def _nbytes(alloc: relax.Call) -> int | None:
    """Bytes of a tensor in the device's own memory; None where they are not known."""
    shape, dtype, device, scope = alloc.args
    if not isinstance(shape, relax.ShapeExpr) or scope.value != "global" or int(device.value):
        return None
    size = (tvm.DataType(str(dtype.value)).bits + 7) // 8
    for dim in shape.values:
        if not isinstance(dim, tirx.IntImm):
            return None
        size *= int(dim)
    return size


def _lives(
    bindings: Sequence[relax.Binding],
    result: relax.Expr,
    sizes: Mapping[relax.Var, int],
    mod: tvm.IRModule,
) -> dict[relax.Var, Life]:
    """Tensor → its life; those that the function returns are left out.

    What a call of a kernel returns is nothing. Anything else may return a view of what it takes.
    """
    reach: dict[relax.Var, frozenset[relax.Var]] = {var: frozenset((var,)) for var in sizes}
    first: dict[relax.Var, int] = {}
    last: dict[relax.Var, int] = {}
    for step, binding in enumerate(bindings):
        if binding.var in sizes:
            continue
        touched = _touched(binding.value, reach)
        for tensor in touched:
            first.setdefault(tensor, step)
            last[tensor] = step
        if not _is_kernel_call(binding.value, mod):
            reach[binding.var] = touched
    returned = _touched(result, reach)
    return {
        tensor: Life(size, first[tensor], last[tensor])
        for tensor, size in sizes.items()
        if tensor not in returned and tensor in first
    }


def _touched(
    value: relax.Expr, reach: Mapping[relax.Var, frozenset[relax.Var]]
) -> frozenset[relax.Var]:
    """The tensors that an expression's variables stand for."""
    found: set[relax.Var] = set()

    def visit(node: relax.Expr) -> None:
        if isinstance(node, relax.Var):
            found.update(reach.get(node, ()))

    relax.analysis.post_order_visit(value, visit)
    return frozenset(found)


def _is_kernel_call(value: relax.Expr, mod: tvm.IRModule) -> bool:
    return (
        isinstance(value, relax.Call)
        and isinstance(value.op, tvm.ir.GlobalVar)
        and isinstance(mod[value.op], tirx.PrimFunc)
    )


def _rewritten(
    func: relax.Function, offsets: Mapping[relax.Var, int], total: int
) -> relax.Function:
    """The function with one allocation, and the tensors at their offsets in it."""
    normalize = relax.BlockBuilder().normalize
    memory = relax.op.memory
    size = relax.ShapeExpr([total])
    storage = normalize(memory.alloc_storage(size, 0, "global", "uint8"))
    block = relax.Var("arena", storage.ty)
    blocks = [relax.BindingBlock([relax.VarBinding(block, storage)])]
    for old in func.body.blocks:
        bindings = []
        for binding in old.bindings:
            offset = offsets.get(binding.var)
            if offset is None:
                bindings.append(binding)
                continue
            shape, dtype, _device, _scope = binding.value.args
            view = normalize(memory.alloc_tensor(block, offset, shape, dtype))
            if offset:
                # kernels look at the pointer alone: it is moved to where the offset points
                part = relax.Var(binding.var.name, view.ty)
                bindings.append(relax.VarBinding(part, view))
                view = normalize(memory.ensure_zero_offset(part))
            bindings.append(relax.VarBinding(binding.var, view))
        blocks.append(type(old)(bindings))
    body = normalize(relax.SeqExpr(blocks, func.body.body))
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs, func.span)
