"""Forward and backward in one function, where they share work: against PyTorch, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from tvm import relax

from ttsnn import models
from ttsnn.frontend import import_model
from ttsnn.passes import DecomposeToTT, layer_infos
from ttsnn.passes.training import CrossEntropy, Manifest, build_gradients
from ttsnn.plans import make_plan
from ttsnn.program import params_of
from ttsnn.targets import get_target


def gradients(model: torch.nn.Module, x: torch.Tensor, labels: np.ndarray, plan=None, mode="ptt"):
    """(twin, lowered module, gradients by name) of the mean cross-entropy."""
    imported = import_model(model, example=x)
    if plan is not None:
        plan = make_plan(layer_infos(imported), plan, mode, T=model.T)
        imported = DecomposeToTT(plan)(imported)
        model = models.apply_plan(model, plan)
    mod = build_gradients(imported, CrossEntropy())
    target = get_target("cpu")
    lowered = target.lower_training(mod)
    call = relax.VirtualMachine(target.build(lowered), tvm.cpu())["main"]
    values, signature = params_of(mod), Manifest.of(mod).functions["main"]
    fed = {"input": x.numpy(), "label": labels}
    arguments = [fed.get(s.role, values.get(s.name)) for s in signature.arguments]
    results = call(*(tvm.runtime.tensor(np.asarray(a, order="C")) for a in arguments))
    found = zip(signature.results, results, strict=True)
    return model, lowered, {s.name: r.numpy() for s, r in found if s.role == "grad"}


def check(model: torch.nn.Module, x: torch.Tensor, classes: int, plan=None, mode="ptt"):
    labels = np.random.default_rng(0).integers(0, classes, x.shape[0])
    twin, lowered, found = gradients(model, x, labels, plan, mode)
    twin.train().zero_grad()
    F.cross_entropy(twin(x), torch.from_numpy(labels)).backward()
    largest = max(float(p.grad.norm()) for p in twin.parameters())
    for name, p in twin.named_parameters():
        error = np.linalg.norm(found[name] - p.grad.numpy())
        assert error <= 1e-10 * max(float(p.grad.norm()), 1e-6 * largest), name
    return lowered


@pytest.mark.parametrize(("plan", "mode"), [(None, "ptt"), ("rank=3", "ptt"), ("rank=3", "htt")])
def test_residual_network(plan, mode):
    torch.manual_seed(0)
    net = models.MSResNet((2, 1), (3, 9, 8), 5, T=2, width=8).double()
    lowered = check(net, torch.randn(3, 3, 9, 8, dtype=torch.float64), 5, plan, mode)
    text = lowered["main"].script()
    assert ("chain_backward" in text) == (plan is not None and mode == "ptt")
    assert 'dtype="uint8"' in text  # spikes wait for the backward as bytes
    # the sums of a batch norm are the neuron's to take, but for the shortcut's
    sums = [line for line in text.splitlines() if "batch_norm_sums" in line]
    assert len(sums) <= 2


@pytest.mark.parametrize("plan", [None, "rank=3"])
@pytest.mark.parametrize("batch", [1, 6])
def test_fully_connected_network(plan, batch):
    torch.manual_seed(0)
    net = models.SpikingMLP((1, 8, 6), 5, T=3, hidden=(12, 20)).double()
    if batch == 1:
        net.eval()  # PyTorch's batch norm wants more than one value a channel: T makes three
    check(net, torch.randn(batch, 1, 8, 6, dtype=torch.float64), 5, plan)
