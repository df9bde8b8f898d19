"""``ttsnn gradcheck``."""

import json

import pytest

from ttsnn.cli import main

_MLP = ["spiking_mlp", "--dataset", "digits", "--T", "2", "--threads", "1"]


def test_gradients_agree_and_every_parameter_is_compared(capsys):
    code = main(["gradcheck", *_MLP, "--finite-differences", "--batch", "3", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert code == 0
    assert data["ok"]
    assert data["missing"] == []
    assert data["parameters"] == 8 == len(data["errors"])
    assert 0 < data["max_rel_error"] <= 1e-9
    assert data["errors"][data["worst"]] == data["max_rel_error"]
    assert data["flipped_spikes"] == 0 < data["spike_places"]
    assert set(data["finite_differences"]) == {"fc.weight", "fc.bias"}
    assert max(data["finite_differences"].values()) < 1e-6


def test_it_fails_above_its_tolerance(capsys):
    assert main(["gradcheck", *_MLP, "--tolerance", "1e-30", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
@pytest.mark.parametrize("T", ["1", "3"])
def test_gradients_of_a_residual_network_agree(mode, T, capsys):
    words = ["ms_resnet18", "--dataset", "digits", "--plan", "rank=4", "--mode", mode, "--T", T]
    assert main(["gradcheck", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
