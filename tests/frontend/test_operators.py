"""Every converter against PyTorch in float64, grouped so that a group is one compilation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Cases(nn.Module):
    """Several expressions of the same inputs, as one model with one output each."""

    def __init__(self, *fns):
        super().__init__()
        self.fns = fns

    def forward(self, *xs):
        return tuple(fn(*xs) for fn in self.fns)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def image():
    return randn(2, 4, 7, 9)


UNARY = [
    lambda x: x.abs(),
    lambda x: -x,
    lambda x: x.exp(),
    lambda x: (x.abs() + 0.1).log(),
    lambda x: x.abs().sqrt(),
    lambda x: (x.abs() + 0.1).rsqrt(),
    lambda x: x.sin() + x.cos() + x.tan(),
    lambda x: x.sigmoid(),
    lambda x: x.tanh(),
    lambda x: torch.atan(x),
    lambda x: x.floor() + x.ceil() * 3 + x.trunc() * 7,
    lambda x: torch.round(x * 2),
    lambda x: torch.round(torch.arange(-4, 5) * 0.5 + x.sum() * 0),
    lambda x: x.sign(),
    lambda x: x.square() + x**3 + x.abs() ** 0.5 + x.abs() ** 1.3 + 2.0**x,
    lambda x: 1 / (x + 9),
    lambda x: torch.reciprocal(x + 9),
    lambda x: torch.expm1(x) + torch.log1p(x.abs()) + torch.log2(x.abs() + 1),
    lambda x: F.relu(x),
    lambda x: F.relu6(x * 4),
    lambda x: F.silu(x),
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: F.leaky_relu(x, 0.2),
    lambda x: F.elu(x, 0.7),
    lambda x: F.softplus(x * 9),
    lambda x: F.hardtanh(x),
    lambda x: F.hardsigmoid(x) + F.hardswish(x),
    lambda x: F.softmax(x, 1),
    lambda x: F.log_softmax(x, -1),
    lambda x: x.clamp(-0.5, 0.3),
    lambda x: x.clamp(min=0.1) + x.clamp(max=0.2),
    lambda x: torch.clamp(x, torch.zeros_like(x), x.abs() * 0.5),
    lambda x: F.dropout(x, 0.5, False),
    lambda x: nn.functional.normalize(x, dim=1),
]


def test_unary(agree):
    agree(Cases(*UNARY), randn(3, 9))


BINARY = [
    lambda x, y: x + y,
    lambda x, y: torch.add(x, y, alpha=2),
    lambda x, y: torch.sub(x, y, alpha=0.3),
    lambda x, y: torch.rsub(x, y, alpha=0.3),
    lambda x, y: 2 - x,
    lambda x, y: x * y / (y.abs() + 1),
    lambda x, y: torch.maximum(x, y) - torch.minimum(x, y),
    lambda x, y: x // y,
    lambda x, y: torch.floor_divide(x, 0.1),
    lambda x, y: torch.full_like(x, 1.0) // 0.1,
    lambda x, y: torch.div(x, y, rounding_mode="floor"),
    lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    lambda x, y: torch.remainder(x, y) + x % 0.3,
    lambda x, y: torch.fmod(x, y),
    lambda x, y: torch.pow(x.abs(), y),
    lambda x, y: torch.atan2(x, y),
    lambda x, y: (x > y).double() + (x >= 0.1).double() * 2,
    lambda x, y: (x < y).float(),
    lambda x, y: (x <= y).to(x),
    lambda x, y: (x == y).int(),
    lambda x, y: x != y,
    lambda x, y: (x > 0) & (y > 0),
    lambda x, y: ((x > 0) | (y > 0)) ^ (x > 1),
    lambda x, y: torch.logical_and(x > 0, y) & torch.logical_not(x > 1),
    lambda x, y: torch.where(x > y, x, y * 2),
    lambda x, y: torch.where(x > 0, x, 0.5),
    lambda x, y: x.masked_fill(y > 0, -3.0),
    lambda x, y: (x > 0) * y,
    lambda x, y: (x * 10).long() // 3 + (x * 10).int() % 4,
    lambda x, y: (x * 10).long() / 4,
    lambda x, y: x.float() * 0.1,
    lambda x, y: x.float() + y,
    lambda x, y: (x > 0).sum(),
    lambda x, y: (
        torch.ones_like(x) + torch.zeros(3, 5, dtype=torch.float64) + x.new_full((5,), 0.3)
    ),
    lambda x, y: torch.arange(5, dtype=torch.float64) * x + torch.linspace(0, 1, 5).double(),
    lambda x, y: torch.tensor(0.1, dtype=torch.float64) * x,
    lambda x, y: x * torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64),
    lambda x, y: torch.lerp(x, y, 0.3),
]


def test_binary(agree):
    agree(Cases(*BINARY), randn(3, 5), randn(3, 5))


SHAPE = [
    lambda x: x.flatten(1),
    lambda x: x.flatten(0, 1).unflatten(0, (2, 4)),
    lambda x: x.permute(1, 0, 3, 2),
    lambda x: x.transpose(1, -1).contiguous().view(2, -1),
    lambda x: x.mT,
    lambda x: x.unsqueeze(0).expand(3, -1, -1, -1, -1),
    lambda x: x.unsqueeze(-1).squeeze(-1).squeeze(),
    lambda x: x.repeat(2, 1, 1, 3),
    lambda x: x.repeat(2, 1, 1, 1, 1),
    lambda x: x.tile(2),
    lambda x: x.repeat_interleave(2, dim=1),
    lambda x: torch.cat([x, x * 2, x[:, :1]], 1),
    lambda x: torch.stack([x, -x], 0),
    lambda x: torch.stack([x, -x], -1),
    lambda x: x.split(3, 2)[2],
    lambda x: x.split([1, 2, 1], 1)[1],
    lambda x: x.chunk(3, -1)[1],
    lambda x: x.unbind(1)[2],
    lambda x: x[1],
    lambda x: x[-1, 1:3, ::2, -4:-1],
    lambda x: x[..., None, 2:],
    lambda x: x.select(2, -2),
    lambda x: x.narrow(3, 2, 4),
    lambda x: x.index_select(1, torch.tensor([2, 0, 2])),
    lambda x: x[:, [3, 0, -1]],
    lambda x: x[torch.tensor([1, 0])],
    lambda x: torch.gather(x, 3, torch.zeros(2, 4, 7, 2, dtype=torch.long)),
    lambda x: x.flip(1, 3),
    lambda x: x.roll(2, 3),
    lambda x: x.roll((1, -3), (0, 2)),
    lambda x: F.pad(x, (1, 2, 0, 3)),
    lambda x: F.pad(x, (1, -2, -1, 3), value=0.5),
    lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"),
    lambda x: F.pad(x, (1, 2, 3, 1), mode="replicate"),
    lambda x: F.pad(x, (1, 2, 3, 1), mode="circular"),
    lambda x: x.tril() + x.triu(1),
    lambda x: F.pixel_shuffle(x, 2),
    lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.interpolate(x, size=(5, 20)),
    lambda x: F.interpolate(x, scale_factor=(1.7, 0.6)),
    lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    lambda x: F.interpolate(x, size=(5, 20), mode="bilinear", align_corners=True),
    lambda x: F.interpolate(x[0], scale_factor=3),
    lambda x: F.interpolate(x, size=(9, 4), mode="nearest-exact"),
]


def test_shape(agree):
    agree(Cases(*SHAPE), image())


def write_all(x):
    out = torch.zeros_like(x)
    v = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        v = 0.5 * v + x[t]
        out[t] = (v > 0.5).to(x)
    return out


def write_some(x):
    out = torch.ones_like(x)
    out[1] = x[0]
    out[-1, :, 2:4] = x[1, :, 2:4] * 3
    out[:, 0] = 7
    return out


def write_slice(x):
    out = x.clone()
    out[:, 1:3] = 0.25
    out[..., -1] += 1
    out[out > 1] = 1
    return out


def append(x):
    out = []
    for t in range(x.shape[0]):
        out.append(x[t] * t)
    return torch.stack(out).mean(0)


def test_writes(agree):
    agree(Cases(write_all, write_some, write_slice, append), randn(3, 4, 5))


REDUCE = [
    lambda x: x.sum(),
    lambda x: x.mean(),
    lambda x: x.sum((2, 3)),
    lambda x: x.mean((-1, -2), keepdim=True),
    lambda x: x.mean(0),
    lambda x: x.amax((1, 2)) + x.amin((1, 2)),
    lambda x: x.max(),
    lambda x: x.max(1)[0],
    lambda x: x.max(1)[1],
    lambda x: x.argmax(1),
    lambda x: x.argmin(-1, keepdim=True),
    lambda x: x.argmax(),
    lambda x: x.prod(1),
    lambda x: (x > 2).any(),
    lambda x: (x > 0).any(1),
    lambda x: (x > -1).all(2),
    lambda x: x.var((2, 3)),
    lambda x: x.std(1, unbiased=False),
    lambda x: x.cumsum(0),
    lambda x: x.norm(dim=1),
    lambda x: x.logsumexp(1),
]


def test_reductions(agree):
    agree(Cases(*REDUCE), image())


POOL = [
    lambda x: F.avg_pool2d(x, 2),
    lambda x: F.avg_pool2d(x, 3, 2, 1),
    lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    lambda x: F.avg_pool2d(x, (3, 2), (2, 3), ceil_mode=True),
    lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    lambda x: F.avg_pool2d(x[0], 2),
    lambda x: F.max_pool2d(x, 2),
    lambda x: F.max_pool2d(x, 3, 2, 1),
    lambda x: F.max_pool2d(x - 9, 3, 2, 1, ceil_mode=True),
    lambda x: F.max_pool2d(x - 9, 2, ceil_mode=True),
    lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    lambda x: F.max_pool2d(x[0], 2),
    lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: F.adaptive_avg_pool2d(x, (7, 3)),
    lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    lambda x: F.adaptive_max_pool2d(x, 1),
    lambda x: F.adaptive_max_pool2d(x, (3, 4)),
    lambda x: F.avg_pool1d(x[0], 3, 2, 1),
    lambda x: F.max_pool1d(x[0], 3, 2),
    lambda x: F.adaptive_avg_pool1d(x[0], 4),
    lambda x: F.avg_pool3d(x[:, None], 2),
    lambda x: F.max_pool3d(x[:, None], (1, 2, 2)),
    lambda x: F.adaptive_avg_pool3d(x[:, None], (4, 1, 1)),
    lambda x: F.adaptive_avg_pool3d(x[:, None], (None, 1, 1)),
]


def test_pooling(agree):
    agree(Cases(*POOL), image())


class Layers(nn.Module):
    """Layers side by side on one input; each has its own weights."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        for buffer in self.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.2, 2.0)
        for p in self.parameters():
            nn.init.normal_(p)
        self.double()

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


