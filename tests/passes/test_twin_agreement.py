"""The PyTorch twin, the decomposed program and the merged program are the same function."""

import numpy as np
import pytest
import torch

from ttsnn import models
from ttsnn.frontend import import_model
from ttsnn.passes import DecomposeToTT, MergeTT, layer_infos
from ttsnn.plans import make_plan
from ttsnn.program import params_of

from .tt_programs import run


class Net(torch.nn.Module):
    """Convolutions with strides 1 and 2 and a hidden linear layer, every timestep; no neuron."""

    def __init__(self, T):
        super().__init__()
        self.T = T
        self.stem = torch.nn.Conv2d(2, 6, 3, padding=1)
        self.conv1 = torch.nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.conv2 = torch.nn.Conv2d(8, 10, (5, 3), stride=2, padding=(2, 1))
        self.hidden = torch.nn.Linear(10, 12)
        self.head = torch.nn.Linear(12, 5)

    def forward(self, x):
        steps, batch = x.shape[:2]
        y = self.conv2(self.conv1(self.stem(x.flatten(0, 1))))
        y = self.hidden(y.mean((2, 3))).unflatten(0, (steps, batch))
        return self.head(y.mean(0))


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
@pytest.mark.parametrize(
    ("T", "batch", "size", "init"), [(3, 2, (9, 7), "fit"), (1, 1, (8, 5), "fresh")]
)
def test_twin_program_and_merged_program_agree(mode, T, batch, size, init):
    torch.manual_seed(0)
    net = Net(T).double().eval()
    x = torch.randn(T, batch, 2, *size, dtype=torch.float64)
    mod = import_model(net, example=x)
    plan = make_plan(layer_infos(mod), "rank=3", mode, T=T)
    assert list(plan.layers) == ["conv1", "conv2", "hidden"]
    twin = models.apply_plan(net, plan, init=init, seed=4)
    program = DecomposeToTT(plan, init=init, seed=4)(mod)
    state = twin.state_dict()
    for name, value in params_of(program).items():
        assert np.array_equal(value, state[name].numpy()), name
    with torch.no_grad():
        want = twin(x).numpy()
        dense = net(x).numpy()
    scale = np.abs(want).max()
    assert np.abs(dense - want).max() > 1e-3 * scale  # the decomposition changes something
    assert np.abs(run(program, x.numpy()) - want).max() <= 1e-10 * scale
    assert np.abs(run(MergeTT()(program), x.numpy()) - want).max() <= 1e-10 * scale
