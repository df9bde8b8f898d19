"""relax.tt.linear against the dense weight put together by NumPy, gradients against PyTorch."""

import numpy as np
import pytest
import torch
from tvm import relax

import ttsnn.ops
from ttsnn.errors import PassError

RNG = np.random.default_rng(5)
SHAPES = {
    "one core": [(1, 4, 6, 1)],
    "two": [(1, 2, 3, 4), (4, 5, 2, 1)],
    "three": [(1, 2, 3, 2), (2, 1, 4, 5), (5, 3, 2, 1)],
    "four, rank 1": [(1, 2, 2, 1), (1, 3, 1, 1), (1, 1, 2, 1), (1, 2, 2, 1)],
}


def cores(name, dtype="float64"):
    return {f"c{i}": RNG.normal(size=s).astype(dtype) for i, s in enumerate(SHAPES[name])}


def dense(gs):
    """Weight entry by entry: W[(m…), (n…)] = Π G_k[:, m_k, n_k, :]."""
    ms, ns = [g.shape[1] for g in gs], [g.shape[2] for g in gs]
    w = np.zeros((int(np.prod(ms)), int(np.prod(ns))))
    for row, m in enumerate(np.ndindex(*ms)):
        for col, n in enumerate(np.ndindex(*ns)):
            p = np.eye(1)
            for g, i, j in zip(gs, m, n):
                p = p @ g[:, i, j, :]
            w[row, col] = p[0, 0]
    return w


def torch_dense(gs):
    """The same weight by torch, two cores at a time."""
    w = gs[0]
    for g in gs[1:]:
        w = torch.einsum("aMNb,bmnc->aMmNnc", w, g).flatten(3, 4).flatten(1, 2)
    return w[0, :, :, 0]


@pytest.mark.parametrize(
    ("name", "lead"), [("one core", ()), ("two", (2, 1)), ("three", (3,)), ("four, rank 1", (1,))]
)
def test_equals_the_dense_product_and_its_gradients_equal_autograd(harness, name, lead):
    gs = cores(name)
    w = dense(list(gs.values()))
    a = {"x": RNG.normal(size=(*lead, w.shape[1]))} | gs
    t = {k: torch.tensor(v, requires_grad=True) for k, v in a.items()}
    out = t["x"] @ torch_dense([t[k] for k in gs]).T
    a["dy"] = RNG.normal(size=out.shape)
    (out * torch.tensor(a["dy"])).sum().backward()

    def both(bb, *v):
        y, grads = ttsnn.ops.tt_linear(*v[:-1]), ttsnn.ops.tt_linear_backward(*v)
        return relax.Tuple([bb.emit(y), bb.emit(grads)])

    batch = {"x": len(lead) - 1, "dy": len(lead) - 1} if lead else None
    y, *grads = harness.eval(both, a, batch)
    np.testing.assert_allclose(y, a["x"] @ w.T, rtol=1e-12, atol=1e-12)
    for key, grad in zip(t, grads, strict=True):
        np.testing.assert_allclose(grad, t[key].grad, rtol=1e-12, atol=1e-12, err_msg=key)


def test_through_the_gradient_pass(harness):
    gs = cores("two")
    a = {"x": RNG.normal(size=(3, 6))} | gs
    t = {k: torch.tensor(v, requires_grad=True) for k, v in a.items()}
    (t["x"] @ torch_dense([t[k] for k in gs]).T).sin().sum().backward()

    def loss(bb, *v):
        return relax.op.sum(bb.emit(relax.op.sin(bb.emit(ttsnn.ops.tt_linear(*v)))))

    for key, grad in harness.grads(loss, a, list(a)).items():
        np.testing.assert_allclose(grad, t[key].grad, rtol=1e-12, atol=1e-12, err_msg=key)


def test_float32(harness):
    gs = cores("three", "float32")
    a = {"x": RNG.normal(size=(4, 24)).astype("float32")} | gs
    (got,) = harness.eval(lambda bb, *v: ttsnn.ops.tt_linear(*v), a)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, a["x"] @ dense(list(gs.values())).T, rtol=1e-4, atol=1e-4)


def var(shape, dtype="float32"):
    return relax.Var("v", relax.TensorType(shape, dtype))


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ([var([2, 6])], r"takes x and at least one core"),
        ([var([2, 7]), var([1, 4, 6, 1])], r"x \[2, 7\] has 7 features, the cores take 6 = 6"),
        ([var([2, 6]), var([4, 6])], r"core 0 must be \[r, m, n, r'\], got \[4, 6\]"),
        (
            [var([2, 6]), var([1, 2, 3, 4]), var([3, 2, 2, 1])],
            r"core 0 \[1, 2, 3, 4\] ends with 4, core 1 \[3, 2, 2, 1\] starts with 3",
        ),
        ([var([2, 6]), var([2, 4, 6, 1])], r"first rank of core 0 \[2, 4, 6, 1\] .* must be 1"),
        ([var([2, 6]), var([1, 4, 6, 1], "float64")], r"core 0 .* float64 but x .* float32"),
        ([var([2, 6], "float16"), var([1, 4, 6, 1], "float16")], r"dtype float16; cast it"),
    ],
)
def test_wrong_operands_name_op_shapes_and_cure(operands, message):
    with pytest.raises(PassError, match="relax.tt.linear: .*" + message):
        ttsnn.ops.tt_linear(*operands)
