"""LowerKernels: the same numbers as TVM's default pipeline, on every kind of kernel."""

import numpy as np
import pytest
import tvm
from tvm import relax

from ttsnn.ops import lif, tt_conv2d, tt_linear
from ttsnn.passes.cpu.lower_kernels import FLAT_RULES, KERNEL_PIPELINE
from ttsnn.passes.pipelines import build_passes
from ttsnn.program import PARAMS, params_of
from ttsnn.targets import get_target

from .tt_programs import program, run

RNG = np.random.default_rng(4)


def network(batch):
    """TT convolution and neuron, pooling, a TT linear layer by its cores, softmax."""
    shapes = {
        "conv.g1": (3, 2),
        "conv.g2": (3, 3, 3),
        "conv.g3": (3, 3, 3),
        "conv.g4": (6, 3),
        "fc.cores.0": (1, 3, 2, 2),
        "fc.cores.1": (2, 5, 3, 1),
    }
    params = {name: RNG.normal(size=shape) for name, shape in shapes.items()}

    def body(bb, x, w):
        y = bb.emit(tt_conv2d(x, *list(w.values())[:4], mode="ptt", padding=1))
        sizes = list(y.ty.shape.values)
        v0 = bb.emit(relax.op.zeros(sizes[1:], "float64"))
        s = bb.emit(relax.TupleGetItem(bb.emit(lif(y, v0, decay=0.25, v_threshold=0.3)), 0))
        y = bb.emit(relax.op.mean(s, [3, 4]))
        y = bb.emit(tt_linear(y, *list(w.values())[4:]))
        return bb.emit(relax.op.nn.softmax(y))

    return program((2, batch, 2, 5, 4), params, body)


@pytest.mark.parametrize("batch", [3, "n"])
def test_same_numbers_as_the_default_pipeline(batch) -> None:
    mod, target = network(batch), get_target("cpu")
    lowered = target.lower(mod, forms={"fc": "chain"})
    rules = {k.rule for k in target.kernels(lowered)}
    assert rules & FLAT_RULES
    assert rules - FLAT_RULES
    x = RNG.normal(size=(2, 3, 2, 5, 4))
    values = [tvm.runtime.tensor(v) for v in (x, *map(np.asarray, params_of(lowered).values()))]
    got = []
    for pipeline in (KERNEL_PIPELINE, "default"):
        exe = relax.build(
            lowered.without_attr(PARAMS),
            target.tvm_target,
            relax_pipeline=tvm.transform.Sequential(build_passes()),
            tir_pipeline=pipeline,
        )
        got.append(relax.VirtualMachine(exe, tvm.cpu())["main"](*values).numpy())
    np.testing.assert_array_equal(*got)
    np.testing.assert_allclose(got[0], run(mod, x), rtol=1e-11, atol=1e-12)
