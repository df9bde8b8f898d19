"""Activation checkpointing: the same numbers, in less memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from ttsnn.frontend import import_model
from ttsnn.models.resnet import MSResNet
from ttsnn.models.vgg import SpikingMLP, SpikingVGG
from ttsnn.passes import DecomposeToTT, layer_infos
from ttsnn.passes.training import (
    AppendLoss,
    CrossEntropy,
    Manifest,
    TrainingBatchNorm,
    build_autograd,
    build_gradients,
)
from ttsnn.passes.training.activation_checkpointing import _best_cuts, _Forward
from ttsnn.passes.training.gradient import gradient_of
from ttsnn.passes.training.graph import Graph
from ttsnn.plans import make_plan


def resnet(T):
    return MSResNet((2, 1), (1, 8, 8), 4, T, width=4)


def vgg(T):
    return SpikingVGG((4, 4, "M", 6, 6, "M"), (2, 8, 8), 5, T, hidden=(12,), lif={"reset": "soft"})


def mlp(T, layers=16):
    return SpikingMLP((1, 4, 4), 3, T, hidden=(32,) * layers)


def imported(build, mode, T, batch):
    torch.manual_seed(3)
    net = build(T).double()
    x = torch.randn(batch, *net.input_shape, dtype=torch.float64) * 2
    mod = import_model(net, example=x)
    if mode != "dense":
        plan = make_plan(layer_infos(mod), "rank=3", mode, T=T)
        mod = DecomposeToTT(plan)(mod)
    return net, x, mod


def calls(mod, function, op):
    count = 0

    def visit(node):
        nonlocal count
        is_call = isinstance(node, relax.Call) and isinstance(node.op, tvm.ir.Op)
        count += is_call and node.op.name == f"relax.{op}"

    for block in mod[function].body.blocks:
        for binding in block.bindings:
            relax.analysis.post_order_visit(binding.value, visit)
    return count


@pytest.mark.parametrize(
    ("build", "mode", "T", "batch"),
    [
        (resnet, "ptt", 2, 3),
        pytest.param(vgg, "dense", 1, 3, marks=pytest.mark.slow),
        pytest.param(resnet, "htt", 3, 2, marks=pytest.mark.slow),
        pytest.param(vgg, "stt", 2, 1, marks=pytest.mark.slow),
        pytest.param(mlp, "dense", 2, 5, marks=pytest.mark.slow),
    ],
)
def test_all_results_keep_their_bits(tools, build, mode, T, batch):
    """Loss, logits, running statistics and gradients, batch norms on the batch's statistics."""
    _, x, mod = imported(build, mode, T, batch)
    results = []
    for on in (False, True):
        program = tools.Program(build_gradients(mod, activation_checkpointing=on))
        values = {**program.initial(), ("input", "x"): x.numpy()}
        labels = np.arange(batch) % 3
        results.append(program("main", {**values, ("label", "labels"): labels}))
    plain, checked = results
    assert list(plain) == list(checked)
    for key, value in plain.items():
        assert np.array_equal(value, checked[key]), key
    assert any(role == "buffer" for role, _ in plain)
    made = program.manifest.options["activation_checkpointing"]
    assert made["segments"] > 1
    assert made["checkpointed_bytes"] < made["activation_bytes"]


@pytest.mark.parametrize(
    ("build", "T", "batch"), [(vgg, 2, 2), pytest.param(resnet, 1, 3, marks=pytest.mark.slow)]
)
def test_forward_and_backward_apart_agree_with_pytorch(tools, build, T, batch):
    net, x, _ = imported(build, "dense", T, batch)
    tools.check_vjp(net, x, 1e-9, activation_checkpointing=True)


def saved_bytes(mod):
    slots = Manifest.of(mod).functions["forward"].results
    return sum(np.prod(s.shape) * 8 for s in slots if s.role == "saved")


def test_less_is_saved_and_each_layer_runs_at_most_twice():
    _, _, mod = imported(resnet, "ptt", 2, 3)
    plain, checked = (build_autograd(mod, activation_checkpointing=on) for on in (False, True))
    assert 0 < saved_bytes(checked) < 0.6 * saved_bytes(plain)
    for op in ("snn.lif", "tt.conv2d", "snn.batch_norm_train"):
        once = calls(plain, "forward", op)
        assert calls(plain, "backward", op) == 0
        assert calls(checked, "forward", op) == once
        assert 0 < calls(checked, "backward", op) < once
    assert (
        Manifest.of(plain).functions["forward"].results[:3]
        == (Manifest.of(checked).functions["forward"].results[:3])
    )


def test_the_cuts_are_the_best_of_all():
    """Against all subsets of the places where a cut is cheap."""
    _, _, mod = imported(lambda T: mlp(T, 5), "dense", 2, 4)
    mod = TrainingBatchNorm()(mod)
    main = AppendLoss(CrossEntropy())(mod)["main"]
    adjoint = gradient_of(main, list(main.params[2:]))
    parts = _Forward(adjoint, adjoint.results[: len(Graph.of(main).results)])
    crossing, end = parts.crossing(), len(parts.order)
    places = [p for p in range(1, end) if 0 < crossing[p] < crossing[p + 1]]
    assert len(places) >= 4

    def estimate(cuts):
        bounds = [0, *cuts, end]
        largest = max(parts.activations(a, b) for a, b in itertools.pairwise(bounds))
        return sum(crossing[c] for c in cuts) + largest

    subsets = (c for n in range(len(places) + 1) for c in itertools.combinations(places, n))
    best = min(estimate(c) for c in subsets)
    cuts, found = _best_cuts(parts)
    assert found == estimate(cuts)
    assert best <= found <= 1.05 * best
    assert best < parts.activations(0, end)