def test_convolutions(agree):
    agree(
        Layers(
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
            nn.Conv2d(4, 6, 3, padding=2, dilation=2),
            nn.Conv2d(4, 6, 3, groups=2),
            nn.Conv2d(4, 8, 3, groups=4, padding=1),
            nn.Conv2d(4, 6, 3, padding="same"),
            nn.Conv2d(4, 6, 4, padding="same"),
            nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
            nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
            nn.ConvTranspose2d(4, 6, 2, 2, bias=False),
            nn.ConvTranspose2d(4, 6, 3, groups=2),
            nn.ConvTranspose2d(4, 6, 3, 2, 2, dilation=2),
        ),
        image(),
    )


def test_convolutions_of_other_rank(agree):
    agree(
        Layers(
            nn.Conv1d(4, 6, 3, 2, 1),
            nn.Conv1d(4, 4, 3, groups=4, bias=False),
            nn.ConvTranspose1d(4, 6, 3, 2, 1, output_padding=1),
        ),
        randn(2, 4, 11),
    )
    agree(
        Layers(
            nn.Conv3d(2, 3, 3, padding=1),
            nn.Conv3d(2, 4, (1, 3, 2), stride=(1, 2, 1), groups=2),
            nn.ConvTranspose3d(2, 3, 2, 2),
        ),
        randn(2, 2, 3, 5, 4),
    )


