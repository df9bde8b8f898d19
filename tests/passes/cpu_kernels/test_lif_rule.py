"""The standalone neuron's kernel against a NumPy loop over T."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from ttsnn.lif_attrs import LifAttrs
from ttsnn.ops import lif
from ttsnn.passes.cpu.rules.lif import lif_rule

from .oracle import lif_numpy

HASWELL = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})


def kernel(shape, steps, attrs, dtype, symbolic, operands):
    """The legalised neuron, scheduled by the rule."""
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64") if symbolic else shape[0]
    x = relax.Var("x", relax.TensorType((steps, n, *shape[1:]), dtype))
    v = relax.Var("v", relax.TensorType((n, *shape[1:]), dtype))
    extra = {k: relax.Var(k, relax.TensorType(a.shape, dtype)) for k, a in operands.items()}
    with builder.function("main", [x, v, *extra.values()]):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(lif(x, v, **extra, **attrs)))
        builder.emit_func_output(out)
    mod = relax.transform.LegalizeOps()(builder.get())
    (func,) = (f for gv, f in mod.functions_items() if gv.name_hint != "main")
    assert lif_rule(func.without_attr("ttsnn.lif"), HASWELL) is None
    return lif_rule(func, HASWELL).mod["main"].with_attr("global_symbol", "lif")


def check(shape, steps, attrs=None, dtype="float64", symbolic=False, operands=None):
    attrs, operands = attrs or {}, operands or {}
    rng = np.random.default_rng(1)
    x = rng.standard_normal((steps, *shape)).astype(dtype)
    v0 = rng.standard_normal(shape).astype(dtype)
    operands = {k: np.asarray(a, dtype) for k, a in operands.items()}
    func = kernel(shape, steps, attrs, dtype, symbolic, operands)
    lib = tvm.compile(tvm.IRModule({"lif": func}), target=HASWELL)
    out = [tvm.runtime.tensor(np.full_like(a, np.nan)) for a in (x, v0)]
    lib["lif"](*map(tvm.runtime.tensor, (x, v0, *operands.values())), *out)
    settings = LifAttrs(**attrs)
    for k, a in operands.items():
        object.__setattr__(settings, k, a)
        if k == "decay" and settings.form != "multiply":
            object.__setattr__(settings, "tau", 1 / a)
    spikes, last = lif_numpy(settings, x, v0)
    tol = 1e-13 if dtype == "float64" else 1e-5
    np.testing.assert_array_equal(out[0].numpy(), spikes)
    np.testing.assert_allclose(out[1].numpy(), last, rtol=tol, atol=tol)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7, 5), (1, 5, 33, 33)])
@pytest.mark.parametrize("symbolic", [False, True])
def test_shapes(shape, symbolic):
    check(shape, 3, symbolic=symbolic)


@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("timing", ["after_fire", "before_decay", "after_decay"])
@pytest.mark.parametrize("form", ["multiply", "euler", "euler_raw_input"])
def test_settings(reset, timing, form):
    attrs = {"decay": 0.6, "gain": 1.5, "tau": 2.5, "v_threshold": 0.4, "v_reset": 0.125}
    attrs |= {"fire": ">=", "reset": reset, "reset_timing": timing, "form": form}
    check((2, 37), 4, attrs)


@pytest.mark.parametrize("operand", [[0.5], np.full((3, 1, 1), [[[0.3]], [[0.5]], [[0.8]]])])
@pytest.mark.parametrize("name", ["decay", "v_threshold"])
@pytest.mark.parametrize("form", ["multiply", "euler"])
def test_tensor_operands(operand, name, form):
    check((2, 3, 5, 7), 3, {"form": form}, operands={name: operand})


def test_operand_like_the_membrane_and_both_operands():
    full = np.random.default_rng(2).uniform(0.2, 0.8, (2, 3, 5))
    check((2, 3, 5), 3, operands={"decay": full, "v_threshold": full[:1, :, :1]})


def test_float32_one_step():
    check((4, 50), 1, dtype="float32")
