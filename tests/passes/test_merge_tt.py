"""MergeTT: the dense program equals the tensor-train program and PyTorch."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.ops import tt_conv2d, tt_linear
from ttsnn.passes import DecomposeToTT, MergeTT, layer_infos
from ttsnn.passes.layer_calls import layer_calls
from ttsnn.plans import make_plan
from ttsnn.program import params_of

from .tt_programs import conv_layer, linear_layer, program, run


def chain(mode, T, batch, *, timesteps=-1, stride=1, padding=1, kernel=(3, 3), seed=0):
    """A program with one tt.conv2d on [T, N, …] and random cores."""
    rng = np.random.default_rng(seed)
    kh, kw = kernel
    params = {
        "c.g1": rng.normal(size=(3, 4)),
        "c.g2": rng.normal(size=(3, 3, kh)),
        "c.g3": rng.normal(size=(3, 3, kw)),
        "c.g4": rng.normal(size=(5, 3)),
    }

    def body(bb, x, w):
        return tt_conv2d(
            x,
            *w.values(),
            mode=mode,
            timesteps=None if mode != "htt" else timesteps,
            strides=stride,
            padding=padding,
        )

    x = rng.normal(size=(T, 2 if batch == "n" else batch, 4, 9, 7))
    return program((T, batch, 4, 9, 7), params, body), x, params


def dense_weights(params, mode):
    """(full weight, weight of htt's other steps) by loops over the taps."""
    g1, g2, g3, g4 = params.values()
    kh, kw = g2.shape[2], g3.shape[2]
    w = np.zeros((5, 4, kh, kw))
    half = np.zeros_like(w)
    half[:, :, kh // 2, kw // 2] = g4 @ g1
    for y, x in product(range(kh), range(kw)):
        if mode == "stt":
            w[:, :, y, x] = g4 @ g3[:, :, x] @ g2[:, :, y] @ g1
        else:
            column = g2[:, :, y] if x == kw // 2 else 0 * g2[:, :, y]
            row = g3[:, :, x] if y == kh // 2 else 0 * g3[:, :, x]
            w[:, :, y, x] = g4 @ (0.5 * (column + row)) @ g1
    return w, half


CASES = [
    ("stt", 2, "n", -1, 1, 1, (3, 3)),
    ("ptt", 2, "n", -1, 2, 1, (3, 3)),
    ("ptt", 1, 1, -1, 1, (2, 1), (5, 3)),
    ("htt", 3, "n", 2, 1, 1, (3, 3)),
    ("htt", 3, 1, 1, 2, 1, (3, 3)),
    ("htt", 2, 1, 1, 2, (2, 1), (5, 3)),
    ("htt", 2, 1, 1, 1, 0, (3, 3)),  # centre tap without padding: not the 1×1 convolution
    ("htt", 2, 2, 0, 1, 1, (3, 3)),
    ("htt", 2, 2, -1, 1, 1, (3, 3)),
    ("htt", 1, 1, 1, 1, 1, (3, 3)),
]


@pytest.mark.parametrize(("mode", "T", "batch", "timesteps", "stride", "padding", "kernel"), CASES)
def test_merged_program_equals_the_chain_and_pytorch(
    mode, T, batch, timesteps, stride, padding, kernel
):
    mod, x, params = chain(
        mode, T, batch, timesteps=timesteps, stride=stride, padding=padding, kernel=kernel
    )
    merged = MergeTT()(mod)
    assert {c.kind for calls in layer_calls(merged).values() for c in calls} == {"conv2d"}
    full, half = (torch.tensor(w) for w in dense_weights(params, mode))
    count = T if timesteps < 0 else timesteps
    want = np.stack(
        [
            F.conv2d(
                torch.tensor(frame), full if t < count else half, stride=stride, padding=padding
            ).numpy()
            for t, frame in enumerate(x)
        ]
    )
    out = run(merged, x)
    assert np.abs(out - want).max() <= 1e-10 * np.abs(want).max()
    assert np.abs(out - run(mod, x)).max() <= 1e-10 * np.abs(want).max()


def test_parameters_of_both_kinds_of_timestep():
    merged = MergeTT()(chain("htt", 3, "n", timesteps=2)[0])
    assert {n: v.shape for n, v in params_of(merged).items()} == {
        "c.weight": (5, 4, 3, 3),
        "c.weight_half": (5, 4, 1, 1),
    }
    assert list(params_of(MergeTT()(chain("htt", 3, 1, timesteps=3)[0]))) == ["c.weight"]
    assert list(params_of(MergeTT()(chain("htt", 3, 1, timesteps=0)[0]))) == ["c.weight_half"]


def test_merging_undoes_a_full_rank_decomposition():
    rng = np.random.default_rng(0)
    params = {
        "stem.weight": rng.normal(size=(4, 3, 3, 3)),
        "conv.weight": rng.normal(size=(6, 4, 3, 3)),
        "conv.bias": rng.normal(size=6),
        "fc.weight": rng.normal(size=(12, 6)),
        "fc.bias": rng.normal(size=12),
        "head.weight": rng.normal(size=(5, 12)),
    }

    def body(bb, x, w):
        y = conv_layer(bb, x, w, "stem", padding=1)
        y = conv_layer(bb, y, w, "conv", padding=1, strides=2)
        y = bb.emit(relax.op.mean(y, [2, 3]))
        return linear_layer(bb, linear_layer(bb, y, w, "fc"), w, "head")

    mod = program(("n", 3, 7, 5), params, body, T=1)
    plan = make_plan(layer_infos(mod), "rank=99", "stt", T=1)
    assert list(plan.layers) == ["conv", "fc"]
    merged = params_of(MergeTT()(DecomposeToTT(plan)(mod)))
    assert set(merged) == set(params)
    for name, value in merged.items():
        assert np.abs(value - params[name]).max() <= 1e-10


def test_float32_weights_are_rounded_once():
    _, _, params = chain("ptt", 2, 1)
    single = {n: v.astype("float32") for n, v in params.items()}

    def body(bb, x, w):
        return tt_conv2d(x, *w.values(), mode="ptt", padding=1)

    merged = params_of(MergeTT()(program((2, 1, 4, 9, 7), single, body, dtype="float32")))
    full, _ = dense_weights({n: v.astype("float64") for n, v in single.items()}, "ptt")
    assert merged["c.weight"].dtype == np.float32
    assert np.abs(merged["c.weight"] - full).max() <= 2**-23 * np.abs(full).max()


def test_programs_without_tensor_trains_are_untouched():
    params = {"c.weight": np.ones((2, 3, 3, 3))}
    mod = program((1, 3, 5, 5), params, lambda bb, x, w: conv_layer(bb, x, w, "c"))
    assert list(params_of(MergeTT()(mod))) == ["c.weight"]


def test_cores_that_are_computed_at_run_time_are_refused():
    params = {"fc.cores.0": np.ones((1, 3, 4, 1))}

    def body(bb, x, w):
        # the second core comes from the input
        core = bb.emit(relax.op.reshape(x, [1, 1, 1, 1]))
        y = bb.emit(relax.op.broadcast_to(x, [2, 4]))
        return tt_linear(y, w["fc.cores.0"], core)

    with pytest.raises(PassError, match=r"'fc'.*computed at run time"):
        MergeTT()(program((1, 1), params, body))
