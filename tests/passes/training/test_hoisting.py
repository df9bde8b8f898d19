"""The stem of a static image runs once in training too; its statistics are those of T copies."""

from __future__ import annotations

import pytest
import torch

from ttsnn.frontend import import_model
from ttsnn.models.resnet import MSResNet
from ttsnn.passes.training import build_gradients


@pytest.mark.parametrize(("T", "batch"), [(4, 3), (2, 1), (1, 2)])
def test_a_stem_runs_on_the_images_alone(tools, T, batch):
    """Gradients and running statistics against PyTorch, which runs T copies: float64."""
    torch.manual_seed(0)
    net = MSResNet((1,), (2, 5, 4), 3, T, width=3).double()
    x = torch.randn(batch, 2, 5, 4, dtype=torch.float64)
    program = tools.Program(build_gradients(import_model(net, example=x)))
    convolutions = [
        int(b.value.args[0].ty.shape.values[0])
        for b in program.mod["main"].body.blocks[0].bindings
        if getattr(getattr(b.value, "op", None), "name", "") == "relax.nn.conv2d"
    ]
    assert convolutions == [batch, T * batch, T * batch]
    labels = torch.arange(batch) % 3
    values = {**program.initial(), ("input", "x"): x.numpy(), ("label", "labels"): labels.numpy()}
    out = program("main", values)
    loss = torch.nn.functional.cross_entropy(net.train()(x), labels)
    loss.backward()
    assert abs(float(out["loss", "loss"]) - float(loss)) <= 1e-12 * float(loss)
    for name, p in net.named_parameters():
        assert tools.error(out["grad", name], p.grad) <= 1e-10, name
    buffers = {n: b for n, b in net.named_buffers() if b.is_floating_point()}
    for name, buffer in buffers.items():
        assert tools.error(out["buffer", name], buffer) <= 1e-13, name
