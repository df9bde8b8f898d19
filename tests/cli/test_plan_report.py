"""``ttsnn plan`` and ``ttsnn report``: what they print and write."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from ttsnn.cli import main
from ttsnn.plans import TTPlan, cores_of_layer
from ttsnn.tt import ConvCores, reconstruct_conv

NETWORK = """
import torch
from ttsnn.models import LIF

class Net(torch.nn.Module):
    def __init__(self, static=True, T=3):
        super().__init__()
        self.T, self.static_input, self.input_shape = T, static, (2, 6, 6)
        self.stem = torch.nn.Conv2d(2, 8, 3, padding=1)
        self.conv = torch.nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.fc = torch.nn.Linear(12, 5)
        self.lif1, self.lif2 = LIF(), LIF()

    def forward(self, x):
        if self.static_input:
            x = x.unsqueeze(0).expand(self.T, *x.shape)
        steps, batch = x.shape[:2]
        x = self.stem(x.flatten(0, 1)).unflatten(0, (steps, batch))
        x = self.conv(self.lif1(x).flatten(0, 1)).unflatten(0, (steps, batch))
        return self.fc(self.lif2(x).mean((3, 4)).mean(0))

def static():
    return Net()

def events():
    return Net(static=False)
"""
STEM, CONV, FC = 8 * 2 * 9, 12 * 8 * 9, 5 * 12  # entries of the weights
PIXELS, T = 36, 3
DENSE_FLOPS = T * PIXELS * (STEM + CONV) + FC


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A folder with a small network, which is the current one; weights in ``weights.pt``."""
    (tmp_path / "tiny_plan_net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tiny_plan_net", raising=False)
    import tiny_plan_net

    torch.manual_seed(1)
    module = tiny_plan_net.static()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    yield module
    sys.modules.pop("tiny_plan_net", None)


