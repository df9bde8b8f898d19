"""Gradients of every parameter and the running statistics of whole networks, float64."""

from __future__ import annotations

import pytest
import torch

from ttsnn import models
from ttsnn.frontend import import_model
from ttsnn.models.resnet import MSResNet
from ttsnn.models.vgg import SpikingMLP, SpikingVGG
from ttsnn.passes import DecomposeToTT, layer_infos
from ttsnn.passes.training import build_autograd
from ttsnn.plans import make_plan


def resnet(T, **options):
    return MSResNet((1, 1), (2, 8, 8), 5, T, width=4, **options)


def vgg(T):
    return SpikingVGG((4, "M", 6, 6, "M"), (2, 8, 8), 5, T, hidden=(12,), lif={"reset": "soft"})


def mlp(T):
    return SpikingMLP((2, 4, 4), 5, T, hidden=(12, 8), lif={"surrogate": "sigmoid"})


def check(tools, build, mode, T, batch, events=False, tol=1e-9):
    torch.manual_seed(3)
    net = build(T).double()
    lead = (T, batch) if events else (batch,)
    x = torch.randn(*lead, *net.input_shape, dtype=torch.float64) * 2
    mod, twin = import_model(net, example=x), net
    if mode != "dense":
        include = [i.name for i in layer_infos(mod)]
        plan = make_plan(layer_infos(mod), "rank=3", mode, T=T, include=include)
        mod, twin = DecomposeToTT(plan)(mod), models.apply_plan(net, plan)
    program = tools.Program(build_autograd(mod, inputs=["x"]))
    x.requires_grad_()
    y = twin.train()(x)
    g = torch.randn(y.shape, dtype=y.dtype)
    y.backward(g)
    results, grads = tools.vjp(program, {("input", "x"): x.detach().numpy()}, g.numpy())
    assert tools.error(results["output", "output"], y) <= tol
    want = {("grad", n): p.grad for n, p in twin.named_parameters()}
    want["grad_input", "x"] = x.grad
    assert set(grads) == set(want)
    errors = {key: tools.error(grads[key], w) for key, w in want.items()}
    assert max(errors.values()) <= tol, max(errors.items(), key=lambda e: e[1])
    zero = [key for key, w in want.items() if not w.any()]
    assert len(zero) <= 1, zero  # a test of gradients that are there
    buffers = {n: b for n, b in twin.named_buffers() if b.is_floating_point()}
    assert {n for r, n in results if r == "buffer"} == set(buffers)
    for name, buffer in buffers.items():
        assert tools.error(results["buffer", name], buffer) <= 1e-12, name


@pytest.mark.parametrize(
    ("mode", "T", "batch"),
    [("dense", 2, 5), ("htt", 3, 2), pytest.param("stt", 1, 2, marks=pytest.mark.slow)],
)
def test_resnet(tools, mode, T, batch):
    check(tools, resnet, mode, T, batch)


@pytest.mark.parametrize(("mode", "T", "batch"), [("ptt", 2, 2)])
def test_vgg(tools, mode, T, batch):
    check(tools, vgg, mode, T, batch)


@pytest.mark.parametrize(("mode", "T", "batch"), [("stt", 2, 5)])
def test_mlp(tools, mode, T, batch):
    check(tools, mlp, mode, T, batch)


@pytest.mark.slow
def test_event_frames_with_max_pooling(tools):
    check(tools, lambda T: resnet(T, downsample="maxpool"), "ptt", 2, 2, events=True)


def test_layers_run_step_by_step(tools):
    check(tools, lambda T: models.set_time_execution(mlp(T), "loop"), "dense", 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "stt", "ptt", "htt"])
@pytest.mark.parametrize(("T", "batch"), [(1, 5), (2, 2), (6, 2), (3, 5)])
@pytest.mark.parametrize("build", [resnet, vgg])
def test_more_shapes(tools, build, mode, T, batch):
    check(tools, build, mode, T, batch)
