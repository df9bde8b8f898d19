"""compare: the right verdicts on networks that agree, and on ones that were made to disagree."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import ttsnn
from ttsnn import models
from ttsnn.cli import main
from ttsnn.errors import DataError, ModelImportError, PlanError
from ttsnn.runtime import compare as comparing
from ttsnn.runtime.agreement import agreement_of, max_rel_error
from ttsnn.runtime.peers import DEFAULT_PEERS, PEERS, parse_peers
from ttsnn.sources import ModelOptions

DIGITS = ModelOptions(dataset="digits", timesteps=2)
FIELDS = {
    "ok", "max_rel_error", "flipped_spikes", "agreement", "time_ms", "time_ratio",
    "peak_memory_mb", "artifact_bytes", "compile_s", "threads", "batch", "dtype", "plan",
    "skipped", "weights", "params", "flops", "executed_macs",
}  # fmt: skip


def test_max_rel_error():
    b = np.array([1.0, -4.0])
    assert max_rel_error(b, b) == 0
    assert max_rel_error(np.array([1.0, -3.0]), b) == 0.25
    assert max_rel_error(np.zeros(2), np.zeros(2)) == 0
    assert max_rel_error(np.ones(2), np.zeros(2)) == float("inf")
    assert np.isnan(max_rel_error(np.array([np.nan, 1.0]), b))


def test_agreement():
    """Three samples, two layers; one spike of sample 1 flips in layer 1."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 4))
    spikes = [(rng.random((2, 3, 5)) < 0.3).astype(float) for _ in range(2)]
    same = agreement_of(logits, logits, spikes, spikes)
    assert (same.flipped_spikes, same.top1, same.checked_samples) == (0, 1.0, 3)
    assert same.total_spikes == int(sum(s.sum() for s in spikes))
    assert same.ok("float64")
    assert same.ok("float32")

    flipped = [s.copy() for s in spikes]
    flipped[1][0, 1, 2] = 1 - flipped[1][0, 1, 2]
    other = logits.copy()
    other[1] = -logits[1]
    a = agreement_of(other, logits, flipped, spikes)
    assert (a.flipped_spikes, a.first_flip, a.layer_flips) == (1, 1, (0, 1))
    assert a.checked_samples == 2
    assert a.checked_error == 0
    assert a.top1 == pytest.approx(2 / 3)
    assert not a.ok("float64")
    assert not a.ok("float32")  # one flip in 60 places is more than one in a hundred

    silent = agreement_of(other, logits, spikes, spikes)  # wrong without any flip
    assert not silent.ok("float32")
    broken = agreement_of(np.full((3, 4), np.nan), logits, spikes, spikes)
    assert not broken.ok("float32")
    unknown = agreement_of(logits + 1e-6, logits, None, None)
    assert unknown.flipped_spikes is None
    assert unknown.ok("float32")
    assert not unknown.ok("float64")


@pytest.mark.parametrize(
    ("plan", "mode", "dtype"),
    [("rank=2", "ptt", "float64"), ("rank=3", "htt", "float32"), (None, "stt", "float64")],
)
def test_networks_of_the_zoo_agree(plan, mode, dtype):
    data = ttsnn.compare(
        "spiking_vgg9",
        plan=plan,
        mode=mode,
        dtype=dtype,
        batch=2,
        threads=1,
        against="eager,dense_loop",
        repeats=1,
        options=DIGITS,
    )
    assert set(data) >= FIELDS
    assert data["ok"], data
    assert data["total_spikes"] > 0
    assert all(0.005 < r < 0.6 for r in data["firing_rates"].values())
    if dtype == "float64":
        assert data["flipped_spikes"] == 0
        assert data["max_rel_error"] <= 1e-10
    timed = {"ttsnn", "eager"} | ({"dense_loop"} if plan else set())
    assert set(data["time_ms"]) == timed
    assert all(ms > 0 for ms in data["time_ms"].values())
    assert (data["plan"] is not None) == (plan is not None)
    assert ("dense_loop" in data["skipped"]) == (plan is None)
    assert data["params"]["tt"] <= data["params"]["dense"]
    assert json.loads(json.dumps(data)) == data


