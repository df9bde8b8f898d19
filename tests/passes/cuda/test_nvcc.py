"""What the CUDA compiler makes of the zoo: machine code for two architectures, without spills."""

from __future__ import annotations

import pytest

from ttsnn import models
from ttsnn.cuda.toolkit import find_nvcc
from ttsnn.passes.training import SGD, CrossEntropy, build_train_step
from ttsnn.targets import get_target

from .full_size import full_size

FEW_BYTES = 32
"""A thread that parks this much once beside its loops loses nothing: eight registers."""


@pytest.mark.slow
@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("phase", ["inference", "train"])
@pytest.mark.parametrize("mode", [None, "stt", "ptt", "htt"])
@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_zoo(name, mode, phase):
    mod = full_size(name, mode, rank=24, batch=32)
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
