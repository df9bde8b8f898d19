"""Firing rates measured on data, and the event-driven layers that they choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ttsnn
from ttsnn import driver, models
from ttsnn.calibration import firing_rates
from ttsnn.driver import build, decompose, import_source, make_plan
from ttsnn.errors import DataError, TargetError
from ttsnn.models.vgg import SpikingVGG
from ttsnn.sources import ModelOptions, resolve
from ttsnn.targets import get_target


@pytest.fixture(scope="module")
def network():
    """A small VGG, five of whose layers read spikes, two of them through a pool; three samples."""
    torch.manual_seed(0)
    channels = (8, 40, "M", 40, 40, 40, "M", 40)
    model = SpikingVGG(channels, (1, 8, 8), 4, T=2, hidden=(24,)).double()
    x = models.example_input(model, 3, torch.float64)
    return models.calibrate(model, x).eval(), x


@pytest.fixture(scope="module")
def program(network):
    """The network for two samples."""
    model, x = network
    return import_source(resolve(model), x[:2], dtype="float64")


@pytest.fixture(scope="module")
def rates(network, program):
    return firing_rates(program, network[1][:2])


def test_rates_are_those_of_the_layers_inputs(network, program, rates):
    model, x = network
    _, spikes = models.spikes_of(model, x[:2])
    known = [float(s.double().mean()) for _, s in spikes]
    assert len(rates) >= 5
    unpooled = [r for r in rates.values() if min(abs(r - k) for k in known) < 1e-12]
    assert len(unpooled) >= 3  # the others read spikes through a pool, which raises the rate
    assert all(0 < r < 1 for r in rates.values())
    # samples in pieces of the batch, the last filled up with the first ones
    again = firing_rates(program, x[[0, 1, 2, 0]])
    assert firing_rates(program, x.numpy()) == again
    last = models.spikes_of(model, x[[2, 0]])[1][0][1].double().mean()
    first, *_ = rates
    assert again[first] == pytest.approx((rates[first] + float(last)) / 2, abs=1e-12)


@pytest.mark.parametrize("rule", [None, "rank=24"])
def test_event_driven_network_is_equal_to_the_bit(network, program, rates, rule):
    x = network[1][:2]
    if rule is not None:
        program = decompose(program, make_plan(program, rule))
        rates = dict.fromkeys(rates, 0.05)
    settings = {"record_spikes": True, "database": False}
    dense, events = (build(program, firing_rates=r, **settings) for r in (None, rates))
    assert not [k for k in dense.kernels if k.rule == "events"]
    assert [k for k in events.kernels if k.rule == "events"]
    assert set(events.manifest.info["firing_rates"]) >= {
        n for k in events.kernels if k.rule == "events" for n in k.layers
    }
    for a, b in zip(events(x), dense(x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_that_spike_often_stay_dense(program, rates):
    cpu = get_target("cpu")
    for rate, some in ((0.99, False), (0.01, True)):
        kernels = cpu.kernels(cpu.lower(program, firing_rates=dict.fromkeys(rates, rate)))
        assert any(k.rule == "events" for k in kernels) == some


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((3, 1, 8, 7)), "the network takes"),
        (np.zeros((0, 1, 8, 8)), "no samples"),
        ([np.zeros((3, 1, 8, 8))] * 2, "2 inputs"),
        ({"y": np.zeros((3, 1, 8, 8))}, "calibration: no"),
        (np.full((3, 1, 8, 8), "a"), "must hold numbers"),
        (np.full((3, 1, 8, 8), np.nan), "not finite"),
    ],
)
def test_bad_data(program, data, said):
    with pytest.raises(DataError, match=said):
        firing_rates(program, data)


def test_targets_without_a_use_for_it(network):
    model, x = network
    with pytest.raises(TargetError, match="calibration"):
        ttsnn.compile(model, x, target="cuda-emulated", calibration="example")


def test_a_text_that_means_nothing(network):
    with pytest.raises(DataError, match="'example'"):
        ttsnn.compile(*network, calibration="file.npy")


class Seen(Exception):
    pass


def test_the_example_is_the_one_of_the_import(network, monkeypatch):
    """Seeded by the network's options, not by the plan's seed; or the caller's own."""
    model, x = network
    options = ModelOptions(seed=7)
    seen = []

    def caught(_mod, data, example):
        assert data == "example"
        seen.append(example)
        raise Seen

    monkeypatch.setattr(driver, "firing_rates", caught)
    for given in (None, x):
        with pytest.raises(Seen):
            ttsnn.compile(
                model, given, dtype="float64", batch=2, options=options, calibration="example"
            )
    torch.testing.assert_close(seen[0], resolve(model, options).example(2, "float64", 7))
    assert seen[1] is x


def test_a_file_has_no_example(tmp_path):
    model = models.create("spiking_mlp", "digits", T=2, calibrated=False)
    exported = torch.export.export(model, (models.example_input(model, 1),))
    torch.export.save(exported, tmp_path / "net.pt2")
    with pytest.raises(DataError, match="a file has no example input"):
        ttsnn.compile(tmp_path / "net.pt2", calibration="example", database=False)
