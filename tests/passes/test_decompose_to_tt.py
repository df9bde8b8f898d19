"""DecomposeToTT against PyTorch's convolution with the weights that the cores stand for."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from tvm import relax

from ttsnn.errors import PassError, PlanError
from ttsnn.ops import tt_conv_attrs_of
from ttsnn.passes import DecomposeToTT, layer_infos
from ttsnn.passes.layer_calls import layer_calls
from ttsnn.plans import TTLayer, TTPlan, cores_of_layer, make_plan
from ttsnn.program import params_of
from ttsnn.tt import ConvCores, fit_conv, reconstruct_conv, reconstruct_linear

from .tt_programs import conv_layer, linear_layer, program, run

KERNELS = {"square": (3, 3), "tall": (5, 3)}


def conv_program(
    T, batch, kernel, stride, *, loop=False, dtype="float64", bias=True, dilation=1, seed=0
):
    """One convolution on every timestep, with T in the batch or as T calls; and its inputs."""
    rng = np.random.default_rng(seed)
    kh, kw = kernel
    params = {"net.conv.weight": rng.normal(size=(5, 4, kh, kw)).astype(dtype)}
    if bias:
        params["net.conv.bias"] = rng.normal(size=5).astype(dtype)
    size = (9, 7)
    pads = [dilation * (kh // 2), dilation * (kw // 2)]
    geometry = {"strides": stride, "padding": [*pads, *pads], "dilation": dilation}

    def body(bb, x, w):
        _, n, *image = x.ty.shape.values
        if loop:
            steps = relax.op.split(x, T, axis=0) if T > 1 else relax.Tuple([x])
            steps = bb.emit(steps)
            outs = []
            for t in range(T):
                frame = bb.emit(
                    relax.op.reshape(bb.emit(relax.TupleGetItem(steps, t)), [n, *image])
                )
                outs.append(conv_layer(bb, frame, w, "net.conv", **geometry))
            return relax.op.stack(outs, axis=0)
        y = bb.emit(relax.op.reshape(x, [T * n, *image]))
        y = conv_layer(bb, y, w, "net.conv", **geometry)
        return relax.op.reshape(y, [T, n, *y.ty.shape.values[1:]])

    mod = program((T, batch, 4, *size), params, body, T=T, dtype=dtype)
    x = rng.normal(size=(T, 2 if batch == "n" else batch, 4, *size)).astype(dtype)
    return mod, x, params, geometry


def expected(x, params, layer, T, geometry):
    """conv2d of PyTorch, step by step, with the reconstructed weights."""
    weight = params["net.conv.weight"]
    cores = fit_conv(weight, layer.mode, layer.ranks, timesteps=layer.timesteps, T=T)
    out = []
    for t, frame in enumerate(x):
        full = layer.mode != "htt" or t < layer.timesteps
        dense = reconstruct_conv(cores, layer.mode, full=full)
        out.append(
            F.conv2d(
                torch.tensor(frame),
                torch.tensor(dense, dtype=torch.tensor(frame).dtype),
                torch.tensor(params["net.conv.bias"]) if "net.conv.bias" in params else None,
                stride=geometry["strides"],
                padding=tuple(geometry["padding"][:2]),
                dilation=geometry["dilation"],
            ).numpy()
        )
    return np.stack(out)


def layer_of(mode, T, timesteps=None, rank=3):
    if mode == "htt" and timesteps is None:
        timesteps = (T + 1) // 2
    return TTLayer("conv2d", mode, (rank,) * 3, timesteps)


CASES = [
    *product(["stt", "ptt", "htt"], [3], ["n"], ["square"], [1, 2], [False]),
    *product(["stt", "ptt", "htt"], [1], [1], ["square"], [1, 2], [False]),
    *product(["stt", "ptt", "htt"], [2], [1], ["tall"], [2], [False]),
    *product(["stt", "ptt", "htt"], [3], [2], ["square"], [2], [True]),
    ("htt", 1, 1, "square", 1, True),
]


@pytest.mark.parametrize(("mode", "T", "batch", "kernel", "stride", "loop"), CASES)
def test_decomposed_program_equals_the_reconstructed_convolution(
    mode, T, batch, kernel, stride, loop
):
    mod, x, params, geometry = conv_program(T, batch, KERNELS[kernel], stride, loop=loop)
    layer = layer_of(mode, T)
    plan = TTPlan({"net.conv": layer}, T=T)
    out = run(DecomposeToTT(plan)(mod), x)
    want = expected(x, params, layer, T, geometry)
    assert out.shape == want.shape
    assert np.abs(out - want).max() <= 1e-10 * np.abs(want).max()


@pytest.mark.parametrize("timesteps", [0, 1, 3])
def test_every_number_of_full_timesteps(timesteps):
    mod, x, params, geometry = conv_program(3, 1, (3, 3), 1, bias=False)
    layer = layer_of("htt", 3, timesteps)
    out = run(DecomposeToTT(TTPlan({"net.conv": layer}, T=3))(mod), x)
    want = expected(x, params, layer, 3, geometry)
    assert np.abs(out - want).max() <= 1e-10 * np.abs(want).max()


def test_dilation_survives():
    mod, x, params, geometry = conv_program(2, 1, (3, 3), 1, dilation=2)
    for mode in ("stt", "ptt", "htt"):
        layer = layer_of(mode, 2)
        out = run(DecomposeToTT(TTPlan({"net.conv": layer}, T=2))(mod), x)
        want = expected(x, params, layer, 2, geometry)
        assert np.abs(out - want).max() <= 1e-10 * np.abs(want).max()


def test_parameters_change_with_the_layer():
    mod, _, params, _ = conv_program(2, "n", (3, 3), 1, dtype="float32")
    out = DecomposeToTT(TTPlan({"net.conv": layer_of("ptt", 2)}))(mod)
    new = params_of(out)
    assert list(new) == ["net.conv.bias", *(f"net.conv.g{k}" for k in (1, 2, 3, 4))]
    assert {v.dtype for v in new.values()} == {np.dtype("float32")}
    cores = fit_conv(params["net.conv.weight"], "ptt", 3).astype("float32")
    for k, core in enumerate(cores, start=1):
        assert np.array_equal(new[f"net.conv.g{k}"], core)
    # the module it came from is as it was
    assert list(params_of(mod)) == list(params)
    (call,) = layer_calls(out)["net.conv"]
    assert call.kind == "tt.conv2d"
    assert len(call.call.args[0].ty.shape.values) == 4


def test_looped_program_picks_the_chain_of_its_timestep():
    mod, *_ = conv_program(3, 1, (3, 3), 1, loop=True)
    out = DecomposeToTT(TTPlan({"net.conv": layer_of("htt", 3, 2)}, T=3))(mod)
    attrs = [tt_conv_attrs_of(c.call) for c in layer_calls(out)["net.conv"]]
    assert [(a.mode, a.timesteps) for a in attrs] == [("ptt", -1), ("ptt", -1), ("htt", 0)]
    assert len([n for n in params_of(out) if n.startswith("net.conv.g")]) == 4


def test_fresh_cores_are_those_of_the_plan_and_seed():
    mod, *_ = conv_program(2, 1, (3, 3), 1)
    layer = layer_of("stt", 2)
    got = params_of(DecomposeToTT(TTPlan({"net.conv": layer}), init="fresh", seed=5)(mod))
    want = cores_of_layer("net.conv", layer, np.zeros((5, 4, 3, 3)), init="fresh", seed=5)
    for key, core in want.items():
        assert np.array_equal(got[f"net.conv.{key}"], core)


@pytest.mark.parametrize("transposed", [True, False])
def test_linear_layers(transposed):
    rng = np.random.default_rng(0)
    params = {
        "fc1.weight": rng.normal(size=(12, 10) if transposed else (10, 12)),
        "fc1.bias": rng.normal(size=12),
        "head.weight": rng.normal(size=(3, 12)),
    }

    def body(bb, x, w):
        if transposed:
            y = linear_layer(bb, x, w, "fc1")
        else:
            y = bb.emit(relax.op.add(bb.emit(relax.op.matmul(x, w["fc1.weight"])), w["fc1.bias"]))
        return linear_layer(bb, y, w, "head")

    mod = program((2, "n", 10), params, body, T=2)
    plan = make_plan(layer_infos(mod), "rank=4", T=2)
    assert list(plan.layers) == ["fc1"]
    out = DecomposeToTT(plan)(mod)
    new = params_of(out)
    assert set(new) == {"fc1.bias", "fc1.cores.0", "fc1.cores.1", "head.weight"}
    w1 = reconstruct_linear([new["fc1.cores.0"], new["fc1.cores.1"]])
    x = rng.normal(size=(2, 3, 10))
    want = (x @ w1.T + params["fc1.bias"]) @ params["head.weight"].T
    assert np.abs(run(out, x) - want).max() <= 1e-10 * np.abs(want).max()


def test_layers_outside_the_plan_are_untouched():
    mod, *_ = conv_program(2, "n", (3, 3), 1)
    out = DecomposeToTT(TTPlan({}))(mod)
    tvm.ir.assert_structural_equal(
        out.without_attr("ttsnn.params"), mod.without_attr("ttsnn.params")
    )


def test_what_does_not_fit_is_refused():
    mod, *_ = conv_program(3, "n", (3, 3), 1)
    with pytest.raises(PlanError, match=r"'net.conf'.*did you mean 'net.conv'"):
        DecomposeToTT(TTPlan({"net.conf": layer_of("ptt", 3)}))(mod)
    with pytest.raises(PlanError, match="T = 4, the network has T = 3"):
        DecomposeToTT(TTPlan({"net.conv": layer_of("htt", 4)}, T=4))(mod)
    with pytest.raises(PlanError, match=r"'net.conv'.*use \[4, 5, 5\]"):
        DecomposeToTT(TTPlan({"net.conv": layer_of("ptt", 3, rank=7)}))(mod)
    # runs once a sample, on a batch that happens to be T
    once = program(
        (3, 4, 9, 7),
        {"net.conv.weight": np.ones((5, 4, 3, 3))},
        lambda bb, x, w: conv_layer(bb, x, w, "net.conv", padding=1),
        T=3,
    )
    with pytest.raises(PassError, match=r"'net.conv': htt needs to see 3 timesteps.*'ptt'"):
        DecomposeToTT(TTPlan({"net.conv": layer_of("htt", 3)}, T=3))(once)


def test_a_layer_used_twice_is_decomposed_twice_with_one_set_of_cores():
    rng = np.random.default_rng(0)
    params = {"c.weight": rng.normal(size=(4, 4, 3, 3))}

    def body(bb, x, w):
        return conv_layer(bb, conv_layer(bb, x, w, "c", padding=1), w, "c", padding=1)

    mod = program(("n", 4, 6, 5), params, body)
    out = DecomposeToTT(TTPlan({"c": layer_of("stt", 1)}))(mod)
    assert list(params_of(out)) == ["c.g1", "c.g2", "c.g3", "c.g4"]
    cores = ConvCores(*params_of(out).values())
    w = torch.tensor(reconstruct_conv(cores, "stt"))
    x = rng.normal(size=(1, 4, 6, 5))
    want = F.conv2d(F.conv2d(torch.tensor(x), w, padding=1), w, padding=1).numpy()
    assert np.abs(run(out, x) - want).max() <= 1e-10 * np.abs(want).max()
