"""LowerKernels, machine_code: the same numbers as by TVM's pipeline, on every kind of kernel."""

import itertools
import re

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from ttsnn.passes.pipelines import build_passes
from ttsnn.passes.tir.contains import has_blocks
from ttsnn.program import PARAMS, params_of
from ttsnn.targets import get_target

from .tt_programs import every_kind, run

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("batch", [3, "n"])
def test_same_numbers_as_the_default_pipeline(batch) -> None:
    mod, target = every_kind(batch), get_target("cpu")
    lowered = target.lower(mod, forms={"fc": "chain"})
    assert {has_blocks(f) for f in lowered.functions.values() if isinstance(f, PrimFunc)} == {
        False,
        True,
    }
    x = RNG.normal(size=(2, 3, 2, 5, 4))
    values = [tvm.runtime.tensor(v) for v in (x, *map(np.asarray, params_of(lowered).values()))]
    executables = [
        target.build(lowered),
        relax.build(
            lowered.without_attr(PARAMS),
            target.tvm_target,
            relax_pipeline=tvm.transform.Sequential(build_passes()),
        ),
    ]
    got = [relax.VirtualMachine(exe, tvm.cpu())["main"](*values).numpy() for exe in executables]
    np.testing.assert_array_equal(*got)
    np.testing.assert_allclose(got[0], run(mod, x), rtol=1e-11, atol=1e-12)


def test_what_comes_from_outside_is_checked_although_kernels_check_nothing() -> None:
    mod, target = every_kind(3), get_target("cpu")
    lowered = target.lower(mod)
    main = relax.VirtualMachine(target.build(lowered), tvm.cpu())["main"]
    weights = [tvm.runtime.tensor(np.asarray(v)) for v in params_of(lowered).values()]
    x = np.zeros((2, 3, 2, 5, 4))
    for shape, dtype in (
        ((2, 4, 2, 5, 4), "float64"),
        ((2, 3, 2, 5), "float64"),
        ((2, 3, 2, 5, 4), "float32"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=r"param\[0\]"):
            main(tvm.runtime.tensor(np.zeros(shape, dtype)), *weights)
    with pytest.raises((RuntimeError, ValueError), match=r"param\[1\]"):
        main(tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros(1)), *weights[1:])


def test_parts_do_not_depend_on_the_number_of_threads(monkeypatch) -> None:
    lowered, target = get_target("cpu").lower(every_kind(3)), get_target("cpu")
    parts = []
    for cores in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda n=cores: n)
        (first,) = target.build(lowered).mod.imports
        codes = [m.inspect_source("ll") for m in (first, *first.imports)]
        parts.append([re.findall(r"^define .*@__tvm_ffi_(\w+)\(", c, re.M) for c in codes])
    assert parts[0] == parts[1]
    # a part of one kernel has an entry "main" too, which nothing calls
    names = sorted(n for n in itertools.chain(*parts[0]) if n != "main")
    assert names == sorted(k.name for k in target.kernels(lowered))
    assert len(parts[0]) > 2
