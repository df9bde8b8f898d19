"""What a finished run becomes: weights of other commands, a dense network, an artifact."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import ttsnn
from ttsnn import models
from ttsnn.cli import main
from ttsnn.plans import TTPlan
from ttsnn.sources import ModelOptions, resolve
from ttsnn.weights import PLAN_KEY

NETS = """
from ttsnn import models

def build(T=2, num_classes=10):
    return models.SpikingVGG((4, "M", 6, 5), (1, 8, 8), num_classes, T, hidden=(7,))
"""
DATA = ["--dataset", "digits", "--T", "3", "--seed", "1"]
FLOAT64 = ["--dtype", "float64"]


@pytest.fixture
def train(tmp_path, monkeypatch, capfd):
    """``train(name, words) → folder`` of a short run of a small convolutional network."""
    (tmp_path / "runnets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    short = ["--limit", "48", "--batch", "16", "--epochs", "1", "--threads", "1", "--lr", "0.05"]

    def run(name, *words):
        folder = tmp_path / name
        assert main(["train", "runnets:build", *DATA, *short, *words, "-o", str(folder)]) == 0
        capfd.readouterr()
        return folder

    return run


@pytest.mark.parametrize("mode", ["ptt", "htt", pytest.param("stt", marks=pytest.mark.slow)])
def test_twin_dense_network_and_artifact_agree_after_training(train, tmp_path, capfd, mode):
    folder = train("run", "--plan", "rank=2", "--mode", mode, "--init", "fresh", *FLOAT64)
    trained = ["runnets:build", *DATA, "--weights", str(folder), *FLOAT64]
    x = models.load_dataset("digits", None, "test").images[:5].double()

    cores, dense = str(tmp_path / "cores.safetensors"), str(tmp_path / "dense.safetensors")
    assert main(["export", *trained, "--to", "safetensors", "-o", cores]) == 0
    state = load_file(cores)
    assert all(torch.equal(v, state[k]) for k, v in load_file(folder / "best.safetensors").items())
    plan = TTPlan.from_json(json.loads((folder / "checkpoint.json").read_text())["config"]["plan"])
    bare = resolve("runnets:build", ModelOptions("digits", timesteps=3)).module.double()
    twin = models.apply_plan(bare, plan)
    twin.load_state_dict(state)
    logits, spikes = models.spikes_of(twin.eval(), x)

    merge = ["export", *trained, "--to", "safetensors", "--merge", "-o", dense]
    if mode == "htt":
        assert main(merge) == 2
        assert "two weights" in capfd.readouterr().err
        merged = models.merge_tt(twin)
    else:
        assert main(merge) == 0
        merged = resolve("runnets:build", ModelOptions("digits", timesteps=3, weights=dense)).module
    merged_logits, merged_spikes = models.spikes_of(merged.eval(), x)

    artifact = str(tmp_path / "net.ttsnn")
    words = ["--batch", "5", "--record-spikes", "-o", artifact]
    assert main(["compile", *trained, *words]) == 0
    net = ttsnn.load(artifact)
    assert net.manifest.plan == plan.to_json()
    own, *own_spikes = net(x)

    scale = float(logits.abs().max())
    for other in (merged_logits, torch.as_tensor(own)):
        assert float((other - logits).abs().max()) <= 1e-10 * scale
    assert len(spikes) == len(merged_spikes) == len(own_spikes)
    for (name, a), (_, b), c in zip(spikes, merged_spikes, own_spikes):
        assert torch.equal(a, b), name
        assert torch.equal(a, torch.as_tensor(c)), name
    assert sum(float(s.sum()) for _, s in spikes) > 0


def test_every_command_takes_a_run(train, tmp_path, capfd):
    folder = train("run", "--plan", "rank=2")
    model = ["runnets:build", *DATA]
    trained = [*model, "--weights", str(folder)]
    accuracies = []
    for words in ([], ["--plan", "rank=2"], ["--compiled", "--batch", "32"]):
        assert main(["eval", *trained, "--limit", "64", *words, "--json"]) == 0
        accuracies.append(json.loads(capfd.readouterr().out)["accuracy"])
    assert len(set(accuracies)) == 1
    assert main(["compare", *trained, "--against", "none", "--repeats", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["weights"] == "given"
    for words in (["gradcheck", "--batch", "4"], ["report"]):
        assert main([words[0], *trained, *words[1:], "--json"]) == 0
        capfd.readouterr()
    more = train("more", "--weights", str(folder / "checkpoint.json"), "--plan", "rank=2")
    first, second = (load_file(f / "best.safetensors") for f in (folder, more))
    assert list(first) == list(second)
    core = next(k for k in first if k.endswith(".g1"))
    change = float((first[core] - second[core]).norm() / first[core].norm())
    assert 0 < change < 0.5  # further from where it was, not from fresh cores


def test_cores_and_plans_that_do_not_belong_together_are_refused(train, tmp_path, capfd):
    folder = train("run", "--plan", "rank=2", "--no-eval")
    assert not (folder / "best.safetensors").exists()
    trained = ["eval", "runnets:build", *DATA, "--limit", "32", "--weights"]
    found = resolve("runnets:build", ModelOptions("digits", timesteps=3, weights=folder))
    save_file(found.module.state_dict(), tmp_path / "bare.safetensors")
    other = {PLAN_KEY: json.dumps({"schema": "something else"})}
    save_file(found.module.state_dict(), tmp_path / "odd.safetensors", other)
    (tmp_path / "empty").mkdir()
    TTPlan(found.plan.layers, "by hand").save(tmp_path / "plan.json")
    for words, message in (
        ([folder, "--plan", "rank=3"], "cores are of the plan rank=2, ptt, not of rank=3, ptt"),
        ([folder, "--plan", "rank=2", "--mode", "stt"], "not of rank=2, stt"),
        ([tmp_path / "bare.safetensors"], "give the plan that they were trained with"),
        ([tmp_path / "bare.safetensors", "--plan", "rank=3"], "do not fit"),
        ([tmp_path / "odd.safetensors"], "not a TT plan"),
        ([tmp_path / "empty"], "no run of ttsnn train"),
        ([tmp_path / "bare.safetensors", "--plan", "rank=2"], None),
        ([tmp_path / "bare.safetensors", "--plan", tmp_path / "plan.json"], None),
        ([folder, "--plan", tmp_path / "plan.json"], None),
    ):
        code = main([*trained, *map(str, words)])
        error = capfd.readouterr().err
        assert code == (0 if message is None else 2), (words, error)
        assert "Traceback" not in error
        assert message is None or message in error, error
    damaged = next(folder.glob("step-*.safetensors"))
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    assert main([*trained, str(folder)]) == 2
    assert "damaged" in capfd.readouterr().err
