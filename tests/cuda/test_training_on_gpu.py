"""Training on the emulated GPU, against PyTorch and against the same steps on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import ttsnn
from ttsnn import models
from ttsnn.cuda import emulator
from ttsnn.passes.training import SGD, CrossEntropy
from ttsnn.runtime.training.gradcheck import gradcheck
from ttsnn.runtime.training.network import network_of
from ttsnn.runtime.training.step import TrainStep

TARGET = "cuda-emulated:order=both"


@pytest.fixture(autouse=True)
def forward_again():
    yield
    emulator.enable(order="forward")


def vgg() -> models.SpikingVGG:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.SpikingVGG((4, "M", 5), (1, 6, 6), 3, 2, hidden=(7,)).double()


def mlp() -> models.SpikingMLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.SpikingMLP((1, 6, 6), 3, 2, hidden=(7,)).double()


def samples(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, n)
    x = rng.standard_normal((n, 1, 6, 6)) + y[:, None, None, None] * 0.7
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.slow
def test_gradients_and_spikes() -> None:
    report = gradcheck(vgg(), target=TARGET, batch=3)
    assert report["ok"], report
    assert report["max_rel_error"] < 1e-9


def test_steps_keep_their_state_on_the_device() -> None:
    x, y = samples(4)
    losses = {}
    for target in ("cpu", TARGET):
        network = network_of(mlp(), x)
        program = network.program(x)
        step = TrainStep(program, CrossEntropy(), SGD(momentum=0.9), target=target)
        state = step.state()
        found = []
        for _ in range(3):
            state, result = step(state, x, y.numpy(), 0.1)
            found.append(result.loss)
        losses[target] = found, state.arrays("param", "buffer")
        assert state.not_finite("param", "optimizer") is None
        devices = {str(v.device.type) for k, v in state.values.items() if k[0] == "param"}
        assert devices == {"cpu" if target == "cpu" else "cuda"}
    np.testing.assert_allclose(losses[TARGET][0], losses["cpu"][0], rtol=1e-10)
    for name, value in losses["cpu"][1].items():
        np.testing.assert_allclose(losses[TARGET][1][name], value, rtol=1e-8, atol=1e-11)


def test_module_in_pytorchs_loop() -> None:
    x, y = samples(4)
    model = mlp()
    twin = copy.deepcopy(model)
    net = ttsnn.compile(model, x, target=TARGET, training=True)
    for network in (net, twin):
        network.train()
        torch.nn.functional.cross_entropy(network(x), y).backward()
    for (name, a), (_, b) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-11, msg=name)
    for (name, a), (_, b) in zip(net.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)