def test_normalisation(agree):
    agree(
        Layers(
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4, affine=False, eps=1e-3),
            nn.GroupNorm(2, 4),
            nn.GroupNorm(1, 4, affine=False),
            nn.LayerNorm([7, 9]),
            nn.LayerNorm(9, elementwise_affine=False),
            nn.InstanceNorm2d(4, affine=True),
            nn.InstanceNorm2d(4),
            nn.InstanceNorm2d(4, track_running_stats=True),
        ),
        image(),
    )
    agree(Layers(nn.BatchNorm1d(5), nn.PReLU(5), nn.PReLU()), randn(3, 5))
    agree(Layers(nn.BatchNorm1d(5), nn.BatchNorm1d(5, affine=False)), randn(3, 5, 4))
    agree(Layers(nn.BatchNorm3d(2)), randn(2, 2, 3, 4, 5))


def test_products(agree):
    agree(Layers(nn.Linear(5, 7), nn.Linear(5, 3, bias=False)), randn(2, 3, 5))
    agree(Layers(nn.Linear(5, 7), nn.Identity()), randn(5))
    agree(
        Cases(
            lambda x, y: x @ y.transpose(1, 2),
            lambda x, y: torch.bmm(x, y.mT),
            lambda x, y: x[0] @ y[0].t(),
            lambda x, y: torch.einsum("bij,bkj->bik", x, y),
            lambda x, y: torch.einsum("bij,bij->b", x, y),
            lambda x, y: x[0] @ y[0, 0],
            lambda x, y: torch.dot(x[0, 0], y[0, 0]),
            lambda x, y: torch.addmm(x[0] @ y[0].t(), x[0], y[0].t(), beta=0.5, alpha=2),
            lambda x, y: torch.baddbmm(x @ y.mT, x, y.mT, alpha=0.1),
            lambda x, y: torch.outer(x[0, 0], y[0, 0]),
            lambda x, y: F.scaled_dot_product_attention(x, y, y),
        ),
        randn(2, 3, 5),
        randn(2, 3, 5),
    )


