"""The rule for matrix products, on what Relax legalises matmul to."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from ttsnn.passes.cpu.rules.matmul import matmul_rule

HASWELL = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})


def legalised(shapes, dtype, symbolic=False, op=None):
    """The PrimFunc of ``op`` (default: matmul) over operands of these shapes."""
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64")
    params = []
    for i, shape in enumerate(shapes):
        shape = (n, *shape[1:]) if symbolic and i == 0 else shape
        params.append(relax.Var(f"a{i}", relax.TensorType(shape, dtype)))
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder.emit((op or relax.op.matmul)(*params)))
        builder.emit_func_output(out)
    mod = relax.transform.LegalizeOps()(builder.get())
    (func,) = (f for gv, f in mod.functions_items() if gv.name_hint != "main")
    return func


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((8, 64), (64, 10)),
        ((1, 33), (33, 101)),
        ((5, 7), (7, 1)),
        ((3, 16, 12), (12, 48)),
        ((3, 8, 12), (3, 12, 20)),
        ((3, 4, 12), (12, 3)),  # tiles of rows must not straddle the batch axes
        ((3, 2, 2, 12), (12, 3)),
        ((7, 13), (13, 37)),
    ],
)
@pytest.mark.parametrize("symbolic", [False, True])
def test_products(a, b, dtype, symbolic):
    if symbolic and len(b) == 3:
        pytest.skip("both operands would have the batch")
    func = legalised((a, b), dtype, symbolic)
    sch = matmul_rule(func, HASWELL)
    assert sch is not None
    lib = tvm.compile(
        tvm.IRModule({"f": sch.mod["main"].with_attr("global_symbol", "f")}), target=HASWELL
    )
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal(a).astype(dtype), rng.standard_normal(b).astype(dtype)
    want = x @ w
    out = tvm.runtime.tensor(np.full_like(want, np.nan))
    lib["f"](tvm.runtime.tensor(x), tvm.runtime.tensor(w), out)
    tol = 1e-12 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(out.numpy(), want, rtol=tol, atol=tol)


def test_leaves_the_rest_alone():
    assert matmul_rule(legalised(((3, 4), (3, 4)), "float32", op=relax.op.add), HASWELL) is None
    total = legalised(((3, 4),), "float32", op=lambda x: relax.op.sum(x, axis=1))
    assert matmul_rule(total, HASWELL) is None
