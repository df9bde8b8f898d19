"""What layer_infos and count read off a program."""

import numpy as np
import pytest
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.passes import DecomposeToTT, count, layer_infos
from ttsnn.plans import LayerInfo, make_plan, network_cost

from .tt_programs import conv_layer, linear_layer, program

T = 3


def network(batch="n", *, loop=False, static=False):
    """conv, strided grouped conv, then per-step hidden linear, mean over time, head."""
    rng = np.random.default_rng(0)
    params = {
        "conv1.weight": rng.normal(size=(4, 3, 3, 3)),
        "conv1.bias": rng.normal(size=4),
        "conv2.weight": rng.normal(size=(6, 4, 3, 3)),
        "conv3.weight": rng.normal(size=(6, 3, 3, 3)),
        "fc.weight": rng.normal(size=(12, 6)),
        "fc.bias": rng.normal(size=12),
        "head.weight": rng.normal(size=(5, 12)),
    }

    def step(bb, y, w):
        y = conv_layer(bb, y, w, "conv1", padding=[1, 1, 1, 1])
        y = conv_layer(bb, y, w, "conv2", padding=[1, 1, 1, 1], strides=[2, 2])
        y = conv_layer(bb, y, w, "conv3", groups=2)
        y = bb.emit(relax.op.mean(y, [2, 3]))
        return linear_layer(bb, y, w, "fc")

    def body(bb, x, w):
        n = x.ty.shape.values[0 if static else 1]
        if static:
            x = bb.emit(relax.op.broadcast_to(x, [T, n, 3, 9, 7]))
        if loop:
            frames = bb.emit(relax.op.split(x, T, axis=0))
            items = [bb.emit(relax.TupleGetItem(frames, t)) for t in range(T)]
            images = [bb.emit(relax.op.reshape(f, [n, 3, 9, 7])) for f in items]
            y = bb.emit(relax.op.stack([step(bb, f, w) for f in images], axis=0))
        else:
            y = step(bb, bb.emit(relax.op.reshape(x, [T * n, 3, 9, 7])), w)
            y = bb.emit(relax.op.reshape(y, [T, n, 12]))
        return linear_layer(bb, bb.emit(relax.op.mean(y, [0])), w, "head")

    shape = (batch, 3, 9, 7) if static else (T, batch, 3, 9, 7)
    return program(shape, params, body, T=T), params


@pytest.mark.parametrize("batch", ["n", 1, 2])
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_layers_of_a_network(batch, loop, static):
    mod, params = network(batch, loop=loop, static=static)
    calls = T if loop else 1
    common = {"steps": T, "calls": calls}
    ones = (1, 1, 1, 1)
    assert layer_infos(mod) == [
        LayerInfo("conv1", "conv2d", (4, 3, 3, 3), (9, 7), bias=4, padding=ones, **common),
        LayerInfo("conv2", "conv2d", (6, 4, 3, 3), (5, 4), strides=(2, 2), padding=ones, **common),
        LayerInfo("conv3", "conv2d", (6, 3, 3, 3), (3, 2), groups=2, **common),
        LayerInfo("fc", "linear", (12, 6), bias=12, **common),
        LayerInfo("head", "linear", (5, 12)),
    ]
    for info in layer_infos(mod):
        assert np.array_equal(info.weight, params[f"{info.name}.weight"])


@pytest.mark.parametrize("loop", [False, True])
def test_count_of_a_dense_network(loop):
    cost = count(network(loop=loop)[0])
    assert cost.dense_params == cost.params == 108 + 4 + 216 + 162 + 72 + 12 + 60
    macs = 108 * 63 + 216 * 20 + 162 * 6 + 72
    assert cost.dense_flops == cost.flops == T * macs + 60


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
@pytest.mark.parametrize("loop", [False, True])
def test_count_of_a_decomposed_network_is_that_of_its_plan(mode, loop):
    mod, _ = network(loop=loop)
    infos = layer_infos(mod)
    plan = make_plan(infos, "rank=2", mode, T=T, timesteps=1 if mode == "htt" else None)
    assert list(plan.layers) == ["conv2", "fc"]
    out = DecomposeToTT(plan)(mod)
    cost, want = count(out), network_cost(infos, plan)
    assert cost.to_json() == want.to_json()
    assert [(c.info.name, c.flops, c.params) for c in cost.layers] == [
        (c.info.name, c.flops, c.params) for c in want.layers
    ]
    full = 4 * 2 + 6 * 4 + 2 * 6
    steps = {"stt": T * full, "ptt": T * full, "htt": full + (T - 1) * (4 * 2 + 2 * 6)}
    conv2 = cost.layers[1]
    assert conv2.flops == 20 * steps[mode]
    assert conv2.params == full
    assert [i.name for i in layer_infos(out)] == ["conv1", "conv3", "head"]


def test_a_batch_that_is_not_where_it_should_be_is_refused():
    params = {"c.weight": np.ones((2, 3, 1, 1))}

    def body(bb, x, w):
        y = bb.emit(relax.op.reshape(x, [3, 3, 5, 5]))
        return conv_layer(bb, y, w, "c")

    with pytest.raises(PassError, match=r"'c'.*not a multiple of the batch 9"):
        layer_infos(program((9, 5, 5, 1), params, body))