def _json(capfd, *words: str) -> dict:
    code = main([*words, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_plan_writes_a_plan_and_prints_the_errors_of_its_fit(capfd, network, tmp_path, mode):
    words = ["plan", "tiny_plan_net:static", "--weights", "weights.pt"]
    data = _json(capfd, *words, "--rule", "rank=4", "--mode", mode, "-o", "plan.json")
    plan = TTPlan.load("plan.json")
    assert data["plan"] == plan.to_json()
    assert list(plan.layers) == ["conv"]
    assert plan.layers["conv"].ranks == (4, 4, 4)
    assert data["weights"] == "given"
    assert data["weights_note"] is None
    rows = {r["name"]: r for r in data["layers"]}
    assert list(rows) == ["stem", "conv", "fc"]
    assert rows["stem"]["mode"] == "dense"
    weight = network.conv.weight.detach().double().numpy()
    cores = ConvCores(*cores_of_layer("conv", plan.layers["conv"], weight, T=T).values())
    difference = np.linalg.norm(weight - reconstruct_conv(cores, mode))
    assert rows["conv"]["error"]["weight"] == pytest.approx(
        difference / np.linalg.norm(weight), rel=1e-6
    )
    assert (rows["conv"]["error"]["cross"] is None) == (mode == "stt")
    assert (rows["conv"]["error"]["half"] is None) == (mode != "htt")
    assert [p.name for p in tmp_path.glob("*.json")] == ["plan.json"]


def test_plan_for_people(capfd, network):
    assert main(["plan", "tiny_plan_net:static", "--rule", "rank=4"]) == 0
    out = capfd.readouterr().out
    for word in ("conv", "12×8×3×3", "ptt", "fit error", "of cross", "weights are random"):
        assert word in out
    assert "stem" not in out


def test_plan_includes_what_it_is_told_to(capfd, network):
    words = ["plan", "tiny_plan_net:static", "--rule", "rank=2", "--include", "stem"]
    data = _json(capfd, *words, "--include", "classifier", "--mode", "stt")
    assert list(data["plan"]["layers"]) == ["stem", "conv", "fc"]
    assert data["plan"]["layers"]["fc"]["kind"] == "linear"
    assert all(0 < r["error"]["weight"] < 1 for r in data["layers"][1:])
    words = ["plan", "tiny_plan_net:static", "--rule", "rank=2", "--mode", "htt"]
    data = _json(capfd, *words, "--full-timesteps", "1")
    assert data["plan"]["layers"]["conv"]["timesteps"] == 1


@pytest.mark.parametrize(("factory", "stem_runs"), [("events", T), ("static", 1)])
def test_report_of_a_dense_network(capfd, network, factory, stem_runs):
    """The kernels execute what is counted, save for the stem that a static image needs once."""
    data = _json(capfd, "report", f"tiny_plan_net:{factory}")
    want = {"params": sum(p.numel() for p in network.parameters()), "flops": DENSE_FLOPS}
    assert data["dense"] == data["tt"] == want
    assert data["ratio"] == {"params": 1.0, "flops": 1.0}
    assert data["executed"]["macs"] == DENSE_FLOPS - (T - stem_runs) * PIXELS * STEM
    assert [r["error"] for r in data["layers"]] == [None] * 3


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_report_of_a_plan(capfd, network, mode):
    data = _json(capfd, "report", "tiny_plan_net:events", "--plan", "rank=3", "--mode", mode)
    cores = 8 * 3 + 6 * 9 + 3 * 12
    steps = {"stt": T * cores, "ptt": T * cores, "htt": 2 * cores + 8 * 3 + 3 * 12}[mode]
    params = STEM + 8 + cores + FC + 5
    flops = T * PIXELS * STEM + PIXELS * steps + FC
    assert data["tt"] == {"params": params, "flops": flops}
    assert data["ratio"]["params"] == round((STEM + 8 + CONV + FC + 5) / params, 2)
    assert data["ratio"]["flops"] == round(DENSE_FLOPS / flops, 2)
    assert data["executed"]["ratio"] == round(DENSE_FLOPS / data["executed"]["macs"], 2)
    # the stem and the classifier as they are, and at least one multiplication a core entry
    assert data["executed"]["macs"] > T * PIXELS * STEM + FC + cores
    assert data["weights"] == "random"
    assert "random" in data["weights_note"]
    assert data["layers"][1]["error"]["weight"] > 0
    fresh = ["report", "tiny_plan_net:events", "--plan", "rank=3", "--mode", mode]
    assert _json(capfd, *fresh, "--init", "fresh")["layers"][1]["error"] is None


def test_report_reads_a_plan_file(capfd, network):
    assert main(["plan", "tiny_plan_net:events", "--rule", "rank=2", "-o", "p.json"]) == 0
    capfd.readouterr()
    data = _json(capfd, "report", "tiny_plan_net:events", "--plan", "p.json")
    assert data["layers"][1]["ranks"] == [2, 2, 2]
    assert main(["report", "tiny_plan_net:events", "--plan", "p.json"]) == 0
    out = capfd.readouterr().out
    for word in ("tensor trains", "executed (cpu)", "ratio", "2"):
        assert word in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "tiny_plan_net:static", "--rule", "paper"], "not for this network"),
        (["plan", "tiny_plan_net:static", "--rule", "rank=x"], "integer ≥ 1"),
        (["plan", "tiny_plan_net:static", "--rule", "gone.json"], "gone.json"),
        (["plan", "tiny_plan_net:static", "--rule", "rank=2", "--include", "stm"], "'stem'"),
        (["plan", "tiny_plan_net:static", "--rule", "rank=2", "-o", "no/p.json"], "no/p.json"),
        (["plan", "tiny_plan_net:static", "--rule", "rank=2", "--full-timesteps", "2"], "htt"),
        (
            ["plan", "tiny_plan_net:static", "--rule", "rank=2", "--mode", "htt",
             "--full-timesteps", "9"],
            "layer 'conv'",
        ),
        (["report", "tiny_plan_net:static", "--plan", "half"], "unknown plan rule 'half'"),
        (["report", "tiny_plan_net:static", "--target", "gpu9"], "unknown target 'gpu9'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(capfd, network, words, message):
    assert main([*words, "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "dataset", "mode", "params", "flops"),
    [
        ("ms_resnet34", "ncaltech101", "ptt", 7.98, 9.25),
        ("ms_resnet34", "ncaltech101", "htt", 7.98, 11.70),
        ("ms_resnet18", "cifar10", "ptt", 6.78, 5.97),
        ("ms_resnet18", "cifar10", "htt", 6.78, 7.78),
    ],
)
def test_published_ratios(capfd, model, dataset, mode, params, flops):
    words = ["report", model, "--dataset", dataset, "--plan", "paper", "--mode", mode]
    data = _json(capfd, *words, "--init", "fresh")
    assert data["ratio"] == {"params": params, "flops": flops}
    assert data["executed"]["ratio"] > flops
    if model == "ms_resnet34":
        assert data["dense"] == {"params": 21311205, "flops": 15643953664}