def test_embedding_takes_integers(agree):
    agree(nn.Embedding(7, 4).double(), torch.tensor([[1, 0], [6, 3]]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_constants_keep_their_dtype(agree, dynamic):
    mod = agree(
        Cases(lambda x: x * 0.1 + 1 / 3, lambda x: x > 1 / 3), randn(2, 3), dynamic_batch=dynamic
    )
    assert "float32" not in mod.without_attr("ttsnn.params").script()


def test_float32(agree):
    layer = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.Flatten())
    mod = agree(layer, torch.randn(2, 4, 5, 5), atol=1e-5)
    assert "float64" not in mod.without_attr("ttsnn.params").script()


def test_dynamic_batch_through_many_operators(agree):
    class Net(nn.Module):
        def forward(self, x):
            y = x.unsqueeze(0).expand(3, -1, -1, -1, -1)
            n = x.shape[0]
            z = y.reshape(3 * n, 4, -1).view(3, n, 4, 7, 9)
            out = torch.zeros(3, n, 4)
            for t in range(3):
                out[t] = F.avg_pool2d(z[t], 3, 2, 1).mean((2, 3)) * t
            pieces = torch.cat([out, out[:1]], 0).permute(1, 0, 2).reshape(n, -1)
            return pieces, x[:, 1:3].flip(1), x.new_zeros(n, 2) + 1, torch.stack([x, x], 1)[:, 0]

    for batch in (1, 2, 5):
        agree(Net(), torch.randn(batch, 4, 7, 9), atol=1e-6, dynamic_batch=True)
