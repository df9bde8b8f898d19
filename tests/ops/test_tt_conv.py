"""relax.tt.conv2d against PyTorch's dense convolution with the reconstructed weight."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tvm import relax

import ttsnn.ops
from ttsnn.errors import PassError

RNG = np.random.default_rng(11)
NAMES = ("x", "g1", "g2", "g3", "g4")


def make(mode, x, ranks=(2, 3, 4), cout=5, kernel=(3, 3), dtype="float64"):
    """Input and cores; ptt takes the first and the last rank, htt the first alone."""
    r1, r2, r3 = {"stt": ranks, "ptt": (ranks[0], ranks[0], ranks[2]), "htt": (ranks[0],) * 3}[mode]
    into3 = r2 if mode == "stt" else r1
    out2 = r2 if mode == "stt" else r3
    shapes = [x, (r1, x[-3]), (out2, r1, kernel[0]), (r3, into3, kernel[1]), (cout, r3)]
    return {n: RNG.normal(size=s).astype(dtype) for n, s in zip(NAMES, shapes)}


def weights(g1, g2, g3, g4, mode):
    """Dense weight of the full timesteps, and of htt's others (None elsewhere)."""
    if mode == "stt":
        return torch.einsum("oc,cbx,bay,ai->oiyx", g4, g3, g2, g1), None
    cy, cx = g2.shape[2] // 2, g3.shape[2] // 2
    full = torch.zeros(g4.shape[0], g1.shape[1], g2.shape[2], g3.shape[2], dtype=g1.dtype)
    half = full.clone()
    full[:, :, :, cx] += 0.5 * torch.einsum("ob,bay,ai->oiy", g4, g2, g1)
    full[:, :, cy, :] += 0.5 * torch.einsum("ob,bax,ai->oix", g4, g3, g1)
    if mode == "htt":
        half[:, :, cy, cx] += g4 @ g1
    return full, half


def dense(a, mode, timesteps, strides, padding, dilation):
    """The oracle: pad, then PyTorch's convolution, timestep by timestep."""
    full, half = weights(*(a[n] for n in NAMES[1:]), mode)
    top, left, bottom, right = padding
    x = F.pad(a["x"], (left, right, top, bottom))
    x = x if x.ndim == 5 else x[None]
    steps = len(x) if timesteps in (None, -1) else timesteps
    out = [
        F.conv2d(x_t, full if t < steps else half, stride=strides, dilation=dilation)
        for t, x_t in enumerate(x)
    ]
    return torch.stack(out) if a["x"].ndim == 5 else out[0]


