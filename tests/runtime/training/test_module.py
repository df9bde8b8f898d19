"""The compiled module against the PyTorch network, under an ordinary training loop."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_small import mlp, samples, vgg

import ttsnn
from ttsnn import models
from ttsnn.errors import DataError, ModelImportError
from ttsnn.runtime.training.code import UnscheduledWarning


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnscheduledWarning)
        yield


def close(a, b, tolerance=1e-12):
    scale = max(float(b.detach().abs().max()), 1e-3)
    return float((a.detach() - b.detach()).abs().max()) <= tolerance * scale


def loop(net, batches, labels):
    """What a user's script does: optimizer, scheduler, clipping."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    losses = []
    for x, y in zip(batches, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.7)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("plan", [None, "rank=2"])
def test_a_training_loop_gives_what_pytorch_gives(plan):
    x, y = samples(20, (1, 8, 8))
    net = ttsnn.compile(vgg(), x[:5], training=True, plan=plan, mode="ptt")
    assert (net.plan is None) == (plan is None)
    twin = copy.deepcopy(net.network)
    ours = loop(net, x.split(5), y.split(5))
    theirs = loop(twin, x.split(5), y.split(5))
    assert ours == pytest.approx(theirs, rel=1e-10)
    state, expected = net.state_dict(), twin.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert close(state[name].double(), value.double(), 1e-9), name
    assert int(state["features.0.bn.num_batches_tracked"]) == 4
    net.eval(), twin.eval()
    assert close(net(x[:7]), twin(x[:7]), 1e-10)
    fresh = copy.deepcopy(twin)
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    fresh.load_state_dict(net.state_dict())
    assert close(fresh(x[:3]), twin(x[:3]), 1e-9)


def test_the_network_and_the_compiled_module_share_their_weights():
    model = mlp()
    x, _ = samples(4)
    net = ttsnn.compile(model, x, training=True)
    for (name, ours), (key, theirs) in zip(net.named_parameters(), model.named_parameters()):
        assert name == key
        assert ours is theirs
    net.eval()
    before = net(x).clone()
    with torch.no_grad():
        model.fc.bias.add_(1.0)
    assert close(net(x), before + 1.0)
    assert next(iter(net._inference.values())).builds == 1


def test_another_batch_size_is_compiled_when_it_comes():
    x, _ = samples(5)
    net = ttsnn.compile(mlp(), x[:4], training=True)
    assert len(net._codes) == 1
    for n in (4, 5, 1 + 1, 4):
        twin = copy.deepcopy(net.network)
        a, b = net(x[:n]), twin(x[:n])
        assert close(a, b)
    assert len(net._codes) == 3


def test_gradients_of_the_input_and_of_some_parameters_only():
    x, _ = samples(4)
    model = mlp()
    model.fc.requires_grad_(False)
    net = ttsnn.compile(model, x, training=True)
    twin = copy.deepcopy(model).train()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    g = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net(a).backward(g), twin(b).backward(g)
    assert close(a.grad, b.grad)
    assert float(b.grad.abs().max()) > 0
    assert net.fc.weight.grad is None
    weight = dict(net.named_parameters())["hidden.0.linear.weight"]
    assert close(weight.grad, dict(twin.named_parameters())["hidden.0.linear.weight"].grad)


def test_layers_that_forward_does_not_call_get_no_gradient():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.T, self.body, self.spare = 2, mlp(), nn.BatchNorm1d(3, dtype=torch.float64)

        def forward(self, x):
            return self.body(x)

    x, _ = samples(4)
    net = ttsnn.compile(Net(), x, training=True)
    net(x).sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None}
    assert without == {"spare.weight", "spare.bias"}


def test_a_batch_norm_in_eval_mode_keeps_its_statistics():
    x, _ = samples(4)
    model = models.calibrate(mlp(hidden=(6, 5)), samples(8, seed=3)[0])
    net = ttsnn.compile(model, x, training=True)
    net.hidden[0].bn.eval()
    twin = copy.deepcopy(model).train()
    twin.hidden[0].bn.eval()
    net(x).sum().backward(), twin(x).sum().backward()
    for (name, p), (_, q) in zip(net.named_parameters(), twin.named_parameters()):
        assert close(p.grad, q.grad), name
    for (name, p), (_, q) in zip(net.named_buffers(), twin.named_buffers()):
        assert close(p.double(), q.double()), name
    assert int(net.hidden[0].bn.num_batches_tracked) == 1  # calibration's
    assert int(net.hidden[1].bn.num_batches_tracked) == 2


def test_two_forwards_before_their_backwards():
    x, _ = samples(8)
    net = ttsnn.compile(mlp(), x[:4], training=True)
    twin = copy.deepcopy(net.network)
    for module in (net, twin):
        a, b = module(x[:4]), module(x[4:])
        (a.sum() * 2).backward()
        (b**2).sum().backward()
    for (name, p), (_, q) in zip(net.named_parameters(), twin.named_parameters()):
        assert close(p.grad, q.grad), name


def test_a_copy_has_its_own_weights():
    x, _ = samples(4)
    net = ttsnn.compile(mlp(), x, training=True)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.fc.weight.zero_(), other.fc.bias.zero_()
    assert float(other(x).detach().abs().max()) == 0.0
    assert float(net(x).detach().abs().max()) > 0.0


def test_changed_weights_between_forward_and_backward_are_noticed():
    x, _ = samples(4)
    net = ttsnn.compile(mlp(), x, training=True)
    out = net(x).sum()
    with torch.no_grad():
        net.fc.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: x.float(), "the input is torch.float32"),
        (lambda x: x[:, :, :3], r"must be \[N, 1, 4, 4\]"),
        (lambda x: x[:0], "N of at least 1"),
        (lambda x: x[0], r"must be \[N, 1, 4, 4\]"),
        (lambda x: x.numpy(), "must be a PyTorch tensor"),
    ],
)
def test_wrong_inputs_are_refused(bad, message):
    x, _ = samples(2)
    net = ttsnn.compile(mlp(), x, training=True)
    with pytest.raises(DataError, match=message):
        net(bad(x))


def test_layers_that_draw_random_numbers_are_refused():
    model = mlp()
    model.hidden.append(nn.Dropout(0.3))
    with pytest.raises(ModelImportError, match=r"'hidden.1' \(Dropout\)"):
        ttsnn.compile(model, samples(2)[0], training=True)


def test_settings_for_inference_alone_are_refused():
    with pytest.raises(DataError, match="training=True goes without"):
        ttsnn.compile(mlp(), samples(2)[0], training=True, dynamic_batch=True)
