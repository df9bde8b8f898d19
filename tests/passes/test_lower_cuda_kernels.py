"""LowerKernels and several images on the emulated GPU: TVM's pipeline is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from ttsnn.cuda import emulator
from ttsnn.cuda.callback import compile_with
from ttsnn.passes.cuda import target as cuda_target
from ttsnn.passes.cuda.kernels.mma import with_functions
from ttsnn.passes.pipelines import build_passes
from ttsnn.passes.tir.contains import has_blocks
from ttsnn.program import PARAMS, params_of

from .cuda.emulated import emulated
from .tt_programs import every_kind, run

RNG = np.random.default_rng(4)


def by_tvm(target, lowered):
    """The executable as TVM's default pipeline makes it."""
    compiler = target.device_compiler()
    config = {"tirx.UnrollLoop": {"explicit_unroll": False, "auto_max_step": 0}}
    with (
        compile_with(lambda source: compiler(with_functions(source))),
        tvm.transform.PassContext(config=config),
    ):
        return relax.build(
            lowered.without_attr(PARAMS),
            target.tvm_target,
            relax_pipeline=tvm.transform.Sequential(build_passes(plan_memory=False)),
            tir_pipeline="s_tir",
        )


def arguments(lowered, x):
    values = (x, *map(np.asarray, params_of(lowered).values()))
    return [tvm.runtime.tensor(v, tvm.cuda(0)) for v in values]


def machine(module):
    emulator.enable(order="both")
    return relax.VirtualMachine(module, tvm.cuda(0), memory_cfg="naive")["main"]


@pytest.mark.parametrize("batch", [3, "n"])
def test_same_numbers_as_the_default_pipeline(batch, monkeypatch, tmp_path) -> None:
    mod, target = every_kind(batch), emulated()
    lowered = target.lower(mod)
    kernels = [f for f in lowered.functions.values() if isinstance(f, PrimFunc)]
    assert {has_blocks(f) for f in kernels} == {False, True}
    x = RNG.normal(size=(2, 3, 2, 5, 4))
    want = machine(by_tvm(target, lowered))(*arguments(lowered, x)).numpy()
    np.testing.assert_allclose(want, run(mod, x), rtol=1e-11, atol=1e-12)

    np.testing.assert_array_equal(
        machine(target.build(lowered))(*arguments(lowered, x)).numpy(), want
    )
    # each part of the kernels with an image of its own, in a file and out of it
    monkeypatch.setattr(cuda_target, "KERNELS_OF_AN_IMAGE", 2)
    several = target.build(lowered)
    (first,) = several.mod.imports
    assert sum(m.kind == "cuda" for lib in (first, *first.imports) for m in lib.imports) > 1
    several.export_library(str(tmp_path / "net.so"))
    loaded = tvm.runtime.load_module(str(tmp_path / "net.so"))
    for module in (several, loaded):
        got = machine(module)(*arguments(lowered, x)).numpy()
        np.testing.assert_array_equal(got, want)
    emulator.check()


def test_what_comes_from_outside_is_checked_although_kernels_check_nothing() -> None:
    target = emulated()
    lowered = target.lower(every_kind(3))
    main = machine(target.build(lowered))
    x, *weights = arguments(lowered, np.zeros((2, 3, 2, 5, 4)))
    launches = emulator.launches()
    for shape, dtype in (((2, 4, 2, 5, 4), "float64"), ((2, 3, 2, 5, 4), "float32")):
        with pytest.raises((RuntimeError, ValueError), match=r"param\[0\]"):
            main(tvm.runtime.tensor(np.zeros(shape, dtype), tvm.cuda(0)), *weights)
    with pytest.raises((RuntimeError, ValueError), match=r"param\[1\]"):
        main(x, tvm.runtime.tensor(np.zeros(1), tvm.cuda(0)), *weights[1:])
    assert emulator.launches() == launches
