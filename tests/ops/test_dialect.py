"""The dialect as part of Relax: printing, parsing, generic passes, registration, surrogates."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.ir import Op

import ttsnn.ops
from ttsnn.errors import PassError, TTSNNError
from ttsnn.lif_attrs import SURROGATES, surrogate
from ttsnn.ops.legalize_lif import lif_kernel

RNG = np.random.default_rng(3)
ARRAYS = {
    "x": RNG.normal(size=(3, 2, 2, 5, 5)),
    "v0": RNG.normal(size=(2, 4, 3, 3)),
    "th": RNG.uniform(0.2, 0.6, (4, 1, 1)),
    "g1": RNG.normal(size=(3, 2)),
    "g2": RNG.normal(size=(3, 3, 3)),
    "g3": RNG.normal(size=(3, 3, 3)),
    "g4": RNG.normal(size=(4, 3)),
    "c0": RNG.normal(size=(1, 2, 3, 2)),
    "c1": RNG.normal(size=(2, 3, 1, 1)),
}
BATCH = {"x": 1, "v0": 0}


def network(bb, x, v0, th, g1, g2, g3, g4, c0, c1):
    """Every operator, one value computed twice and one that nothing uses."""

    def conv():
        return bb.emit(
            ttsnn.ops.tt_conv2d(x, g1, g2, g3, g4, mode="htt", timesteps=1, strides=2, padding=1)
        )

    y, again = conv(), conv()
    lif = bb.emit(ttsnn.ops.lif(y, v0, v_threshold=th, decay=0.1 + 0.2))
    bb.emit(ttsnn.ops.lif(again, v0))
    z = bb.emit(ttsnn.ops.tt_linear(bb.emit(lif[0]), c0, c1))
    attrs = ttsnn.ops.TTConvAttrs("htt", 1, (2, 2), (1, 1, 1, 1))
    back = bb.emit(ttsnn.ops.tt_conv2d_backward(x, g1, g2, g3, g4, again, attrs))
    lif_attrs = {"threshold_operand": True, "decay": 0.1 + 0.2}
    dlif = bb.emit(ttsnn.ops.lif_backward(y, v0, th, y, v0, **lif_attrs))
    dz = bb.emit(ttsnn.ops.tt_linear_backward(y, c0, c1, z))
    return relax.Tuple([z, back, dlif, dz])


def calls(mod):
    found = []
    relax.analysis.post_order_visit(
        mod["main"],
        lambda e: (
            found.append(e.op.name) if isinstance(e, relax.Call) and isinstance(e.op, Op) else None
        ),
    )
    return [n for n in found if n.startswith(("relax.snn", "relax.tt"))]


def test_prints_and_parses_back(harness):
    mod = harness.build(network, ARRAYS, BATCH)
    text = mod.script()
    assert "R.snn.lif(" in text
    assert "R.tt.conv2d(" in text
    assert "decay=0.30000000000000004" in text
    tvm.ir.assert_structural_equal(tvm.script.from_source(text), mod)


def test_survives_generic_passes_with_the_same_numbers(harness):
    mod = harness.build(network, ARRAYS, BATCH)
    want = harness.run(mod, list(ARRAYS.values()))
    assert sorted(calls(mod)) == sorted(
        ["relax.tt.conv2d"] * 2 + ["relax.snn.lif"] * 2
        + ["relax.tt.linear", "relax.tt.conv2d_backward", "relax.snn.lif_backward"]
        + ["relax.tt.linear_backward"]
    )  # fmt: skip
    passes = [
        relax.transform.CanonicalizeBindings(),
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.FoldConstant(),
        relax.transform.DeadCodeElimination(),
        relax.transform.Normalize(),
    ]
    for p in passes:
        mod = p(mod)
        assert relax.analysis.check_well_formed(mod)
    # one convolution was a repetition, one neuron was dead
    assert calls(mod).count("relax.tt.conv2d") == 1
    assert calls(mod).count("relax.snn.lif") == 1
    for a, b in zip(harness.run(mod, list(ARRAYS.values())), want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_constant_operands_survive_folding(harness):
    arrays = {"x": ARRAYS["x"]}
    rest = [relax.const(v, str(v.dtype)) for k, v in ARRAYS.items() if k != "x"]
    mod = harness.build(lambda bb, x: network(bb, x, *rest), arrays)
    alive = relax.transform.DeadCodeElimination()(mod)
    tvm.ir.assert_structural_equal(relax.transform.FoldConstant()(mod), alive)


def test_legalisation_leaves_no_call_of_the_dialect(harness):
    mod = relax.transform.LegalizeOps()(harness.build(network, ARRAYS, BATCH))
    assert relax.analysis.check_well_formed(mod)
    assert calls(mod) == []


def test_errors_keep_their_class_through_tvm():
    x = relax.Var("x", relax.TensorType([2, 3], "float32"))
    v0 = relax.Var("v0", relax.TensorType([4], "float32"))
    call = relax.Call(Op.get("relax.snn.lif"), [x, v0])
    with pytest.raises(PassError, match=r"relax.snn.lif: v0 \[4\].*x \[2, 3\]"):
        relax.BlockBuilder().normalize(call)
    call = relax.Call(Op.get("relax.snn.lif"), [x, v0], {"fire": ">>"})
    with pytest.raises(TTSNNError, match="unknown fire '>>'"):
        relax.BlockBuilder().normalize(call)
    call = relax.Call(Op.get("relax.tt.conv2d"), [x, v0])
    with pytest.raises(PassError, match=r"takes 5 operands \(x, g1, g2, g3, g4\), got 2"):
        relax.BlockBuilder().normalize(call)


def test_operands_that_are_no_tensors():
    pair = relax.Var("p", relax.TupleType([relax.TensorType([2], "float32")]))
    unknown = relax.Var("u", relax.TensorType(dtype="float32"))
    op = Op.get("relax.snn.lif")
    with pytest.raises(PassError, match="operand x must be a tensor"):
        relax.BlockBuilder().normalize(relax.Call(op, [pair, unknown]))
    with pytest.raises(PassError, match="operand x has no known rank"):
        relax.BlockBuilder().normalize(relax.Call(op, [unknown, unknown]))


def test_unknown_shapes_pass_inference_but_give_no_kernel():
    x = relax.Var("x", relax.TensorType(dtype="float32", ndim=3))
    v0 = relax.Var("v0", relax.TensorType(dtype="float32", ndim=2))
    call = relax.BlockBuilder().normalize(ttsnn.ops.lif(x, v0))
    assert [f.ndim for f in call.ty.fields] == [3, 2]
    with pytest.raises(PassError, match=r"needs the shape of x \[\?, \?, \?\]; .*match_cast"):
        lif_kernel(call)


def test_registering_again_changes_nothing():
    code = (
        "import importlib, ttsnn.ops, ttsnn.ops.neuron as m, ttsnn.ops.gradients as g\n"
        "for x in (m, g, ttsnn.ops): importlib.reload(x)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_agree_in_numpy_and_torch(name):
    u = np.linspace(-3, 3, 600)
    got = surrogate(name, u, 0.7, np)
    np.testing.assert_allclose(
        surrogate(name, torch.tensor(u), 0.7, torch).numpy(), got, rtol=1e-14
    )
    np.testing.assert_allclose(got, got[::-1], atol=1e-12)
    assert got.max() == got[300]
    assert got.min() >= 0
    u = np.linspace(-2000, 2000, 4_000_001)
    area = np.trapezoid(surrogate(name, u, 0.7, np), u)
    assert area == pytest.approx(2 * 0.7 if name == "fast_sigmoid" else 1.0, abs=1e-3)


def test_unknown_surrogate():
    with pytest.raises(TTSNNError, match="unknown surrogate 'relu'; use one of rectangle"):
        surrogate("relu", np.zeros(1), 1.0, np)
