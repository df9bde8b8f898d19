"""Registered gradients against PyTorch's, through the importer, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ttsnn.errors import PassError
from ttsnn.frontend import import_model
from ttsnn.passes.training import build_autograd

POSITIVE = {"rsqrt"}
SINGLE = {"erf", "gelu"}

CASES = {
    "slice": lambda x: x[:, 1:3, ::2],
    "slice_end": lambda x: x[..., -3:] * 2,
    "slice_step": lambda x: x[:, :, 1::3] * x[:, :, :3],
    "select": lambda x: x[1] * x[-1],
    "stack": lambda x: torch.stack([x[0], x[1] * x[0], x[2]], 1),
    "squeeze": lambda x: (x.unsqueeze(1) * x.unsqueeze(1)).squeeze(1),
    "flatten": lambda x: x.flatten(1) * x.reshape(3, -1),
    "flip": lambda x: x.flip(1) * x,
    "repeat": lambda x: x.repeat_interleave(3, 1) ** 2,
    "tile": lambda x: x.repeat(2, 1, 2) ** 2,
    "tile_rank": lambda x: x.repeat(2, 3, 1, 1) ** 2,
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=1.5) ** 2,
    "pad_crop": lambda x: F.pad(x, (1, -2)) ** 2,
    "take": lambda x: x[:, torch.tensor([[0, 0, 3], [1, 4, 1]])] ** 2,
    "take_line": lambda x: x[torch.tensor([2, 0, 2, 2])] ** 2,
    "clamp": lambda x: x.clamp(-0.5, 0.7) * x,
    "square": lambda x: torch.square(x),
    "rsqrt": lambda x: torch.rsqrt(x),
    "erf": lambda x: torch.erf(x),  # the importer has erf in float32 only
    "tan": lambda x: torch.tan(x * 0.3),
    "sinh": lambda x: torch.sinh(x),
    "cosh": lambda x: torch.cosh(x),
    "atan": lambda x: torch.atan(x),
    "asin": lambda x: torch.asin(x * 0.1),
    "acos": lambda x: torch.acos(x * 0.1),
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x),
    "softplus": lambda x: F.softplus(x),
    "silu": lambda x: F.silu(x),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "adaptive_pool": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_pool_1": lambda x: F.adaptive_avg_pool2d(x, 1),
    "avg_pool": lambda x: F.avg_pool2d(x, 2, 2, 1),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True) ** 2,
    "matmul": lambda x: x @ x.transpose(1, 2),
    "mean": lambda x: x.mean((0, 2)) ** 2,
}


class Function(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


@pytest.mark.parametrize("name", CASES)
def test_gradient(tools, name):
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.abs() + 0.1 if name in POSITIVE else x
    if name in SINGLE:
        tools.check_vjp(Function(CASES[name]), x.float(), tol=2e-6)
    else:
        tools.check_vjp(Function(CASES[name]), x)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "kernel"),
    [
        (1, 1, 1, 1, 3),
        (2, (1, 0), (2, 1), 1, (3, 2)),
        ((2, 3), 2, 2, 2, 3),
        (1, (0, 3), (1, 3), 4, (1, 3)),
        (3, 0, 1, 1, 2),
    ],
)
def test_conv2d(tools, stride, padding, dilation, groups, kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups).double()
    tools.check_vjp(conv, torch.randn(2, 4, 9, 11, dtype=torch.float64))


def test_max_pool_of_spikes(tools):
    """Ties go to the first element of a window, as in PyTorch."""
    x = torch.bernoulli(torch.full((2, 3, 7, 8), 0.5, dtype=torch.float64))
    tools.check_vjp(nn.MaxPool2d(2, ceil_mode=True), x)


def test_zero_gradients_are_refused():
    class Spike(nn.Linear):
        def forward(self, x):
            return (super().forward(x) > 0.5).to(x.dtype)

    with pytest.raises(PassError, match=r"weight.*cast"):
        build_autograd(import_model(Spike(3, 2), example=torch.zeros(2, 3)))
