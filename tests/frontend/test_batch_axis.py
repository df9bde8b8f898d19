"""Which axis is the batch, and how many timesteps there are, reaches the compiler's passes."""

import numpy as np
import pytest
import torch
from torch import nn

from ttsnn.driver import build, decompose, import_source
from ttsnn.passes import layer_infos
from ttsnn.passes.layer_calls import network_steps
from ttsnn.runtime.twins import make_twins
from ttsnn.sources import ModelOptions, parse_input_shape, resolve


class Sequence(nn.Module):
    """[N, C, L]: three axes without time in front."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 14, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class Loop(nn.Module):
    """Time in a Python loop; T has another library's name."""

    def __init__(self):
        super().__init__()
        self.num_steps = 3
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        v = torch.zeros_like(x[:, :1])
        out = 0.0
        for _ in range(self.num_steps):
            v = 0.5 * v + self.stem(x)
            spikes = (v > 0.1).to(x)
            v = v - 0.1 * spikes
            out = out + self.fc(self.conv(spikes).mean((2, 3)))
        return out / self.num_steps


def test_three_axes_without_time():
    options = ModelOptions(input_shape=parse_input_shape("N,4,14"))
    mod = import_source(resolve(Sequence(), options), batch=3)
    (fc,) = [i for i in layer_infos(mod) if i.name == "fc"]
    assert fc.steps == 1
    assert network_steps(mod) is None


def test_timesteps_of_a_loop():
    mod = import_source(resolve(Loop(), ModelOptions(input_shape=parse_input_shape("N,3,7,9"))))
    (conv,) = [i for i in layer_infos(mod) if i.name == "conv"]
    assert (conv.steps, conv.calls) == (3, 3)
    assert network_steps(mod) == 3


@pytest.mark.parametrize("batch", [2, 3])  # 3 = T: time must not be looked for in the batch
def test_htt_twin_of_a_loop(batch):
    torch.manual_seed(0)
    options = ModelOptions(input_shape=parse_input_shape("N,3,7,9"))
    source = resolve(Loop().double(), options)
    x = source.example(batch, "float64")
    twins = make_twins(source, "rank=3", "htt", dtype="float64", x=x)
    net = build(decompose(twins.program, twins.plan))
    with torch.no_grad():
        first, again = twins.twin(x), twins.twin(x)
    assert torch.equal(first, again)
    np.testing.assert_allclose(net(x.numpy()), first.numpy(), rtol=1e-10, atol=1e-12)
