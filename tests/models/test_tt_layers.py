"""Tensor-train layers against dense layers with the weight that their cores stand for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ttsnn.errors import ModelImportError, PlanError
from ttsnn.models import TTConv2d, TTLinear, tt_conv2d, tt_linear

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def dense_weight(cores, mode: str, full: bool = True) -> torch.Tensor:
    """[Cout, Cin, Kh, Kw] by summing products of core slices, tap by tap."""
    g1, g2, g3, g4 = cores
    kh, kw = g2.shape[2], g3.shape[2]
    w = torch.zeros(g4.shape[0], g1.shape[1], kh, kw, dtype=g1.dtype)
    for i, j in itertools.product(range(kh), range(kw)):
        if mode == "stt":
            w[:, :, i, j] = g4 @ g3[:, :, j] @ g2[:, :, i] @ g1
        elif not full:
            w[:, :, i, j] = g4 @ g1 if (i, j) == (kh // 2, kw // 2) else 0
        else:
            if j == kw // 2:
                w[:, :, i, j] += 0.5 * g4 @ g2[:, :, i] @ g1
            if i == kh // 2:
                w[:, :, i, j] += 0.5 * g4 @ g3[:, :, j] @ g1
    return w


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
        ((5, 5), (2, 1), (2, 2, 2, 2), (1, 1)),
        ((1, 3), (1, 2), (0, 1, 0, 1), (1, 1)),
        ((3, 1), (1, 1), (1, 0, 1, 0), (1, 1)),
        ((3, 5), (1, 1), (0, 0, 0, 0), (1, 1)),  # no padding: the branches crop
        ((3, 3), (2, 2), (0, 1, 2, 3), (1, 1)),  # different on every side
        ((3, 3), (1, 2), (2, 2, 2, 2), (2, 2)),
        ((3, 3), (1, 1), (1, 2, 1, 2), (2, 1)),
    ],
)
def test_conv_equals_dense(mode, kernel, stride, padding, dilation) -> None:
    steps, full = 3, 2
    layer = TTConv2d(
        3,
        7,
        kernel,
        2 if mode == "htt" or 1 in kernel else (2, 3, 3),
        mode,
        stride=stride,
        padding=padding,
        dilation=dilation,
        timesteps=full if mode == "htt" else None,
        T=steps,
    ).double()
    with torch.no_grad():
        layer.bias.copy_(draw(1, 7))
    x = draw(2, steps, 2, 3, 9, 7)
    top, left, bottom, right = padding
    expected = []
    for t in range(steps):
        weight = dense_weight(
            (layer.g1, layer.g2, layer.g3, layer.g4), mode, mode != "htt" or t < full
        )
        padded = F.pad(x[t], (left, right, top, bottom))
        expected.append(F.conv2d(padded, weight, layer.bias, stride, 0, dilation))
    expected = torch.stack(expected)
    assert expected.abs().min() > 0
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    folded = layer(x.flatten(0, 1))
    torch.testing.assert_close(folded, expected.flatten(0, 1), rtol=1e-12, atol=1e-12)
    stepwise = torch.stack([layer.step(x[t], t, steps) for t in range(steps)])
    torch.testing.assert_close(stepwise, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_conv_gradients_in_eager_and_of_the_operator(mode) -> None:
    layer = TTConv2d(3, 4, 3, 2, mode, stride=2, padding=1, bias=False, timesteps=1).double()
    cores = [layer.g1, layer.g2, layer.g3, layer.g4]
    x = draw(3, 3, 2, 3, 5, 6).requires_grad_()
    attrs = {
        "mode": mode,
        "timesteps": 1,
        "strides": [2, 2],
        "padding": [1, 1, 1, 1],
        "dilation": [1, 1],
    }
    g = draw(4, *layer(x).shape)
    full = 3 if mode != "htt" else 1
    expected_y = torch.stack(
        [F.conv2d(x[t], dense_weight(cores, mode, t < full), None, 2, 1) for t in range(3)]
    )
    expected = torch.autograd.grad(expected_y, [x, *cores], g)
    for fn in (tt_conv2d, torch.ops.ttsnn.tt_conv2d):
        got = torch.autograd.grad(fn(x, *cores, **attrs), [x, *cores], g)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    torch.library.opcheck(torch.ops.ttsnn.tt_conv2d.default, (x, *cores), attrs, test_utils=CHECKS)


def test_channels_last_stays_channels_last() -> None:
    layer = TTConv2d(8, 8, 3, 4, "ptt", padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x.contiguous()))


@pytest.mark.parametrize(
    ("m", "n", "ranks"),
    [((2, 3), (4, 5), (3,)), ((2, 2, 3), (3, 2, 2), (2, 4)), ((6,), (5,), ()), ((1, 7), (6, 1), 2)],
)
@pytest.mark.parametrize("lead", [(4,), (3, 2), ()])
def test_linear_equals_dense(m, n, ranks, lead) -> None:
    layer = TTLinear(n, m, ranks).double()
    with torch.no_grad():
        layer.bias.copy_(draw(5, int(np.prod(m))))
    weight = torch.zeros(int(np.prod(m)), int(np.prod(n)), dtype=torch.float64)
    for row, out_index in enumerate(np.ndindex(*m)):
        for column, in_index in enumerate(np.ndindex(*n)):
            product = torch.eye(1, dtype=torch.float64)
            for core, i, j in zip(layer.cores, out_index, in_index, strict=True):
                product = product @ core[:, i, j, :]
            weight[row, column] = product[0, 0]
    x = draw(6, *lead, int(np.prod(n))).requires_grad_()
    expected = F.linear(x, weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    cores = list(layer.cores)
    g = draw(7, *expected.shape)
    wanted = torch.autograd.grad(expected, [x, *cores], g)
    for fn in (tt_linear, torch.ops.ttsnn.tt_linear):
        got = torch.autograd.grad(fn(x, cores), [x, *cores], g)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert [k for k in layer.state_dict() if "cores" in k] == [f"cores.{i}" for i in range(len(m))]


def test_linear_operator_is_registered_soundly() -> None:
    layer = TTLinear((4, 5), (2, 3), 2).double()
    cores = [c.detach().requires_grad_() for c in layer.cores]
    torch.library.opcheck(
        torch.ops.ttsnn.tt_linear.default, (draw(8, 3, 20), cores), test_utils=CHECKS
    )


@pytest.mark.parametrize(
    ("mode", "dtype"), [("stt", torch.float32), ("ptt", torch.float64), ("htt", torch.float32)]
)
def test_export_keeps_one_node_each(mode, dtype) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = TTConv2d(2, 6, 3, 2, mode, padding=1, stride=2, timesteps=1)
            self.head = TTLinear((6, 4), (5, 2), 3)

        def forward(self, x):
            return self.head(self.conv(x).flatten(2))

    net = Net().to(dtype).eval()
    x = draw(9, 3, 2, 2, 4, 4).to(dtype)
    n = torch.export.Dim("n")
    program = torch.export.export(net, (x,), dynamic_shapes=({1: n},)).run_decompositions()
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("ttsnn.tt_conv2d.default") == 1
    assert targets.count("ttsnn.tt_linear.default") == 1
    assert "aten.convolution.default" not in targets
    wide = draw(10, 3, 5, 2, 4, 4).to(dtype)
    torch.testing.assert_close(program.module()(wide), net(wide))


def test_fresh_layers_keep_the_scale_and_follow_the_seed() -> None:
    torch.manual_seed(3)
    first = TTConv2d(32, 32, 3, 16, "ptt", padding=1)
    torch.manual_seed(3)
    second = TTConv2d(32, 32, 3, 16, "ptt", padding=1)
    assert torch.equal(first.g2, second.g2)
    assert not torch.equal(first.g2, TTConv2d(32, 32, 3, 16, "ptt", padding=1).g2)
    variance = float(first(torch.randn(8, 32, 10, 10)).detach().var())
    assert 0.5 < variance < 6.0  # He initialisation gives 2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: TTConv2d(3, 4, 2, 2), PlanError, "even"),
        (lambda: TTConv2d(3, 4, 3, 9), PlanError, "ranks"),
        (lambda: TTConv2d(3, 4, 3, 2, "qtt"), PlanError, "qtt"),
        (lambda: TTConv2d(3, 4, 3, 2, padding="reflect"), ModelImportError, "reflect"),
        (lambda: TTConv2d(3, 4, 3, 2, padding=(1, 1, 1)), ModelImportError, "padding"),
        (lambda: TTConv2d(3, 4, 3, 2)(torch.zeros(1, 5, 8, 8)), ModelImportError, "5 channels"),
        (lambda: TTConv2d(3, 4, 3, 2)(torch.zeros(3, 8, 8)), ModelImportError, "T, N, C, H, W"),
        (lambda: TTConv2d(3, 4, 3, 2, "htt")(torch.zeros(4, 3, 8, 8)), ModelImportError, "T"),
        (lambda: TTLinear((2, 3), (2, 2), 2)(torch.zeros(1, 7)), ModelImportError, "7 features"),
        (lambda: TTLinear((2, 3), (2,), 2), PlanError, "factors"),
    ],
)
def test_bad_input_is_named(call, error, words) -> None:
    with pytest.raises(error, match=words):
        call()
