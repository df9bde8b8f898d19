"""Small kernels side by side in one launch: the same bits as one after the other."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax

from ttsnn.cuda import emulator
from ttsnn.frontend import import_model
from ttsnn.models import LIF, TTConv2d
from ttsnn.passes.cuda import horizontal_fusion
from ttsnn.passes.cuda.batches import batches
from ttsnn.passes.cuda.gpu import gpu_of
from ttsnn.passes.cuda.kernels.arrays import CudaArrays
from ttsnn.passes.cuda.kernels.side_by_side import launches_of
from ttsnn.passes.cuda.training.pipeline import training_passes
from ttsnn.passes.traffic import traffic
from ttsnn.passes.training import SGD, AdamW, CrossEntropy, build_train_step
from ttsnn.passes.training_kernels.batch_norm import batch_norm_apply, batch_norm_stats

from .emulated import emulated


class Net(nn.Module):
    """A neuron, a chain, a batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = LIF()
        self.conv = TTConv2d(2, 5, 3, 2, "ptt", stride=2, padding=1, bias=True)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        y = self.conv(self.lif(x))
        y = self.norm(y.flatten(0, 1)).reshape(y.shape)
        return self.head(y.mean((0, 3, 4)))


def lowered(target, optimizer, fused):
    torch.manual_seed(0)
    x = 2 * torch.randn(3, 2, 2, 7, 6)
    step = build_train_step(import_model(Net().eval(), example=x), CrossEntropy(), optimizer)
    functions = [g.name_hint for g, f in step.functions_items() if isinstance(f, relax.Function)]
    passes = training_passes(target.tvm_target, functions)
    with target.tvm_target:
        for each in passes if fused else passes[:-1]:
            step = each(step)
    return step


def values(func):
    """An argument of each type of a step's function: labels, the learning rate, arrays."""
    rng = np.random.default_rng(0)
    for param in func.params:
        shape, dtype = [int(s) for s in param.ty.shape], str(param.ty.dtype)
        if dtype == "int64":
            yield np.asarray(rng.integers(1, 4, shape), dtype)
        else:
            yield np.asarray(rng.random(shape) + 0.1, dtype)


def results(target, mod, args):
    emulator.enable(order="both")
    device = tvm.cuda(0)
    vm = relax.VirtualMachine(target.build(mod), device, memory_cfg="naive")
    out = vm["main"](*[tvm.runtime.tensor(a, device) for a in args])
    emulator.check()
    return [o.numpy() for o in out]


@pytest.mark.parametrize(
    ("optimizer", "most"), [(SGD(momentum=0.9, weight_decay=0.1), 128), (AdamW(), 7)]
)
def test_training_step(monkeypatch, optimizer, most):
    monkeypatch.setattr(horizontal_fusion, "MOST_ARGUMENTS", most)
    target = emulated()
    apart, together = (lowered(target, optimizer, fused) for fused in (False, True))
    assert relax.analysis.check_well_formed(together)
    before, after = (sum(k.calls for k in traffic(m)) for m in (apart, together))
    assert after < (0.6 if most > 100 else 0.95) * before
    assert sum(k.bytes for k in traffic(apart)) == sum(k.bytes for k in traffic(together))
    assert sum(k.macs for k in traffic(apart)) == sum(k.macs for k in traffic(together))
    args = list(values(apart["main"]))
    wanted = results(target, apart, args)
    assert any(np.abs(w).max() > 0 for w in wanted)
    for got, want in zip(results(target, together, args), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


def test_large_kernels_stay(monkeypatch):
    monkeypatch.setattr(horizontal_fusion, "SMALL_BYTES", 0)
    target = emulated()
    mod = lowered(target, SGD(momentum=0.9), True)
    assert "side_by_side" not in {k.rule for k in traffic(mod)}
    assert relax.analysis.check_well_formed(mod)


def test_which_kernels_can_join():
    gpu = gpu_of(emulated().tvm_target)
    arrays = CudaArrays((1, 64, 4, 4, 8), "float32", gpu)
    assert launches_of(batch_norm_apply(arrays, False)) is not None
    # shared memory, and a second launch that reads what the first one writes
    assert (
        launches_of(batch_norm_stats(CudaArrays((1, 64, 4, 4, 8), "float32", gpu), 1e-5, 0.1))
        is None
    )


@pytest.mark.parametrize("seed", range(20))
def test_batches(seed):
    rng = random.Random(seed)
    count = rng.choice([0, 1, 30])
    reads = [sorted(rng.sample(range(i), min(i, rng.randint(0, 3)))) for i in range(count)]
    movable = [rng.random() < 0.6 for _ in range(count)]
    found = batches(reads, movable)
    assert sorted(i for group in found for i in group) == list(range(count))
    done: set[int] = set()
    for group in found:
        assert all(j in done for i in group for j in reads[i])
        assert len(group) == 1 or all(movable[i] for i in group)
        done.update(group)
    stay = [i for i in range(count) if not movable[i]]
    assert [i for group in found for i in group if not movable[i]] == stay


def test_batches_wait_for_each_other():
    # two weights, each read by a product; two updates, each of a product's result and of another
    reads = [[], [0], [1], [], [1, 3], [4], [2, 5]]
    movable = [True, False, True, True, False, True, True]
    assert batches(reads, movable) == [[0, 3], [1], [4], [2, 5], [6]]