def test_a_wrong_compilation_is_noticed(monkeypatch):
    """The compiled network gets one changed weight: exit code 1 and flipped spikes."""
    from ttsnn.program import params_of, with_params

    build = comparing.build

    def wrong(program, *args, **kwargs):
        params = params_of(program)
        name = next(k for k in params if k.endswith("weight") and params[k].ndim >= 2)
        changed = {**params, name: params[name] + np.asarray(0.5, params[name].dtype)}
        return build(with_params(program, changed), *args, **kwargs)

    monkeypatch.setattr(comparing, "build", wrong)
    words = ["compare", "spiking_mlp", "--dataset", "digits", "--T", "2", "--batch", "2"]
    assert main([*words, "--against", "none", "--seconds", "0", "--json"]) == 1


class Foreign(nn.Module):
    """A spiking network of somebody else: no LIF of ours, trained batch norm, own loop."""

    def __init__(self, T: int = 2):
        super().__init__()
        self.T = T
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.fc = nn.Linear(8, 4)
        nn.init.constant_(self.bn.running_mean, 0.1)

    def forward(self, x):
        v, out = 0.0, 0.0
        for _ in range(self.T):
            v = v + self.bn(self.conv(x))
            s = (v > 0.5).to(x.dtype)
            v = v * (1 - s)
            out = out + self.fc(self.conv2(s).mean((2, 3)))
        return out / self.T


def test_a_network_that_is_not_ours():
    torch.manual_seed(0)
    data = ttsnn.compare(
        Foreign(),
        plan="rank=2",
        mode="stt",
        dtype="float64",
        batch=3,
        threads=1,
        against=["eager", "eager_loop", "eager_channels_last"],
        repeats=1,
        options=ModelOptions(image_size=8),
    )
    assert data["ok"]
    assert data["weights"] == "given"
    assert data["flipped_spikes"] is None
    assert data["plan"]["layers"] == 1
    assert set(data["time_ms"]) == {"ttsnn", "eager", "eager_channels_last"}
    assert "not built of" in data["skipped"]["eager_loop"]


def test_peers_that_fail_are_skipped(monkeypatch):
    from ttsnn.runtime.peers import eager, onnxruntime

    def broken(*_):
        raise ValueError("no luck\nwith this")

    def absent(*_):
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setattr(eager, "prepare", broken)
    monkeypatch.setattr(onnxruntime, "prepare", absent)
    data = ttsnn.compare(
        "spiking_mlp", against="eager,onnxruntime", repeats=1, threads=1, options=DIGITS
    )
    assert data["ok"]
    assert data["skipped"]["eager"] == "ValueError: no luck"
    assert "not installed" in data["skipped"]["onnxruntime"]
    assert set(data["time_ms"]) == {"ttsnn"}


def test_parse_peers():
    assert parse_peers(None) == DEFAULT_PEERS
    assert parse_peers("none") == ()
    assert parse_peers("eager, eager,dense_loop") == ("eager", "dense_loop")
    assert set(parse_peers("all")) == {*PEERS, *(f"dense_{p}" for p in PEERS)}
    with pytest.raises(DataError, match="unknown peer 'tensorflow'"):
        parse_peers("eager,tensorflow")


def test_bad_requests(tmp_path):
    with pytest.raises(DataError, match="float32 or float64"):
        ttsnn.compare("spiking_mlp", dtype="float16", options=DIGITS)
    with pytest.raises(PlanError):
        ttsnn.compare("spiking_mlp", plan="magic", options=DIGITS)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    with pytest.raises(ModelImportError, match="needs the PyTorch network"):
        ttsnn.compare(str(path))


def test_command(capfd):
    words = ["compare", "spiking_mlp", "--dataset", "digits", "--T", "2", "--plan", "rank=2"]
    words += ["--batch", "3", "--threads", "1", "--repeats", "1", "--against", "eager,dense_eager"]
    assert main([*words, "--json", "--real"]) == 0
    data = json.loads(capfd.readouterr().out)
    assert (data["batch"], data["threads"], data["dtype"]) == (3, 1, "float32")
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "agrees with PyTorch" in out
    assert "dense_eager" in out


def test_given_weights_are_kept(tmp_path, capfd):
    """Trained weights come with their own statistics: nothing is calibrated."""
    model = models.create("spiking_vgg9", "digits", T=2, seed=3)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    words = ["compare", "spiking_vgg9", "--dataset", "digits", "--T", "2", "--json"]
    words += ["--weights", str(tmp_path / "w.pt"), "--against", "eager", "--repeats", "1"]
    assert main(words) == 0
    data = json.loads(capfd.readouterr().out)
    assert data["weights"] == "given"
    expected = models.spikes_of(model, models.example_input(model, 1, "float32", 0))[1]
    assert data["total_spikes"] == sum(int(s.sum()) for _, s in expected)
