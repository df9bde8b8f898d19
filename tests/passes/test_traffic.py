"""Bytes and multiply-accumulates of a lowered program, counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from ttsnn.frontend import import_model
from ttsnn.passes.traffic import Traffic, traffic
from ttsnn.targets import get_target


def test_two_equal_convolutions():
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    mod = import_model(nn.Sequential(conv, nn.ReLU(), conv).eval(), example=torch.zeros(2, 4, 6, 5))
    target = get_target("cuda:arch=sm_90")
    found = [t for t in traffic(target.lower(mod)) if t.rule == "conv"]
    pixels = 2 * 6 * 5
    assert sum(t.calls for t in found) == 2
    assert sum(t.macs for t in found) == 2 * pixels * 9 * 4 * 4
    assert sum(t.bytes for t in found) == 2 * 4 * (2 * pixels * 4 + 9 * 4 * 4)


def test_longest_of_three():
    kernel = Traffic("conv", "conv", 10, 1000, 600)
    assert kernel.seconds(100.0, 100.0) == 10.0
    assert kernel.seconds(1e9, 100.0) == 6.0
    assert kernel.seconds(1e9, 1e9, 2.0) == 20.0
