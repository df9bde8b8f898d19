"""Rules for kernels that are no layer, on the emulated GPU against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from ttsnn.passes import pipelines
from ttsnn.passes.cuda.rules import RULES
from ttsnn.passes.schedule_kernels import ScheduleKernels

from .emulated import emulated, run

SIZES = [(33, 7, 1), (1, 7, 33), (6, 1, 5), (70, 3, 40)]

AFTER = {
    "nothing": (lambda y, c, m: y, lambda y, c, m: y),
    "difference": (lambda y, c, m: relax.op.subtract(c, y), lambda y, c, m: c - y),
    # truth values beside a product: the gradient of a rectifier
    "choice": (
        lambda y, c, m: relax.op.where(m, c, y),
        lambda y, c, m: np.where(m, c, y),
    ),
}


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_products(after, batch):
    """Products of matrices that fill no block, batches of them, what follows fused or not."""
    emit, want = AFTER[after]
    rng = np.random.default_rng(0)
    bb, params, arrays, expected = relax.BlockBuilder(), [], [], []
    for i, (m, k, n) in enumerate(SIZES):
        for name, shape, dtype in (
            ("a", (*batch, m, k), "float32"),
            ("b", (*batch, k, n), "float32"),
            ("c", (*batch, m, n), "float32"),
            ("mask", (*batch, m, n), "bool"),
        ):
            params.append(relax.Var(f"{name}{i}", relax.TensorType(shape, dtype)))
            arrays.append((rng.standard_normal(shape) * 2).astype("float32"))
            arrays[-1] = arrays[-1] > 0 if dtype == "bool" else arrays[-1]
        a, b, c, mask = arrays[-4:]
        expected.append(want(a @ b, c, mask))
    with bb.function("main", params, {"num_input": len(params)}):
        with bb.dataflow():
            outs = []
            for i in range(0, len(params), 4):
                a, b, c, mask = params[i : i + 4]
                outs.append(bb.emit(emit(bb.emit(relax.op.matmul(a, b)), c, mask)))
            out = bb.emit_output(relax.Tuple(outs))
        bb.emit_func_output(out)
    target = emulated()
    passes = [*pipelines.operator_passes(), ScheduleKernels(RULES, target.tvm_target)]
    found = run(target, tvm.transform.Sequential(passes)(bb.get()), arrays)
    for got, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5)
