"""``ttsnn export``: files that other tools run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ttsnn import models
from ttsnn.cli import main

MLP = ("spiking_mlp", "--dataset", "digits", "--T", "2", "--dtype", "float64")


def test_onnx_runs_in_onnxruntime(capfd, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = str(tmp_path / "net.onnx")
    assert main(["export", *MLP, "--dynamic-batch", "-o", path, "--json"]) == 0
    out, err = capfd.readouterr()
    data = json.loads(out)
    assert data["format"] == "onnx"
    assert data["bytes"] > 0
    assert err == ""
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": x.numpy()})[0]
    want = models.create("spiking_mlp", "digits", T=2).double()(x).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_pt2_runs_in_pytorch(capfd, tmp_path):
    path = str(tmp_path / "net.pt2")
    assert main(["export", *MLP, "--to", "pt2", "--batch", "3", "-o", path]) == 0
    assert "MB" in capfd.readouterr().out
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    want = models.create("spiking_mlp", "digits", T=2).double()(x)
    torch.testing.assert_close(torch.export.load(path).module()(x), want)


def test_bad_input(capfd, tmp_path):
    words = [*MLP, "-o", str(tmp_path / "none" / "net.onnx")]
    assert main(["export", *words]) == 2
    assert "cannot be written" in capfd.readouterr().err
    assert main(["export", *MLP, "--to", "tflite"]) == 2
    assert list(tmp_path.iterdir()) == []
