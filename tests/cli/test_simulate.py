"""``ttsnn simulate``: reports that agree with each other, and what is refused."""

from __future__ import annotations

import json
import os

import pytest

from ttsnn.cli import main

NET = ("ms_resnet18", "--image-size", "8", "--T", "2", "--plan", "rank=4", "--init", "fresh")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _json(capfd, *words: str) -> dict:
    assert main(["simulate", *words, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


@pytest.mark.slow
def test_inference_with_everything(capfd, folder):
    pytest.importorskip("matplotlib")
    data = _json(
        capfd, *NET, "--arch", "sata", "--compare", "ttsnn4", "--trace", "trace.json",
        "--plots", ".", "--sweep", "pes=64,128", "--attribute",
    )  # fmt: skip
    energy = data["energy_nj"]
    assert energy["total"] == pytest.approx(sum(v for k, v in energy.items() if k != "total"))
    assert data["cycles"] >= max(data["least_cycles"].values())
    assert 0 < data["utilization"] < 1
    assert data["macs"] == sum(data["executed"].values())
    assert data["dram_bytes"] > 0
    assert 0 < min(data["density"].values()) < max(data["density"].values()) < 1
    assert data["compare"]["macs"] == data["macs"]
    assert [r["name"] for r in data["sweep"]] == ["pes=64", "pes=128"]
    assert data["sweep"][1]["cycles"] == data["cycles"] < data["sweep"][0]["cycles"]
    rows = {r["name"]: r for r in data["attribution"]}
    assert rows["all"]["energy_nj"] == energy
    assert rows["without fusion"]["dram_bytes"] > data["dram_bytes"]
    assert rows["without pack_spikes"]["dram_bytes"] > data["dram_bytes"]
    assert rows["without gating"]["energy_nj"]["compute"] > energy["compute"]
    assert rows["without merge_cross"]["macs"] > data["macs"]
    assert rows["none"]["energy_nj"]["total"] == max(
        r["energy_nj"]["total"] for r in data["attribution"]
    )
    assert (
        len(json.loads((folder / "trace.json").read_text())["traceEvents"]) > data["instructions"]
    )
    assert sorted(os.listdir()) == [
        "energy.png", "layers.png", "sweep.png", "trace.json", "units.png",
    ]  # fmt: skip


TRAINING = (*NET, "--arch", "sata", "--phase", "training", "--timing-only", "--tech", "sata28")


def test_training(capfd):
    data = _json(capfd, *TRAINING, "--firing-rate", "0", "--without", "recompute,gating")
    assert data["executed"]["acc"] == 0 < data["executed"]["mac8"]
    assert data["firing_rate"] == 0
    assert [p["phase"] for p in data["phases"]] == ["forward", "head", "backward", "update"]
    assert data["energy_nj"]["leakage"] > 0
    assert {k for k, v in data["options"].items() if not v} == {"recompute", "gating"}


@pytest.mark.slow
def test_the_firing_rate_and_ideas(capfd):
    silent = _json(capfd, *TRAINING, "--firing-rate", "0")
    data = _json(capfd, *TRAINING)
    assert silent["executed"]["acc"] == 0 < data["executed"]["acc"]
    assert silent["cycles"] == data["cycles"]
    assert data["firing_rate"] == 0.1
    stored = _json(capfd, *TRAINING, "--without", "recompute,gating")
    assert stored["options"] == data["options"] | {"recompute": False, "gating": False}
    assert stored["macs"] <= data["macs"]


def test_fixed_point(capfd):
    data = _json(capfd, *NET, "--arch", "sata", "--fixed-point")
    (error,) = data["fixed_point"]["outputs"].values()
    assert 0 < error["max_error"] < 2 * error["largest"]
    assert set(data["fixed_point"]["density_change"]) == set(data["density"])


def test_for_people(capfd):
    assert main(["simulate", *NET, "--timing-only", "--compare", "sata"]) == 0
    out = capfd.readouterr().out
    for word in ("assumed spikes", "ttsnn4", "energy, µJ", "layer4.1.conv2", "PEs in use"):
        assert word in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arch", "stata"), "unknown architecture 'stata', did you mean sata"),
        (("--arch", "none.toml"), "architecture file none.toml: No such file"),
        (("--compare", "cpu"), "unknown architecture 'cpu'"),
        (("--tech", "tsmc5"), "unknown technology 'tsmc5'"),
        (("--firing-rate", "0.2"), "--firing-rate needs --timing-only"),
        (("--operand-rate", "0.2"), "--operand-rate needs --timing-only"),
        (("--timing-only", "--firing-rate", "1.5"), "between 0 and 1, got 1.5"),
        (("--timing-only", "--operand-rate", "-1"), "between 0 and 1, got -1"),
        (("--timing-only", "--fixed-point"), "--fixed-point is about values"),
        (("--without", "magic"), "no idea 'magic' to switch off; use fusion"),
        (("--sweep", "speed=9"), "'speed=9' is no axis"),
        (("--trace", "no/trace.json"), "no such folder"),
        (("--plots", "nowhere"), "there is no folder nowhere"),
        (("--phase", "sleep"), "invalid choice: 'sleep'"),
        (("--batch", "0"), "at least 1"),
        (("--sweep", "pes=100", "--timing-only"), "100 PEs cannot be shared out"),
    ],
)
def test_bad_arguments(capfd, words, message):
    assert main(["simulate", *NET, *words]) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert os.listdir() == []


def test_a_machine_that_is_too_small_says_so(capfd, folder):
    from importlib import resources

    text = resources.files("ttsnn.accel_target").joinpath("architectures/sata.toml").read_text()
    for name in ("weight", "input", "output"):
        size = next(x for x in text.splitlines() if x.startswith(f"{name}_buffer"))
        text = text.replace(size, f"{name}_buffer = 64")
    (folder / "tiny.toml").write_text(text)
    assert main(["simulate", *NET, "--timing-only", "--arch", "tiny.toml"]) == 2
    err = capfd.readouterr().err
    assert "buffer" in err
    assert "Traceback" not in err
