"""ByteSpikes: where spikes become bytes, and that results stay the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from ttsnn.passes.layers import layer_call, layer_config_of
from ttsnn.passes.layers.byte_spikes import ByteSpikes
from ttsnn.passes.static_values import op_name
from ttsnn.program import PARAMS

from .cpu_kernels.oracle import POINT, SQUARE, chain, layer, random_operands

HOST = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})
BIG = layer(chain((4, 4), (3, 6), (SQUARE,)), bias=False, emit=("membrane", "spikes"))
POINTWISE = layer(chain((4, 4), (6, 5), (POINT,)), bias=False)
POOLED = layer(chain((2, 2), (6, 5), (POINT,)), bias=False)


def network(build, first=BIG):
    """``main`` with a first layer; ``build(bb, membrane, spikes, parameter)`` makes results."""
    bb = relax.BlockBuilder()
    operands = random_operands(first, 2)
    x = relax.Var("x", relax.TensorType(operands["x"].shape, "float64"))
    values, params = [operands["x"]], [x]

    def parameter(value):
        params.append(relax.Var(f"p{len(params)}", relax.TensorType(value.shape, "float64")))
        values.append(value)
        return params[-1]

    w = parameter(operands["w0"])
    with bb.function("main"):
        with bb.dataflow():
            out = bb.emit(layer_call(first, [x, w]))
            membrane, spikes = (bb.emit(relax.TupleGetItem(out, i)) for i in range(2))
            gv = bb.emit_output(relax.Tuple(build(bb, membrane, spikes, parameter)))
        bb.emit_func_output(gv, params)
    mod = bb.get()
    mod["main"] = mod["main"].with_attr("num_input", len(params))
    return mod.with_attr(PARAMS, {}), values


def layers(mod):
    block = mod["main"].body.blocks[0]
    calls = [b.value for b in block.bindings if op_name(b.value) == "relax.snn.layer"]
    return [layer_config_of(c) for c in calls]


def run(mod, values):
    with HOST:
        exe = tvm.compile(mod.without_attr(PARAMS), target=HOST)
    out = relax.VirtualMachine(exe, tvm.cpu())["main"](*map(tvm.runtime.tensor, values))
    return [v.numpy() for v in out]


def conv(bb, config, x, parameter, *more):
    w = parameter(random_operands(config, 2, seed=1)["w0"])
    return bb.emit(layer_call(config, [x, w, *more]))


def to_a_layer(bb, membrane, spikes, parameter):
    return [membrane, conv(bb, POINTWISE, spikes, parameter)]


def to_a_layer_and_a_mean(bb, membrane, spikes, parameter):
    return [bb.emit(relax.op.mean(spikes, [2, 3])), conv(bb, POINTWISE, spikes, parameter), spikes]


def through_a_pool(bb, membrane, spikes, parameter):
    flat = bb.emit(relax.op.reshape(spikes, (6, 4, 4, 6)))
    flat = bb.emit(relax.op.nn.max_pool2d(flat, (2, 2), (2, 2), layout="NHWC"))
    return [conv(bb, POOLED, bb.emit(relax.op.reshape(flat, (3, 2, 2, 2, 6))), parameter)]


def to_a_mean(bb, membrane, spikes, parameter):
    return [bb.emit(relax.op.mean(spikes, [2, 3]))]


def as_residual(bb, membrane, spikes, parameter):
    config = layer(chain((4, 4), (6, 6), (POINT,)), bias=False, residual=True)
    return [conv(bb, config, spikes, parameter, spikes)]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (to_a_layer, True),
        (to_a_layer_and_a_mean, True),
        (through_a_pool, True),
        (to_a_mean, False),
        (as_residual, False),
    ],
)
def test_bytes_where_a_convolution_reads_spikes(build, expected):
    mod, values = network(build)
    after = ByteSpikes()(mod)
    first, *others = layers(after)
    assert first.byte_spikes is expected
    assert all(c.byte_x is expected and not c.byte_spikes for c in others)
    assert relax.analysis.check_well_formed(after)
    want = run(mod, values)
    assert np.ptp(want[-1]) > 0  # some spikes, not all
    for a, b in zip(run(after, values), want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
