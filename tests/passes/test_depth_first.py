"""Layers for a few images at a time: the same bits, less memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm

from ttsnn import models
from ttsnn.driver import build, decompose, make_plan
from ttsnn.frontend import import_model
from ttsnn.passes.cpu import pipeline
from ttsnn.passes.cpu.depth_first import DepthFirst
from ttsnn.passes.layers.op import OP, layer_config_of
from ttsnn.passes.rewriter import bindings_of
from ttsnn.passes.static_values import op_name
from ttsnn.targets import get_target


class Blocks(torch.nn.Module):
    """A stem, two residual blocks with a pool between them, a classifier."""

    def __init__(self, T: int, static: bool) -> None:
        super().__init__()
        self.static, self.T = static, T
        self.stem = torch.nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(4)
        )
        self.neurons = torch.nn.ModuleList(models.LIF() for _ in range(4))
        self.fc = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.static:
            x = x.unsqueeze(0).expand(self.T, *x.shape)
        T, N = x.shape[:2]

        def fold(layer: torch.nn.Module, y: torch.Tensor) -> torch.Tensor:
            return layer(y.flatten(0, 1)).unflatten(0, (T, N))

        x = fold(self.stem, x)
        for first, second in ((0, 1), (2, 3)):
            y = fold(self.convs[first], self.neurons[first](x))
            x = x + fold(self.convs[second], self.neurons[second](y))
            x = fold(torch.nn.MaxPool2d(2), x)
        return self.fc(x.mean((-2, -1))).mean(0)


def program(T: int, batch: int, mode: str | None, static: bool = False) -> tvm.IRModule:
    torch.manual_seed(T)
    module = Blocks(T, static).double()
    shape = (batch, 2, 12, 10) if static else (T, batch, 2, 12, 10)
    mod = import_model(module, example=torch.randn(shape, dtype=torch.float64))
    return mod if mode is None else decompose(mod, make_plan(mod, "rank=4", mode), init="fresh")


def groups(monkeypatch: pytest.MonkeyPatch, mod: tvm.IRModule, target: str, **sizes: int) -> list:
    """Batch sizes of the layers of a lowered program, which is left in the pipeline."""
    found: list[int] = []

    def watched(chosen: tvm.target.Target) -> tvm.transform.Pass:
        step = DepthFirst(chosen, **sizes)

        @tvm.transform.module_pass(opt_level=0, name="Watched")
        def both(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            mod = step(mod)
            layers = [v for v in bindings_of(mod["main"]).values() if op_name(v) == OP]
            convs = [v for v in layers if layer_config_of(v).name != "fc"]
            found.extend(int(v.args[0].ty.shape.values[1]) for v in convs)
            return mod

        return both

    monkeypatch.setattr(pipeline, "DepthFirst", watched)
    get_target(target).lower(mod)
    return found


@pytest.mark.parametrize(
    ("mode", "T", "static"),
    [(None, 4, False), ("stt", 1, False), ("ptt", 3, True), ("htt", 4, False)],
)
def test_the_same_bits(monkeypatch, mode: str | None, T: int, static: bool) -> None:
    mod = program(T, 6, mode, static)
    want = build(mod, "cpu:num-cores=1", record_spikes=True)
    batches = groups(monkeypatch, mod, "cpu:num-cores=1", batch_bytes=0, images_bytes=1 << 30)
    assert set(batches) == {3}
    got = build(mod, "cpu:num-cores=1", record_spikes=True)
    x = np.random.default_rng(0).normal(size=want.inputs[0].shape)
    for a, b in zip(got(x), want(x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(k.scheduled for k in got.kernels)
    assert got.manifest.outputs == want.manifest.outputs


@pytest.mark.parametrize(
    ("batch", "threads", "images_bytes", "group"),
    [(8, 1, 0, 1), (8, 2, 0, 2), (12, 2, 10**5, 6), (9, 2, 0, 9), (7, 1, 0, 1), (1, 1, 0, 1)],
)
def test_groups_fill_the_threads(
    monkeypatch, batch: int, threads: int, images_bytes: int, group: int
) -> None:
    batches = groups(
        monkeypatch,
        program(2, batch, "ptt"),
        f"cpu:num-cores={threads}",
        batch_bytes=0,
        images_bytes=images_bytes,
    )
    assert set(batches) == {group}


def test_small_values_are_left_alone(monkeypatch) -> None:
    assert set(groups(monkeypatch, program(2, 8, "ptt"), "cpu:num-cores=1")) == {8}
