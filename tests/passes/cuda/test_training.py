"""Training programs on the emulated GPU against PyTorch's autograd, in float64."""

from __future__ import annotations

import copy
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from ttsnn.cuda import emulator
from ttsnn.frontend import import_model
from ttsnn.models import LIF
from ttsnn.passes.cuda import horizontal_fusion
from ttsnn.passes.traffic import traffic
from ttsnn.passes.training import SGD, CrossEntropy, build_train_step
from ttsnn.runtime.training.step import TrainStep

from ..cpu_training.conftest import check, error  # noqa: TID252
from ..cpu_training.test_programs import (  # noqa: TID252  # the CPU's programs, here too
    Block,
    Time,
    inputs,
    test_batch_norm_far_from_zero,
    test_dense_conv,
    test_fully_connected,
    test_many_steps_without_batch_norm,
    test_neuron_after_batch_norm,
    test_pooled_spikes,
    test_pools_and_head,
    test_static_image,
    test_tt_conv,
    tt,
)
from .emulated import emulated

__all__ = [
    "test_batch_norm_far_from_zero",
    "test_dense_conv",
    "test_fully_connected",
    "test_many_steps_without_batch_norm",
    "test_neuron_after_batch_norm",
    "test_pooled_spikes",
    "test_pools_and_head",
    "test_static_image",
    "test_tt_conv",
]


def checked(model, x, tol=1e-11):
    target = emulated()
    emulator.enable(order="both")
    program = check(model.double(), x, tol, target=target, device=tvm.cuda(0))
    emulator.check()
    return program


@pytest.fixture
def tools():
    return SimpleNamespace(check=checked)


@pytest.mark.parametrize(("mode", "steps"), [("ptt", 3), ("stt", 3), ("htt", 3), ("ptt", 1)])
def test_residual_block(mode, steps):
    """Strided and plain chains, batch norm, neurons, a strided 1×1 shortcut."""
    torch.manual_seed(0)
    model = Block(tt(3, 9, mode, 2), tt(9, 9, mode), 3, 9)
    program = checked(model, 2 * inputs(steps, 2, 3, 7, 6))
    rules = {k.rule for k in program.kernels}
    assert {"conv", "weight_grad", "batch_norm_stats", "lif_forward", "lif_backward"} <= rules
    assert all(k.scheduled for k in program.kernels)
    assert "uint8" in program.lowered.script()  # spikes between layers


class Normalised(nn.Module):
    """A convolution, a batch norm and a neuron, and a linear layer."""

    def __init__(self, lif: LIF) -> None:
        super().__init__()
        self.lif = lif
        self.first = Time(nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5))
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.lif(self.first(x)).mean((0, 3, 4)))


@pytest.mark.parametrize("settings", [{}, {"reset": "soft", "reset_timing": "before_decay"}])
def test_gradient_of_a_neuron_behind_a_batch_norm(monkeypatch, settings):
    """It is computed twice, for the batch norm's sums and for its input, and not stored."""
    monkeypatch.setattr(horizontal_fusion, "SMALL_BYTES", 0)
    torch.manual_seed(0)
    model, x, y = Normalised(LIF(**settings)).double(), 2 * inputs(3, 4, 2, 9, 11), [1, 3, 0, 2]
    nn.init.uniform_(model.first.layers[1].weight, 0.5, 1.5)
    program = import_model(copy.deepcopy(model).eval(), example=x)
    target = emulated()
    calls = Counter()
    for kernel in traffic(target.lower_training(build_train_step(program, CrossEntropy(), SGD()))):
        calls[kernel.rule] += kernel.calls
    assert (calls["lif_backward"], calls["batch_norm_dx"], calls["batch_norm_sums"]) == (2, 0, 0)
    emulator.enable(order="both")
    step = TrainStep(program, CrossEntropy(), SGD(), target=target)
    before = step.state()
    state, _ = step(before, x, np.asarray(y), 1.0)
    nn.functional.cross_entropy(model.train()(x), torch.tensor(y)).backward()
    for name, p in model.named_parameters():
        grad = before.arrays("param")[name] - state.arrays("param")[name]
        assert error(grad, p.grad) <= 1e-11, name
    emulator.check()


def test_dense_network():
    """A dilated convolution with bias, a pool, two branches, and a linear layer at the end."""
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Time(nn.Conv2d(2, 6, 3, (2, 1), 1, bias=False), nn.BatchNorm2d(6))
            self.lif = LIF()
            self.second = Time(nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1))
            self.head = nn.Linear(5, 4)

        def forward(self, x):
            y = self.second(self.lif(self.first(x)))
            return self.head(y.mean((0, 3, 4)))

    checked(Net(), inputs(2, 3, 2, 8, 8))
