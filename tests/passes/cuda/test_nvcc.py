"""What the CUDA compiler makes of the zoo: machine code for two architectures, without spills."""

from __future__ import annotations

import pytest
import torch

from ttsnn import models
from ttsnn.cuda.toolkit import find_nvcc
from ttsnn.frontend import import_model
from ttsnn.passes import DecomposeToTT, layer_infos
from ttsnn.passes.training import SGD, CrossEntropy, build_train_step
from ttsnn.plans import make_plan
from ttsnn.targets import get_target

FEW_BYTES = 16
"""A thread that parks this much once beside its loops loses nothing."""


@pytest.mark.slow
@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("phase", ["inference", "train"])
@pytest.mark.parametrize("mode", [None, "stt", "ptt", "htt"])
@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_zoo(name, mode, phase):
    torch.manual_seed(0)
    dataset = "digits" if name == "spiking_mlp" else "cifar10"
    model = models.create(name, dataset, T=4).eval()
    mod = import_model(model, example=models.example_input(model, batch=32))
    if mode is not None:
        mod = DecomposeToTT(make_plan(layer_infos(mod), "rank=24", mode, T=4), init="fresh")(mod)
    target = get_target("cuda:arch=sm_80+sm_90")
    if phase == "train":
        step = build_train_step(mod, CrossEntropy(), SGD(momentum=0.9))
        target.build(target.lower_training(step))
    else:
        target.build(target.lower(mod))
    usage = [u for code in target.device_code for u in code.usage]
    assert {u.arch for u in usage} == {"sm_80", "sm_90"}
    spilled = [u for u in usage if max(u.spill_stores, u.spill_loads) > FEW_BYTES]
    assert spilled == []
    assert max(u.shared_bytes for u in usage) <= 48 * 1024
