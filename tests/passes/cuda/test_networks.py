"""Networks of the zoo on the emulated GPU against the CPU target, spike by spike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from ttsnn import models
from ttsnn.frontend import import_model
from ttsnn.passes import DecomposeToTT, layer_infos
from ttsnn.plans import make_plan
from ttsnn.program import params_of
from ttsnn.targets import get_target

from .emulated import emulated, run
from .full_size import full_size

SMALL = {"spiking_mlp": {}, "spiking_vgg9": {"image_size": 16}, "spiking_vgg11": {"image_size": 32}}


def program(name, mode, dtype, batch, dynamic=False, T=2):
    torch.manual_seed(0)
    size = SMALL.get(name, {"image_size": 8})
    model = models.create(name, "digits", T=T, **size).eval().to(getattr(torch, dtype))
    x = models.example_input(model, batch=batch).to(getattr(torch, dtype))
    mod = import_model(model, example=x, dynamic_batch=dynamic)
    if mode is not None:
        mod = DecomposeToTT(make_plan(layer_infos(mod), "rank=5", mode, T=T))(mod)
    return mod, x.numpy()


def on_cpu(mod, x):
    cpu = get_target("cpu")
    lowered = cpu.lower(mod, record_spikes=True)
    machine = relax.VirtualMachine(cpu.build(lowered), tvm.cpu())
    values = [tvm.runtime.tensor(v) for v in (x, *params_of(lowered).values())]
    return [o.numpy() for o in machine["main"](*values)]


def compare(name, mode, dtype, batch=2, **options):
    mod, x = program(name, mode, dtype, batch, **options)
    target = emulated()
    lowered = target.lower(mod, record_spikes=True)
    assert all(k.scheduled for k in target.kernels(lowered))
    logits, *spikes = run(target, lowered, [x])
    wanted, *known = on_cpu(mod, x)
    flipped = sum(int((a != b).sum()) for a, b in zip(spikes, known, strict=True))
    assert 0.02 < np.mean([k.mean() for k in known]) < 0.9
    if dtype == "float64":
        assert flipped == 0
    if flipped == 0:
        np.testing.assert_allclose(logits, wanted, atol=1e-12 if dtype == "float64" else 1e-4)
    assert flipped <= 1e-3 * sum(k.size for k in known)


@pytest.mark.parametrize(
    ("mode", "dtype", "dynamic"),
    [(None, "float64", False), ("ptt", "float64", False), ("ptt", "float32", True)],
)
def test_mlp(mode, dtype, dynamic):
    compare("spiking_mlp", mode, dtype, dynamic=dynamic)


def test_residual_network():
    compare("ms_resnet18", "htt", "float64", batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", [None, "stt", "ptt", "htt"])
@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_zoo(name, mode, dtype):
    compare(name, mode, dtype, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "stt", "ptt", "htt"])
@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_every_kernel_of_the_zoo_is_bound(name, mode):
    """Full sizes, both programs of a step; nothing is left to the host, or to the fallback."""
    from ttsnn.passes.training import SGD, CrossEntropy, build_train_step

    mod = full_size(name, mode, rank=8, batch=8)
    target = get_target("cuda:arch=sm_90")
    step = build_train_step(mod, CrossEntropy(), SGD(momentum=0.9))
    for lowered in (target.lower(mod), target.lower_training(step)):
        assert [k.name for k in target.kernels(lowered) if not k.scheduled] == []
