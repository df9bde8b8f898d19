"""Whole steps against PyTorch: losses, optimizers, clipping, statistics, the two halves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ttsnn.errors import PassError
from ttsnn.frontend import import_model
from ttsnn.models import LIF
from ttsnn.models.resnet import MSResNet
from ttsnn.models.vgg import SpikingMLP
from ttsnn.passes.training import (
    SGD,
    Adam,
    AdamW,
    CrossEntropy,
    TETLoss,
    build_gradients,
    build_train_step,
    build_update,
)


def mlp(T=2, seed=0):
    torch.manual_seed(seed)
    return SpikingMLP((1, 3, 4), 4, T, hidden=(10, 8)).double()


def data(net, batch, steps):
    gen = torch.Generator().manual_seed(5)
    shape = (steps, batch, *net.input_shape)
    return (
        torch.randn(shape, dtype=torch.float64, generator=gen),
        torch.randint(0, 4, (steps, batch), generator=gen),
    )


def train(tools, mod, xs, ys, rate):
    """Run the step on each batch; returns the results of every step and the last values."""
    program = tools.Program(mod)
    values, out = program.initial(), []
    for i, (x, y) in enumerate(zip(xs, ys)):
        values |= {
            ("input", "x"): x.numpy(),
            ("label", "labels"): y.numpy(),
            ("lr", "lr"): np.float64(rate(i)),
            ("step", "step"): np.int64(i + 1),
        }
        out.append(program("main", values))
        values |= out[-1]
    return out, values


def reference(net, make, xs, ys, rate, loss, clip=None):
    optimizer = make(net.parameters())
    losses, norms = [], []
    net.train()
    for i, (x, y) in enumerate(zip(xs, ys)):
        optimizer.param_groups[0]["lr"] = rate(i)
        value = loss(net(x), y)
        optimizer.zero_grad()
        value.backward()
        if clip is not None:
            norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), clip)))
        optimizer.step()
        losses.append(value.item())
    return losses, norms


def compare(tools, net, out, values, losses, tol=1e-10):
    np.testing.assert_allclose([o["loss", "loss"] for o in out], losses, rtol=tol)
    state = {n: t for n, t in net.state_dict().items() if t.is_floating_point()}
    for name, tensor in state.items():
        role = "buffer" if "running" in name else "param"
        assert tools.error(values[role, name], tensor) <= tol, name


OPTIMIZERS = {
    "sgd": (SGD(), lambda p: torch.optim.SGD(p)),
    "momentum": (
        SGD(0.9, weight_decay=5e-3),
        lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=5e-3),
    ),
    "nesterov": (
        SGD(0.8, weight_decay=1e-2, nesterov=True),
        lambda p: torch.optim.SGD(p, momentum=0.8, weight_decay=1e-2, nesterov=True),
    ),
    "adam": (
        Adam(weight_decay=1e-2),
        lambda p: torch.optim.Adam(p, weight_decay=1e-2),
    ),
    "adam_low_beta": (
        Adam((0.3, 0.9), 1e-5),
        lambda p: torch.optim.Adam(p, betas=(0.3, 0.9), eps=1e-5),
    ),
    "adamw": (AdamW(), lambda p: torch.optim.AdamW(p)),
}


SLOW = ("sgd", "nesterov", "adam_low_beta")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in OPTIMIZERS],
)
def test_twenty_steps(tools, name):
    """With a learning rate that changes, from one compiled step."""
    ours, make = OPTIMIZERS[name]
    net = mlp()
    xs, ys = data(net, 5, 20)

    def rate(i):
        return (0.01 if "adam" in name else 0.1) * 0.9**i

    step = build_train_step(import_model(net, example=xs[0]), CrossEntropy(), ours)
    out, values = train(tools, step, xs, ys, rate)
    losses, _ = reference(net, make, xs, ys, rate, F.cross_entropy)
    compare(tools, net, out, values, losses)
    assert abs(losses[-1] - losses[0]) > 1e-3


def test_residual_network_with_clipping_and_smoothing(tools):
    torch.manual_seed(0)
    net = MSResNet((1,), (1, 8, 8), 4, 2, width=4).double()
    xs, ys = data(net, 2, 20)
    step = build_train_step(
        import_model(net, example=xs[0]),
        CrossEntropy(label_smoothing=0.1),
        SGD(momentum=0.9),
        clip_norm=0.5,
    )
    out, values = train(tools, step, xs, ys, lambda i: 0.1)
    losses, norms = reference(
        net,
        lambda p: torch.optim.SGD(p, momentum=0.9),
        xs,
        ys,
        lambda i: 0.1,
        lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1),
        clip=0.5,
    )
    compare(tools, net, out, values, losses)
    np.testing.assert_allclose([o["grad_norm", "grad_norm"] for o in out], norms, rtol=1e-9)
    assert min(norms) < 0.5 < max(norms)  # both branches


class PerStep(nn.Module):
    """Logits of every timestep, [T, N, classes]."""

    input_shape = (6,)

    def __init__(self):
        super().__init__()
        self.body, self.lif, self.head = nn.Linear(6, 9), LIF(), nn.Linear(9, 4)

    def forward(self, x):
        return self.head(self.lif(self.body(x).unsqueeze(0).expand(3, -1, -1)))


@pytest.mark.parametrize("lamb", [0.0, 0.3])
def test_tet_loss(tools, lamb):
    torch.manual_seed(1)
    net = PerStep().double()
    xs, ys = data(net, 5, 4)

    def loss(y, t):
        each = sum(F.cross_entropy(y[i], t) for i in range(3)) / 3
        return (1 - lamb) * each + lamb * F.mse_loss(y, torch.full_like(y, 0.7))

    step = build_train_step(import_model(net, example=xs[0]), TETLoss(lamb, 0.7), SGD())
    out, values = train(tools, step, xs, ys, lambda i: 0.5)
    losses, _ = reference(net, torch.optim.SGD, xs, ys, lambda i: 0.5, loss)
    compare(tools, net, out, values, losses)


def test_two_halves_are_the_whole(tools):
    """Gradients, then the update, bit for bit as the whole step; some parameters frozen."""
    net = mlp()
    xs, ys = data(net, 3, 1)
    mod = import_model(net, example=xs[0])
    chosen = ["fc.weight", "hidden.0.linear.weight"]
    options = {"params": chosen}
    whole = tools.Program(build_train_step(mod, optimizer=Adam(), clip_norm=0.1, **options))
    halves = tools.Program(build_gradients(mod, **options))
    update = tools.Program(build_update(mod, Adam(), clip_norm=0.1, **options))
    values = {
        **whole.initial(),
        ("input", "x"): xs[0].numpy(),
        ("label", "labels"): ys[0].numpy(),
        ("lr", "lr"): np.float64(0.01),
        ("step", "step"): np.int64(1),
    }
    want = whole("main", values)
    first = halves("main", values)
    second = update("main", {**values, **first})
    got = {**first, **second}
    assert {n for r, n in want if r == "param"} == set(chosen)
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, err_msg=str(key))


@pytest.mark.parametrize("frozen", [True, ["hidden.0.bn"]])
def test_frozen_statistics(tools, frozen):
    net = mlp(seed=4)
    xs, ys = data(net, 5, 3)
    mod = import_model(net, example=xs[0])
    out, values = train(
        tools, build_train_step(mod, optimizer=SGD(), frozen_bn=frozen), xs, ys, lambda i: 0.1
    )
    net.train()
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm1d) and (frozen is True or name in frozen):
            module.eval()
            module.train = lambda mode=True: None
    losses, _ = reference(net, torch.optim.SGD, xs, ys, lambda i: 0.1, F.cross_entropy)
    compare(tools, net, out, values, losses)
    updated = {n for r, n in out[0] if r == "buffer"}
    assert len(updated) == (0 if frozen is True else 2)


def test_bad_requests():
    net = mlp()
    mod = import_model(net, example=torch.zeros(2, 1, 3, 4))
    with pytest.raises(PassError, match="fc\\.wait"):
        build_train_step(mod, params=["fc.wait"])
    with pytest.raises(PassError, match=r"\[T, N, classes\]"):
        build_train_step(mod, TETLoss())
    with pytest.raises(PassError, match="hidden9"):
        build_train_step(mod, frozen_bn=["hidden9"])
    with pytest.raises(PassError, match="clip_norm"):
        build_train_step(mod, clip_norm=0.0)
    with pytest.raises(PassError, match="result 3"):
        build_train_step(mod, output=3)
    with pytest.raises(PassError, match="momentum"):
        SGD(nesterov=True)
    with pytest.raises(PassError, match="betas"):
        Adam((1.0, 0.9))
    with pytest.raises(PassError, match="label_smoothing"):
        CrossEntropy(1.5)
    dynamic = import_model(net, example=torch.zeros(2, 1, 3, 4), dynamic_batch=True)
    with pytest.raises(PassError, match="fixed batch size"):
        build_train_step(dynamic)
