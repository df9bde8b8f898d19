"""Lowered training programs against PyTorch's autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ttsnn.models import LIF, TTConv2d, TTLinear


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Time(nn.Module):
    """Layers on [T, N, C, H, W] that take [N, C, H, W]."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x.flatten(0, 1))
        return y.reshape(x.shape[0], x.shape[1], *y.shape[1:])


class Block(nn.Module):
    """A pre-activation residual block with a strided shortcut."""

    def __init__(self, first: nn.Module, second: nn.Module, cin: int, cout: int) -> None:
        super().__init__()
        self.lif1, self.lif2 = LIF(), LIF()
        self.conv1, self.bn1 = first, nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = second, nn.BatchNorm2d(cout)
        self.shortcut = Time(nn.Conv2d(cin, cout, 1, 2, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def norm(bn: nn.Module, y: torch.Tensor) -> torch.Tensor:
            return bn(y.flatten(0, 1)).reshape(y.shape)

        y = norm(self.bn1, self.conv1(self.lif1(x)))
        y = norm(self.bn2, self.conv2(self.lif2(y)))
        return y + self.shortcut(x)


def tt(cin: int, cout: int, mode: str, stride: int = 1, **more) -> TTConv2d:
    return TTConv2d(cin, cout, 3, min(5, cin), mode, stride=stride, padding=1, bias=False, **more)


@pytest.mark.parametrize(
    ("mode", "steps", "batch", "size"),
    [
        ("ptt", 4, 2, (8, 7)),
        ("ptt", 1, 1, (5, 6)),
        ("stt", 2, 3, (8, 7)),
        ("htt", 3, 1, (8, 7)),
    ],
)
def test_residual_block(tools, mode, steps, batch, size):
    torch.manual_seed(0)
    model = Block(tt(3, 9, mode, 2), tt(9, 9, mode), 3, 9).double()
    program = tools.check(model, 2 * inputs(steps, batch, 3, *size))
    assert all(k.scheduled for k in program.kernels)
    rules = {k.rule for k in program.kernels}
    assert {"weight_grad", "layer", "lif_backward", "batch_norm_dx"} <= rules


@pytest.mark.parametrize(
    ("mode", "stride", "padding", "dilation"),
    [
        ("stt", (2, 1), 1, 1),
        ("stt", 1, (2, 0), (2, 1)),
        ("ptt", (3, 2), 1, 1),
        ("ptt", 1, (2, 0), (2, 1)),
        ("htt", (2, 1), 1, (1, 2)),
    ],
)
def test_tt_conv(tools, mode, stride, padding, dilation):
    torch.manual_seed(1)
    kwargs = {"stride": stride, "padding": padding, "dilation": dilation, "bias": True}
    model = TTConv2d(4, 6, 3, (3, 4, 4) if mode == "stt" else 3, mode, **kwargs).double()
    tools.check(model, inputs(3, 2, 4, 9, 8))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        (3, 1, 1, 1, 1),
        (3, 2, 1, 1, 1),
        ((3, 2), (2, 3), (1, 0), (2, 1), 1),
        (1, 2, 0, 1, 1),
        (3, 1, 1, 1, 2),
    ],
)
def test_dense_conv(tools, kernel, stride, padding, dilation, groups):
    torch.manual_seed(2)
    conv = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups).double()
    tools.check(conv, inputs(3, 4, 9, 7))


@pytest.mark.parametrize(
    "neuron",
    [
        {},
        {"detach_reset": False},
        {"surrogate": "arctan"},
        {"surrogate": "sigmoid", "detach_reset": False},
        {"decay": 0.9, "reset": "soft", "detach_reset": False, "surrogate": "triangle"},
        {"reset": "none", "surrogate": "fast_sigmoid"},
        {"reset_timing": "before_decay", "surrogate": "erf", "detach_reset": False},
        {"reset": "soft", "reset_timing": "after_decay", "surrogate": "arctan"},
        {"tau": 2.0, "form": "euler", "v_reset": 0.1, "surrogate": "arctan"},
    ],
)
def test_neuron_after_batch_norm(tools, neuron):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.lif = Time(nn.BatchNorm2d(5)), LIF(**neuron)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lif(self.bn(x)) * x

    torch.manual_seed(3)
    tools.check(Model().double(), inputs(5, 2, 5, 3, 4))


def test_many_steps_without_batch_norm(tools):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = LIF(surrogate="arctan")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lif(x * x)

    tools.check(Model(), inputs(11, 1, 19, 2, 2))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1)])
def test_pools_and_head(tools, pool):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Time(nn.Conv2d(3, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7), pool)
            self.lif, self.head = LIF(surrogate="arctan"), nn.Linear(7, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.lif(self.body(x)) * self.body(x)
            return self.head(y.mean((3, 4))).mean(0)

    torch.manual_seed(4)
    tools.check(Model().double(), inputs(3, 2, 3, 6, 8))


@pytest.mark.parametrize(
    ("pool", "size"), [(nn.MaxPool2d(2), (3, 3)), (nn.MaxPool2d(3, 2, 1), (4, 3))]
)
def test_pooled_spikes(tools, pool, size):
    """Bytes, as what the next convolution reads."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif, self.last = LIF(), Time(pool, nn.Conv2d(3, 4, 3, padding=1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.lif(x)).mean((3, 4))

    torch.manual_seed(6)
    program = tools.check(Model().double(), 2 * inputs(3, 2, 3, 7, 6))
    values = [b.var.ty for b in program.lowered["forward"].body.blocks[0].bindings]
    spikes = [tuple(map(int, t.shape)) for t in values if str(getattr(t, "dtype", "")) == "uint8"]
    assert (1, 6, *size, 3) in spikes


def test_static_image(tools):
    """Its gradient is added up over time where it lies."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lif = nn.Conv2d(3, 5, 3, padding=1, bias=False), LIF()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return self.lif(y.unsqueeze(0).expand(4, *y.shape)).mean((3, 4))

    torch.manual_seed(7)
    program = tools.check(Model().double(), 2 * inputs(2, 3, 7, 6))
    names = [g.name_hint for g, _ in program.lowered.functions_items()]
    assert not any("collapse" in n for n in names)


def test_batch_norm_far_from_zero(tools):
    x = 1e4 + inputs(2, 3, 5, 5)
    tools.check(nn.BatchNorm2d(3).double(), x, tol=1e-7)


@pytest.mark.parametrize("batch", [1, 5])
def test_fully_connected(tools, batch):
    """Products with one column or row, rectifiers, a tensor train, on [T, N, features]."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 6))
            self.lif, self.train_of_cores = LIF(), TTLinear((3, 2), (5, 4), 3)
            self.narrow, self.head = nn.Linear(20, 1), nn.Linear(1, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.lif(2 * self.wide(x)) + x[..., :6]
            return self.head(torch.relu(self.narrow(self.train_of_cores(y)) + 1)).mean(0)

    torch.manual_seed(5)
    program = tools.check(Model().double(), inputs(3, batch, 12))
    assert all(k.scheduled for k in program.kernels)
    assert "matmul" not in {k.rule for k in program.kernels}
