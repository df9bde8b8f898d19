"""Tensors share memory exactly where their lives allow it."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from ttsnn.passes.arena import ALIGNMENT, Life, arena
from ttsnn.passes.plan_memory import PlanMemory

lives = st.lists(
    st.builds(
        lambda nbytes, first, length: Life(nbytes, first, first + length),
        st.integers(0, 1000),
        st.integers(0, 12),
        st.integers(0, 6),
    ),
    max_size=25,
)


@given(lives)
def test_no_two_tensors_that_live_at_once_share_a_byte(lives: list[Life]) -> None:
    offsets, total = arena(lives)
    owners = np.full((20, total), -1)
    for i, (life, at) in enumerate(zip(lives, offsets)):
        assert at % ALIGNMENT == 0
        assert at + life.nbytes <= total
        mine = owners[life.first : life.last + 1, at : at + max(life.nbytes, 1)]
        assert (mine == -1).all()
        mine[:] = i


def test_the_arena_of_equal_chained_tensors_is_two_of_them() -> None:
    offsets, total = arena([Life(640, i, i + 1) for i in range(9)])
    assert total == 1280
    assert {*offsets} == {0, 640}


def test_a_small_tensor_takes_the_smallest_gap_that_fits() -> None:
    whole = [Life(640, 0, 9), Life(320, 0, 4), Life(192, 0, 9), Life(128, 0, 4), Life(99, 0, 9)]
    offsets, total = arena([*whole, Life(65, 5, 9)])
    assert total == 640 + 320 + 192 + 128 + 128
    assert offsets[-1] == offsets[3]  # 128 bytes with its padding: not the 320 further ahead


def chain(n: int | str, depth: int) -> tvm.IRModule:
    """``x → x + 1 → …``, with a reshape and a tuple on the way; two results."""
    bb = relax.BlockBuilder()
    size = tvm.tirx.Var(n, "int64") if isinstance(n, str) else n
    x = relax.Var("x", relax.TensorType([size, 4], "float32"))
    with bb.function("main", [x]):
        with bb.dataflow():
            value = middle = x
            for i in range(depth):
                value = bb.emit_te(lambda a: tvm.te.compute(a.shape, lambda *k: a(*k) + 1.0), value)
                if i == 1:
                    middle = value
                    value = bb.emit(relax.op.reshape(value, relax.ShapeExpr([4, size])))
            pair = bb.emit(relax.Tuple([value, middle]))
            result = bb.emit_output(pair)
        bb.emit_func_output(result)
    t = relax.transform
    mod = tvm.IRModule(dict(bb.get().functions_items()))
    for step in (t.LegalizeOps({"relax.reshape": lambda _b, call: call}), t.ToNonDataflow()):
        mod = step(mod)
    return t.CallTIRRewrite()(t.RemovePurityChecking()(mod))


def storages(mod: tvm.IRModule) -> list[int]:
    return [
        int(b.value.args[0].values[0])
        for block in mod["main"].body.blocks
        for b in block.bindings
        if getattr(getattr(b.value, "op", None), "name", "") == "relax.memory.alloc_storage"
    ]


def built(mod: tvm.IRModule) -> relax.VirtualMachine:
    t = relax.transform
    steps = [t.LowerAllocTensor(), t.KillAfterLastUse(), t.LowerRuntimeBuiltin()]
    steps += [t.ComputePrimValue(), t.VMShapeLower(), t.AttachGlobalSymbol()]
    for step in steps:
        mod = step(mod)
    builder = relax.ExecBuilder()
    tvm.get_global_func("relax.VMCodeGen")(builder, mod)
    kernels = {g: f for g, f in mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}
    lib = tvm.tirx.build(tvm.IRModule(kernels), "llvm")
    link = tvm.get_global_func("relax.VMLink")
    made = relax.VMExecutable(link(builder, tvm.target.Target("llvm"), lib, [], {}))
    return relax.VirtualMachine(made, tvm.cpu())


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_values_survive_and_results_own_their_memory(depth: int) -> None:
    mod = PlanMemory()(chain(33, depth))
    assert relax.analysis.check_well_formed(mod)
    # a chain needs two buffers at most, the results and what aliases them none
    assert sum(storages(mod)) == 576 * max(0, min(2, depth - (1 if depth < 3 else 2)))
    x = np.random.default_rng(0).normal(size=(33, 4)).astype("float32")
    vm = built(mod)
    first = vm["main"](tvm.runtime.tensor(x))
    again = vm["main"](tvm.runtime.tensor(x * 0))
    want, middle = x, x
    for i in range(depth):
        want = want + np.float32(1)
        middle = want if i == 1 else middle
    got = first[0].numpy().reshape(33, 4)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(first[1].numpy(), middle)
    assert not np.array_equal(again[0].numpy().reshape(33, 4), want)


def test_unknown_sizes_are_left_to_tvm() -> None:
    mod = chain("n", 5)
    tvm.ir.assert_structural_equal(PlanMemory()(mod), relax.transform.StaticPlanBlockMemory()(mod))
