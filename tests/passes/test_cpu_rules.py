"""Generic schedule rules: which takes what, and that the schedules compute the same."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.script import tirx as T

from ttsnn.passes.cpu.any_alignment import AnyAlignment
from ttsnn.passes.cpu.rules import RULES, elementwise_rule, reduction_rule
from ttsnn.passes.schedule_kernels import MACS, RULE, ScheduleKernels

from .graph_tools import run
from .tt_programs import program

RNG = np.random.default_rng(3)
TARGET = tvm.target.Target("llvm")


def kernels(mod):
    """The kernels of a program after legalisation and fusion."""
    t = relax.transform
    steps = [t.LegalizeOps(), t.AnnotateTIROpPattern(), t.FoldConstant(), t.FuseOps(), t.FuseTIR()]
    return tvm.transform.Sequential(steps)(mod)


def prim_funcs(mod):
    """Name → kernel."""
    return {g.name_hint: f for g, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}


o = relax.op


def _halves(x):
    return [relax.TupleGetItem(o.split(x, 2, 2), i) for i in (0, 1)]


CASES = {
    # name: (rule, body); x is [n or 3, 4, 32]
    "add_relu": ("elementwise", lambda x: o.nn.relu(o.add(x, x))),
    "transpose": ("elementwise", lambda x: o.permute_dims(x, [2, 0, 1])),
    "concat": ("elementwise", lambda x: o.concat([x, o.exp(x)], 1)),
    "slice": ("elementwise", lambda x: o.strided_slice(x, [2], [1], [8])),
    "split": (
        "elementwise",
        lambda x: o.add(*[relax.TupleGetItem(o.split(x, 2, 2), i) for i in (0, 1)]),
    ),
    "pad": ("elementwise", lambda x: o.nn.pad(x, [0, 0, 1, 1, 2, 2])),
    "sum_inner": ("reduction", lambda x: o.sum(x, [2])),
    "mean_outer": ("reduction", lambda x: o.mean(x, [1])),
    "max_all": ("reduction", lambda x: o.max(x, [0, 1, 2])),
    "softmax": ("reduction", lambda x: o.nn.softmax(x, -1)),
    "layer_norm_like": ("reduction", lambda x: o.divide(x, o.sqrt(o.sum(o.square(x), [2], True)))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [3, 200, "n"])
def test_schedules_keep_the_numbers(name: str, size) -> None:
    rule, make = CASES[name]

    def body(bb, x, _w):
        return bb.emit(bb.normalize(make(x)))

    mod = program((size, 4, 32), {}, body, dtype="float32")
    scheduled = ScheduleKernels(RULES, TARGET)(kernels(mod))
    found = {str(f.attrs[RULE]) for f in prim_funcs(scheduled).values()}
    assert rule in found
    assert found <= {"elementwise", "reduction"}
    x = RNG.normal(size=(7 if size == "n" else size, 4, 32)).astype("float32")
    np.testing.assert_allclose(run(scheduled, x)[0], run(mod, x)[0], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pools(layout: str) -> None:
    def body(bb, x, _w):
        return bb.emit(o.nn.max_pool2d(x, [3, 3], [2, 2], [1, 1, 1, 1], layout=layout))

    mod = program((2, 16, 8, 32), {}, body, dtype="float32")
    scheduled = ScheduleKernels(RULES, TARGET)(kernels(mod))
    assert {str(f.attrs[RULE]) for f in prim_funcs(scheduled).values()} == {"reduction"}
    x = RNG.normal(size=(2, 16, 8, 32)).astype("float32")
    np.testing.assert_array_equal(run(scheduled, x)[0], run(mod, x)[0])


def test_large_kernels_are_parallel_and_vectorised() -> None:
    mod = program((64, 16, 32), {}, lambda bb, x, w: bb.emit(o.nn.relu(x)), dtype="float32")
    (func,) = prim_funcs(kernels(mod)).values()
    text = elementwise_rule(func, TARGET).mod.script()
    assert "T.parallel" in text
    assert "T.vectorized" in text
    mod = program((2, 16, 32), {}, lambda bb, x, w: bb.emit(o.sum(x, [1])), dtype="float32")
    (func,) = prim_funcs(kernels(mod)).values()
    assert elementwise_rule(func, TARGET) is None
    text = reduction_rule(func, TARGET).mod.script()
    assert "T.vectorized" in text
    assert "T.parallel" not in text  # too little work to start threads for


def test_work_is_counted() -> None:
    params = {"c.weight": np.zeros((6, 1, 3, 3), "float32")}

    def body(bb, x, w):
        return bb.emit(o.nn.conv2d(x, w["c.weight"], groups=6, padding=1))

    mod = program((2, 6, 5, 4), params, body, dtype="float32")
    scheduled = ScheduleKernels(RULES, TARGET)(kernels(mod))
    assert sum(int(f.attrs[MACS]) for f in prim_funcs(scheduled).values()) == 2 * 6 * 20 * 9


@T.prim_func(private=True, s_tir=True)
def scan(x: T.Buffer((8, 4), "float32"), y: T.Buffer((8, 4), "float32")):
    """A recurrence that no rule knows: each row needs the one before."""
    for i, j in T.grid(8, 4):
        with T.sblock("scan"):
            vi = T.axis.scan(8, i)
            vj = T.axis.spatial(4, j)
            y[vi, vj] = T.if_then_else(vi > 0, y[vi - 1, vj], T.float32(0)) + x[vi, vj]


def test_the_fallback_is_right_and_reported() -> None:
    with pytest.warns(UserWarning, match="kernel scan: no schedule rule fits"):
        mod = ScheduleKernels(RULES, TARGET)(tvm.IRModule({"scan": scan}))
    func = mod["scan"]
    assert str(func.attrs[RULE]) == "fallback"
    built = tvm.compile(tvm.IRModule({"scan": func.with_attr("global_symbol", "scan")}), TARGET)
    x = RNG.normal(size=(8, 4)).astype("float32")
    y = tvm.runtime.tensor(np.zeros_like(x))
    built["scan"](tvm.runtime.tensor(x), y)
    np.testing.assert_allclose(y.numpy(), np.cumsum(x, 0), rtol=1e-5, atol=1e-6)


def test_arguments_may_lie_anywhere() -> None:
    mod = program((2, 64), {}, lambda bb, x, w: bb.emit(o.nn.relu(x)), dtype="float32")
    mod = AnyAlignment()(ScheduleKernels(RULES, TARGET)(kernels(mod)))
    (func,) = prim_funcs(mod).values()
    assert [p.data_alignment for p in func.params] == [4, 4]
    vm = relax.VirtualMachine(tvm.compile(mod.without_attr("ttsnn.params"), TARGET), tvm.cpu())
    raw = np.zeros(2 * 64 * 4 + 128, np.uint8)
    start = -raw.ctypes.data % 64 + 4
    x = raw[start : start + 512].view("float32").reshape(2, 64)
    x[...] = RNG.normal(size=x.shape)
    got = vm["main"](tvm_ffi.from_dlpack(x))
    np.testing.assert_array_equal(got.numpy(), np.maximum(x, 0))
