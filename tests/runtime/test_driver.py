"""``ttsnn.compile`` and what it returns, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ttsnn
from ttsnn import models
from ttsnn.errors import ArtifactError, DataError, ModelImportError, PlanError, TargetError


@pytest.fixture(scope="module")
def network():
    """A small spiking VGG on digits, T = 2."""
    return models.create("spiking_vgg9", "digits", T=2, seed=1)


@pytest.fixture(scope="module")
def compiled(network):
    """It, with tensor trains, an open batch, and recorded spikes."""
    return ttsnn.compile(network, plan="rank=3", mode="stt", dynamic_batch=True, record_spikes=True)


def test_spikes_and_logits(network, compiled):
    plan = ttsnn.plan(network, "rank=3", "stt")
    assert len(plan) > 3
    twin = models.apply_plan(network, plan)
    for batch in (1, 3):
        x = models.example_input(network, batch, "float32", batch)
        logits, spikes = models.spikes_of(twin, x)
        out = compiled(x)
        assert all(isinstance(o, torch.Tensor) for o in out)
        np.testing.assert_allclose(out[0].numpy(), logits.numpy(), rtol=1e-4, atol=1e-5)
        assert len(compiled.manifest.spikes) == len(spikes) == len(out) - 1
        for ours, (name, theirs) in zip(out[1:], spikes):
            assert torch.equal(ours, theirs), name


def test_saved_and_loaded(compiled, tmp_path):
    path = tmp_path / "net.ttsnn"
    assert compiled.save(path) == path.stat().st_size
    net = ttsnn.load(path)
    assert net.manifest == compiled.manifest
    assert net.manifest.T == 2
    assert net.manifest.plan["rule"] == "rank=3"
    assert net.manifest.versions["ttsnn"] == ttsnn.__version__
    assert sum(k.macs for k in net.manifest.kernels) > 0
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype("float32")
    for a, b in zip(net(x), compiled(x)):
        np.testing.assert_array_equal(a, b)


def test_arrays_of_any_alignment_are_shared(compiled, monkeypatch):
    """NumPy aligns to 16 bytes and less in slices; the kernels take what they get."""
    seen = []
    run = compiled._run
    monkeypatch.setattr(
        compiled, "_run", lambda tensors, n: seen.append(tensors["x"]) or run(tensors, n)
    )
    values = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype("float32")
    expected = compiled(values)[0].copy()
    base = np.zeros(values.nbytes + 64, np.uint8)
    for offset in range(0, 64, 4):
        x = base[offset : offset + values.nbytes].view("float32").reshape(values.shape)
        x[:] = values
        seen.clear()
        np.testing.assert_array_equal(compiled(x)[0], expected)
        assert np.from_dlpack(seen[0]).ctypes.data == x.ctypes.data


def test_example_decides_shape_and_dtype():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 3 * 5, 4)).double()
    x = torch.randn(2, 2, 5, 7, dtype=torch.float64)
    compiled = ttsnn.compile(net, x)
    assert (compiled.inputs[0].shape, compiled.inputs[0].dtype) == ((2, 2, 5, 7), "float64")
    with torch.no_grad():
        np.testing.assert_allclose(compiled(x.numpy()), net(x).numpy(), rtol=1e-12)
    with pytest.raises(DataError, match="got dtype float32"):
        compiled(x.float())


class Integrator(nn.Module):
    """Keeps its membrane in a buffer from call to call."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer("v", torch.zeros(4, 2))

    def forward(self, x):
        self.v.mul_(0.5).add_(self.fc(x))
        return (self.v > 0.1).to(x.dtype) + self.v


def test_state_is_carried():
    torch.manual_seed(0)
    net = Integrator().eval()
    compiled = ttsnn.compile(net, torch.zeros(4, 3))
    assert [s.input for s in compiled.manifest.state] == ["v"]
    assert len(compiled.outputs) == 1
    for _ in range(2):
        net.v.zero_()
        compiled.reset()
        for _ in range(3):
            x = torch.randn(4, 3)
            with torch.no_grad():
                expected = net(x)
            torch.testing.assert_close(compiled(x), expected)
            np.testing.assert_allclose(compiled.state["v"], net.v.numpy(), rtol=1e-5, atol=1e-6)


def test_errors_come_before_the_work(network, tmp_path):
    with pytest.raises(TargetError, match="unknown target"):
        ttsnn.compile(network, target="abacus")
    with pytest.raises(PlanError):
        ttsnn.compile(network, plan="rank=-1")
    with pytest.raises(ArtifactError, match="does not exist"):
        ttsnn.compile(network, out=tmp_path / "no" / "net.ttsnn")
    with pytest.raises(ArtifactError, match="is a folder"):
        ttsnn.compile(network, out=tmp_path)
    with pytest.raises(ModelImportError, match="got dict"):
        ttsnn.compile({})


def test_linking_fails_with_a_cure(compiled, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("cc: not found")

    monkeypatch.setattr(type(compiled.executable), "export_library", broken)
    with pytest.raises(ArtifactError, match=r"not found.*C\+\+ compiler"):
        compiled.save(tmp_path / "net.ttsnn")
    assert list(tmp_path.iterdir()) == []


def test_public_names():
    assert set(ttsnn.__all__) <= set(dir(ttsnn))
    assert all(getattr(ttsnn, name) is not None for name in ttsnn.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ttsnn.nothing
