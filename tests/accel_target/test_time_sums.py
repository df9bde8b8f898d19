"""Sums and means over timesteps in the network, and sums over what stands for all: PyTorch's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.sim.verify import verify_order
from ttsnn.accel_target.simulate import simulate
from ttsnn.accel_target.target import inference_passes
from ttsnn.models.lif import LIF
from ttsnn.models.time_axis import SpikingNetwork
from ttsnn.passes.training import SGD, CrossEntropy, Manifest, build_train_step
from ttsnn.program import params_of
from ttsnn.runtime.training.network import Network, network_of

SIZE = (5, 4)


class _Net(SpikingNetwork):
    """Convolution and neuron, then what ``readout`` says of the spikes [T, N, 5, H, W]."""

    def __init__(self, readout: str, T: int, static: bool) -> None:
        super().__init__(T, (2, *SIZE), 4, static)
        self.conv = nn.Conv2d(2, 5, 3, 1, 1, bias=False)
        self.bn, self.lif, self.readout = nn.BatchNorm2d(5), LIF(), readout
        if readout in ("flat_mean", "logit_mean", "logit_sum", "divided"):
            self.fc = nn.Linear(5 * SIZE[0] * SIZE[1], 4)
        else:
            self.last, self.fc = nn.Conv2d(5, 6, 3, 1, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        s = self.lif(self.over_time(self.with_time(x), self.conv, self.bn))
        if self.readout == "flat_mean":
            return self.fc(s.mean(0).flatten(1))
        if self.readout == "image_sum":
            return self.fc(self.last(s.sum(0)).mean((2, 3)))
        if self.readout == "space_time":
            return self.fc(self.over_time(s, self.last).mean((0, 3, 4)))
        logits = self.over_time(s.flatten(2), self.fc)
        total = logits.mean(0) if self.readout == "logit_mean" else logits.sum(0)
        return total / self.T if self.readout == "divided" else total


def _network(readout: str, T: int, N: int, static: bool) -> tuple[Network, Tensor]:
    torch.manual_seed(0)
    net = _Net(readout, T, static).double()
    nn.init.normal_(net.bn.bias, 0.3, 0.1)
    lead = (N,) if static else (T, N)
    x = torch.randn(*lead, 2, *SIZE, dtype=torch.float64)
    return network_of(net, x, dtype="float64"), x


READOUTS = ["flat_mean", "image_sum", "space_time", "logit_mean", "logit_sum", "divided"]
TIMES = [(3, 2, False), (1, 2, False), (3, 1, True)]


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("T", "N", "static"), TIMES)
def test_inference_is_that_of_pytorch(readout: str, T: int, N: int, static: bool) -> None:
    network, x = _network(readout, T, N, static)
    mod = network.program(x)
    for step in inference_passes():
        mod = step(mod)
    arch = load_architecture("sata")
    program = compile_program(mod, arch)
    verify_order(program, arch)
    values = {mod["main"].params[0].name: x.numpy(), **params_of(mod)}
    (got,) = simulate(program, arch, values=values, dtype="float64").outputs.values()
    with torch.no_grad():
        want = network.module.eval()(x).numpy()
    assert np.abs(got - want).max() <= 1e-12 * np.abs(want).max()


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("T", "N", "static"), TIMES)
def test_a_training_step_is_that_of_pytorch(readout: str, T: int, N: int, static: bool) -> None:
    """New weights and biases too: the logits' gradient stands for all timesteps."""
    network, x = _network(readout, T, N, static)
    label = torch.tensor([3, 1][:N])
    mod = build_train_step(network.program(x), CrossEntropy(), SGD(momentum=0.9), hoist=False)
    arch = load_architecture("ttsnn4")
    program = compile_program(mod, arch)
    verify_order(program, arch)
    given = {"labels": label.numpy(), "lr": np.float64(0.1)}
    values = {mod["main"].params[0].name: x.numpy(), **given, **params_of(mod)}
    result = simulate(program, arch, values=values, dtype="float64")
    module = copy.deepcopy(network.module).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    loss = F.cross_entropy(module(x), label)
    loss.backward()
    optimizer.step()
    want = {k: v.numpy() for k, v in module.state_dict().items()}
    slots = Manifest.of(mod).functions["main"].results
    seen = 0
    for name, got in result.outputs.items():
        slot = slots[int(name.partition(":")[0])]
        if slot.role in ("param", "buffer"):
            seen += 1
            scale = max(np.abs(want[slot.name]).max(), 1e-12)
            assert np.abs(got - want[slot.name]).max() <= 1e-11 * scale, slot.name
        elif slot.role == "loss":
            assert float(got) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert seen == len([n for n in want if not n.endswith("num_batches_tracked")])
