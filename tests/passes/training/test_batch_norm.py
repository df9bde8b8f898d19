"""TrainingBatchNorm: what the program looks like, shared layers, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ttsnn.errors import PassError
from ttsnn.frontend import import_model
from ttsnn.passes.training import Manifest, TrainingBatchNorm, build_autograd


def example(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Shared(nn.Module):
    """One layer called twice: its statistics are updated twice."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3, eps=1e-3, momentum=0.3)
        self.plain = nn.BatchNorm2d(3, affine=False, momentum=0.7)

    def forward(self, x):
        return self.plain(self.bn(self.bn(x) * x) + x)


def test_shared_layer_and_layer_without_parameters(tools):
    net, x = Shared().double(), example(2, 3, 5, 4)
    program = tools.Program(build_autograd(import_model(net, example=x), inputs=["x"]))
    x.requires_grad_()
    y = net.train()(x)
    g = example(2, 3, 5, 4)
    y.backward(g)
    results, grads = tools.vjp(program, {("input", "x"): x.detach().numpy()}, g.numpy())
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point():
            got = results["buffer", name]  # a mean may be zero up to rounding
            np.testing.assert_allclose(got, buffer.numpy(), rtol=1e-13, atol=1e-15, err_msg=name)
    assert tools.error(grads["grad_input", "x"], x.grad) <= 1e-12
    for name, p in net.named_parameters():
        assert tools.error(grads["grad", name], p.grad) <= 1e-12, name
    entries = {e["name"]: e for e in Manifest.of(program.mod).batch_norm}
    assert entries["bn"] == {"name": "bn", "momentum": 0.3, "epsilon": 1e-3, "calls": 2}
    assert (entries["plain"]["momentum"], entries["plain"]["calls"]) == (0.7, 1)
    tracked = {n: int(b) for n, b in net.named_buffers() if n.endswith("tracked")}
    assert {f"{n}.num_batches_tracked": e["calls"] for n, e in entries.items()} == tracked


def test_saved_values_are_no_views_and_no_arguments():
    """Forward saves the input of each gradient once, and no argument."""
    mod = build_autograd(import_model(Shared().double(), example=example(2, 3, 5, 4)))
    saved = [s.shape for s in Manifest.of(mod).functions["forward"].results if s.role == "saved"]
    # x itself is an argument; bn(x) · x and the input of the last layer are saved
    assert sorted(saved) == [(2, 3, 5, 4)] * 2 + [(3,)] * 6
    text = mod.without_attr("ttsnn.params")["backward"].script()
    assert "R.snn.batch_norm_train(" not in text


def test_single_precision_sums_are_wide(tools):
    """Statistics of many values far from zero keep the accuracy of float32."""
    torch.manual_seed(0)
    net = nn.BatchNorm2d(2)
    x = torch.randn(8, 2, 32, 32) + 30
    program = tools.Program(build_autograd(import_model(net, example=x)))
    name = program.manifest.functions["forward"].arguments[0].name
    results, _ = tools.vjp(program, {("input", name): x.numpy()}, torch.randn(x.shape).numpy())
    want = net.double().train()(x.double())
    assert tools.error(results["output", "output"], want) < 1e-5
    for key in ("running_mean", "running_var"):
        assert tools.error(results["buffer", key], net.get_buffer(key)) < 1e-6


def test_refused():
    cumulative = import_model(nn.BatchNorm1d(3, momentum=None), example=torch.zeros(4, 3))
    with pytest.raises(PassError, match="cumulative"):
        TrainingBatchNorm()(cumulative)
    TrainingBatchNorm(momentum=0.2)(cumulative)
    one_value = import_model(nn.BatchNorm1d(3), example=torch.zeros(1, 3))
    with pytest.raises(PassError, match="one value a channel"):
        TrainingBatchNorm()(one_value)
