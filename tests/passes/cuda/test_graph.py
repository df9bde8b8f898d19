"""CUDA graphs on the emulated GPU: replayed from the second call on, with each call's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ttsnn
from ttsnn import models
from ttsnn.cuda import emulator
from ttsnn.errors import TargetError


def test_graph_is_replayed():
    torch.manual_seed(0)
    model = models.create("spiking_mlp", "digits", T=2, hidden=(12,)).eval()
    x = models.example_input(model, batch=2)
    net = ttsnn.compile(model, x, target="cuda-emulated:graph=on")
    before = emulator.graph_launches()
    for scale in (1.0, 0.5, 2.0):
        with torch.inference_mode():
            np.testing.assert_allclose(net(scale * x), model(scale * x), atol=1e-5)
    assert emulator.graph_launches() - before == 2


def test_training_is_refused():
    model = models.create("spiking_mlp", "digits", T=2, hidden=(12,))
    x = models.example_input(model, batch=2)
    with pytest.raises(TargetError, match="graph=on is for inference"):
        ttsnn.compile(model, x, target="cuda-emulated:graph=on", training=True)
