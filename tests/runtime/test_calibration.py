"""Firing rates measured on data, and the event-driven layers that they choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ttsnn
from ttsnn import models
from ttsnn.calibration import firing_rates
from ttsnn.driver import decompose, import_source, make_plan
from ttsnn.errors import DataError, TargetError
from ttsnn.sources import resolve


@pytest.fixture(scope="module")
def network():
    model = models.create("spiking_vgg9", "digits", image_size=16, T=2).double()
    return model, models.example_input(model, 3, torch.float64)


def test_rates_are_those_of_the_layers_inputs(network):
    model, x = network
    source = resolve(model)
    mod = import_source(source, x[:2], dtype="float64")
    rates = firing_rates(mod, x[:2])
    _, spikes = models.spikes_of(model, x[:2])
    known = [float(s.double().mean()) for _, s in spikes]
    assert len(rates) >= 5
    unpooled = [r for r in rates.values() if min(abs(r - k) for k in known) < 1e-12]
    assert len(unpooled) >= 3  # the others read spikes through a pool, which raises the rate
    assert all(0 < r < 1 for r in rates.values())
    # samples in pieces of the batch, the last filled up with the first ones
    whole = firing_rates(import_source(source, x, dtype="float64"), x[[0, 1, 2]])
    pieces = firing_rates(mod, x.numpy())
    again = firing_rates(mod, x[[0, 1, 2, 0]])
    assert pieces == again != whole


@pytest.mark.parametrize("plan", [None, "rank=6"])
def test_event_driven_network_is_equal_to_the_bit(network, plan):
    model, x = network
    settings = {"plan": plan, "record_spikes": True, "database": False}
    dense = ttsnn.compile(model, x, **settings)
    events = ttsnn.compile(model, x, calibration="example", **settings)
    assert not [k for k in dense.kernels if k.rule == "events"]
    assert [k for k in events.kernels if k.rule == "events"]
    assert set(events.manifest.info["firing_rates"]) >= {
        n for k in events.kernels if k.rule == "events" for n in k.layers
    }
    for a, b in zip(events(x), dense(x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_that_spike_often_stay_dense(network):
    from ttsnn.driver import build

    model, x = network
    mod = import_source(resolve(model), x, dtype="float64")
    mod = decompose(mod, make_plan(mod, "rank=6"))
    rates = dict.fromkeys(firing_rates(mod, x), 0.99)
    net = build(mod, "cpu", database=False, firing_rates=rates)
    assert not [k for k in net.kernels if k.rule == "events"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((3, 1, 16, 15)), "the network takes"),
        (np.zeros((0, 1, 16, 16)), "no samples"),
        ([np.zeros((3, 1, 16, 16))] * 2, "2 inputs"),
        ({"y": np.zeros((3, 1, 16, 16))}, "calibration: no"),
        (np.full((3, 1, 16, 16), "a"), "must hold numbers"),
        ("file.npy", "'example'"),
    ],
)
def test_bad_data(network, data, said):
    model, x = network
    with pytest.raises(DataError, match=said):
        ttsnn.compile(model, x, calibration=data)


def test_targets_without_a_use_for_it(network):
    model, x = network
    with pytest.raises(TargetError, match="calibration"):
        ttsnn.compile(model, x, target="cuda-emulated", calibration="example")