STEM = {"strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "kernel": (3, 3)}
CASES = {
    "same": STEM,
    "stride 2": STEM | {"strides": (2, 2)},
    "stride (2, 1)": STEM | {"strides": (2, 1)},
    "valid": STEM | {"padding": (0, 0, 0, 0)},
    "uneven padding": STEM | {"padding": (0, 2, 1, 3), "strides": (1, 2)},
    "dilation": STEM | {"dilation": (2, 3), "padding": (2, 3, 2, 3)},
    "dilation, stride, little padding": STEM | {"dilation": (3, 2), "strides": (2, 3)},
    "1×3": STEM | {"kernel": (1, 3), "padding": (0, 1, 0, 1)},
    "5×3, stride 2": STEM | {"kernel": (5, 3), "padding": (2, 1, 2, 1), "strides": (2, 2)},
    "1×1, stride 2": STEM | {"kernel": (1, 1), "padding": (0, 0, 0, 0), "strides": (2, 2)},
    "stride beyond the kernel": STEM | {"strides": (4, 5), "padding": (0, 0, 0, 0)},
}
QUICK = ("stride (2, 1)", "dilation, stride, little padding", "5×3, stride 2")
SHAPES = {"stt": (2, 3, 7, 9), "ptt": (2, 1, 3, 9, 7), "htt": (3, 2, 3, 8, 7)}


def setting(case, mode):
    s = dict(CASES[case])
    return s.pop("kernel"), s | {"timesteps": 2 if mode == "htt" else None}


def check(harness, a, mode, attrs, batch=None):
    """Forward and backward operator against PyTorch."""
    t = {k: torch.tensor(v, requires_grad=True) for k, v in a.items()}
    out = dense(t, mode, **attrs)
    dy = RNG.normal(size=out.shape)
    (out * torch.tensor(dy)).sum().backward()
    steps = -1 if attrs["timesteps"] is None else attrs["timesteps"]
    own = ttsnn.ops.TTConvAttrs(mode, **attrs | {"timesteps": steps})

    def both(bb, *v):
        y = bb.emit(ttsnn.ops.tt_conv2d(*v[:5], mode=mode, **attrs))
        return relax.Tuple([y, bb.emit(ttsnn.ops.tt_conv2d_backward(*v, own))])

    y, *grads = harness.eval(both, a | {"dy": dy}, batch)
    assert y.shape == out.shape
    np.testing.assert_allclose(y, out.detach(), rtol=1e-12, atol=1e-12)
    for name, grad in zip(NAMES, grads, strict=True):
        want = torch.zeros_like(t[name]) if t[name].grad is None else t[name].grad
        np.testing.assert_allclose(grad, want, rtol=1e-12, atol=2e-12, err_msg=name)


@pytest.mark.parametrize("mode", SHAPES)
@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_equals_the_dense_convolution_and_its_gradient(harness, case, mode):
    kernel, attrs = setting(case, mode)
    check(harness, make(mode, SHAPES[mode], kernel=kernel), mode, attrs)


@pytest.mark.parametrize("timesteps", [0, 1, None])
def test_htt_with_any_number_of_full_steps(harness, timesteps):
    attrs = CASES["stride 2"] | {"timesteps": timesteps}
    del attrs["kernel"]
    check(harness, make("htt", (2, 1, 2, 5, 5)), "htt", attrs)


@pytest.mark.parametrize("mode", ["stt", "htt"])
def test_symbolic_batch(harness, mode):
    _, attrs = setting("stride (2, 1)", mode)
    a = make(mode, (3, 2, 3, 5, 4))
    check(harness, a, mode, attrs, {"x": 1, "dy": 1})


@pytest.mark.parametrize("mode", SHAPES)
def test_through_the_gradient_pass(harness, mode):
    _, attrs = setting("stride 2", mode)
    a = make(mode, (3, 1, 2, 5, 4))
    t = {k: torch.tensor(v, requires_grad=True) for k, v in a.items()}
    dense(t, mode, **attrs).square().sum().backward()

    def loss(bb, *v):
        y = bb.emit(ttsnn.ops.tt_conv2d(*v, mode=mode, **attrs))
        return relax.op.sum(bb.emit(relax.op.multiply(y, y)))

    for name, grad in harness.grads(loss, a, NAMES).items():
        np.testing.assert_allclose(grad, t[name].grad, rtol=1e-11, atol=1e-11, err_msg=name)


def test_float32(harness):
    a = make("ptt", (2, 1, 3, 5, 5), dtype="float32")
    _, attrs = setting("same", "ptt")
    (got,) = harness.eval(lambda bb, *v: ttsnn.ops.tt_conv2d(*v, mode="ptt", **attrs), a)
    want = dense({k: torch.tensor(v) for k, v in a.items()}, "ptt", **attrs)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def var(name, shape, dtype="float32"):
    return relax.Var(name, relax.TensorType(shape, dtype))


GOOD = {
    "x": var("x", [4, 2, 3, 8, 8]),
    "g1": var("g1", [5, 3]),
    "g2": var("g2", [5, 5, 3]),
    "g3": var("g3", [5, 5, 3]),
    "g4": var("g4", [6, 5]),
}


@pytest.mark.parametrize(
    ("change", "attrs", "message"),
    [
        ({"x": var("x", [2, 8, 8])}, {}, r"x must be \[T, N, C, H, W\] or .*got \[2, 8, 8\]"),
        ({"x": var("x", [2, 3, 8, 8])}, {"mode": "htt"}, r"x must be \[T, N, C, H, W\] in mode"),
        ({"x": var("x", [4, 2, 4, 8, 8])}, {}, r"has 4 channels, core g1 \[5, 3\] takes 3"),
        ({"g2": var("g2", [5, 5])}, {}, r"core g2 must be \[r2, r1, Kh\], got \[5, 5\]"),
        ({"g2": var("g2", [7, 5, 3])}, {}, r"g3 \[5, 5, 3\] has 5 on axis 1, g2 \[7, 5, 3\] has 7"),
        ({"g2": var("g2", [7, 5, 3])}, {"mode": "ptt"}, r"g3 .* has 5 on axis 0, g2 \[7, 5, 3\]"),
        ({"g4": var("g4", [6, 4])}, {"mode": "ptt"}, r"g4 \[6, 4\] has 4 on axis 1"),
        ({"g2": var("g2", [5, 5, 4])}, {"mode": "ptt"}, r"centre tap.*4×3; use odd sizes"),
        ({"g1": var("g1", [5, 3], "float64")}, {}, r"g1 \[5, 3\] has dtype float64 but x"),
        ({"x": var("x", [4, 2, 3, 8, 8], "uint8")}, {}, r"dtype uint8; cast it"),
        ({}, {"mode": "tucker"}, r"unknown mode 'tucker'; use one of stt, ptt, htt"),
        ({}, {"mode": "htt", "timesteps": 5}, r"timesteps 5 is more than x .* has \(4\)"),
        ({}, {"mode": "ptt", "timesteps": 2}, r"timesteps 2 is for mode 'htt'"),
        ({}, {"mode": "htt", "timesteps": -2}, r"timesteps must be -1 \(all\) or at least 0"),
        ({}, {"strides": (0, 1)}, r"strides \[0, 1\] must be at least 1"),
        ({}, {"strides": (1, 1, 1)}, r"strides \[1, 1, 1\] must have 2 entries"),
        ({}, {"padding": (1, -1)}, r"padding \[1, -1, 1, -1\] must not be negative"),
        ({}, {"dilation": 9}, r"kernel 3×3 with dilation \[9, 9\] does not fit into x"),
    ],
)
def test_wrong_operands_name_op_shapes_and_cure(change, attrs, message):
    with pytest.raises(PassError, match=r"relax.tt.conv2d: .*" + message):
        ttsnn.ops.tt_conv2d(*(GOOD | change).values(), **attrs)


def test_wrong_gradient_shape():
    dy = var("dy", [4, 2, 6, 8, 8])
    attrs = ttsnn.ops.TTConvAttrs("ptt")
    with pytest.raises(PassError, match=r"dy \[4, 2, 6, 8, 8\] must have .* \[4, 2, 6, 6, 6\]"):
        ttsnn.ops.tt_conv2d_backward(*GOOD.values(), dy, attrs)
