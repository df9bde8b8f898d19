"""Neurons of other classes become our neuron; the equations are written out here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ttsnn.errors import ModelImportError
from ttsnn.frontend import import_model, register_neuron
from ttsnn.frontend.neurons import SteppedLIF
from ttsnn.lif_attrs import LifAttrs
from ttsnn.models import LIF


class Mine(nn.Module):
    """v = 0.8 v + x; spike where v >= 0.3; v back to 0."""

    def forward(self, x):
        v, out = torch.zeros_like(x[0]), []
        for step in x:
            v = 0.8 * v + step
            out.append((v >= 0.3).to(x))
            v = torch.where(v >= 0.3, 0.0, v)
        return torch.stack(out)


class Stepping(Mine):
    """The same, one step a call."""

    def forward(self, x):
        raise AssertionError("must be replaced")


class Loop(nn.Module):
    def __init__(self, neuron, steps):
        super().__init__()
        self.neuron, self.steps = neuron, steps

    def forward(self, x):
        return torch.stack([self.neuron(x[t]) for t in range(self.steps)])


ATTRS = LifAttrs(decay=0.8, v_threshold=0.3, fire=">=")


@pytest.fixture(autouse=True)
def registered():
    path = f"{Mine.__module__}."
    register_neuron(path + "Mine", lambda m: LIF.from_attrs(ATTRS))
    register_neuron(path + "Stepping", lambda m: SteppedLIF(ATTRS))


def test_registered_neuron_is_one_operator(agree):
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    assert agree(nn.Sequential(Mine(), nn.ReLU()), x).script().count("R.snn.lif(") == 1
    assert agree(Mine(), x).script().count("R.snn.lif(") == 1


def test_single_steps_keep_the_membrane_within_one_forward(run):
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    mod = import_model(Loop(Stepping(), 4), example=x)
    (got,) = run(mod, x.numpy())
    torch.testing.assert_close(torch.tensor(got), Mine()(x))
    assert 0.1 < got.mean() < 0.9


def test_one_step_a_call_is_refused():
    with pytest.raises(ModelImportError, match="'neuron' makes one step a call"):
        import_model(Loop(Stepping(), 1), example=torch.randn(4, 3, 5))


def test_wrong_registration():
    with pytest.raises(ModelImportError, match="register_neuron wants"):
        register_neuron("Mine", lambda m: None)
