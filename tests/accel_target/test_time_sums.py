"""Sums and means over timesteps in the network, and sums over what stands for all: PyTorch's."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from ttsnn.accel_target.arch import load_architecture
from ttsnn.models.lif import LIF
from ttsnn.models.time_axis import SpikingNetwork
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
def test_inference_is_that_of_pytorch(
    pytorch: ModuleType, readout: str, T: int, N: int, static: bool
) -> None:
    pytorch.check_inference(*_network(readout, T, N, static), load_architecture("sata"))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("T", "N", "static"), TIMES)
def test_a_training_step_is_that_of_pytorch(
    pytorch: ModuleType, readout: str, T: int, N: int, static: bool
) -> None:
    """New weights and biases too: the logits' gradient stands for all timesteps."""
    label = torch.tensor([3, 1][:N])
    pytorch.check_step(*_network(readout, T, N, static), label, load_architecture("ttsnn4"))
