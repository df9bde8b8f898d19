"""Tuning with calibration: event-driven first stages by measurement, and when they count."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from tvm.s_tir import Schedule

import ttsnn
from ttsnn.calibration import firing_rates
from ttsnn.cli import main
from ttsnn.driver import decompose, import_source, make_plan
from ttsnn.errors import DataError, TargetError
from ttsnn.passes.cpu.event_choice import event_limit
from ttsnn.passes.cpu.tuning import LayerChoice
from ttsnn.passes.cpu.tuning.kernel import build_candidate
from ttsnn.passes.cpu.tuning.rates import STEPS, rate_step
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.sources import resolve
from ttsnn.targets import get_target
from ttsnn.tuning import measure
from ttsnn.tuning.best import timings_of
from ttsnn.tuning.database import TuningDatabase
from ttsnn.tuning.lookup import look_up
from ttsnn.tuning.strategy import args_info

from .pretended import RECORDS, choice_in, choices_in, lines, pretend, with_choices
from .small_network import build

PLAN = {"plan": "rank=3", "mode": "ptt"}
SETTINGS = PLAN | {"threads": 1, "calibration": "example"}
SPIKING = {"convs.1", "convs.2", "convs.3"}
CPU = get_target("cpu")
EVENTS, DENSE = ('\\"events\\":true', '\\"events\\":false')


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for conv in model.convs:
            conv.weight.mul_(9).add_(0.15)  # or hardly anybody spikes
    x = (torch.rand(2, 2, 6, 5, 4, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    return model, x


@pytest.fixture(scope="module")
def program(network):
    model, x = network
    mod = import_source(resolve(model), x)
    return decompose(mod, make_plan(mod, "rank=3"))


@pytest.fixture(scope="module")
def rates(program, network):
    return firing_rates(program, network[1])


def tuned(network, folder, events):
    """A database in which one of the two is twice as fast; which; what the tuner said."""
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, lambda text: (DENSE if events else EVENTS) in text)
        data = ttsnn.tune(*network, **SETTINGS, trials=30, database=folder)
    return folder, events, data


@pytest.fixture(scope="module")
def events_faster(network, tmp_path_factory):
    return tuned(network, tmp_path_factory.mktemp("events"), True)


@pytest.fixture(scope="module")
def dense_faster(network, tmp_path_factory):
    return tuned(network, tmp_path_factory.mktemp("dense"), False)


@pytest.fixture(params=["events_faster", "dense_faster"])
def records(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def database(events_faster, tmp_path):
    """A copy to write to."""
    return shutil.copytree(events_faster[0], tmp_path / "db")


def lowered(program, database, rates=None):
    """Layers that became event-driven, and what was found of each layer."""
    tuned = look_up(program, CPU, database, rates)
    mod = CPU.lower(program, tuned=tuned, firing_rates=rates)
    events = {n for k in CPU.kernels(mod) if k.rule == "events" for n in k.layers}
    return events, {} if tuned is None else tuned.layers


def test_layers_that_read_spikes_are_measured_at_their_rate(records, rates):
    folder, events, data = records
    assert set(rates) == SPIKING
    assert all(r > 0 for r in rates.values())
    said = {n: entry["firing_rate"] for entry in data["layers"] for n in entry["layers"]}
    assert said == {"convs.0": None} | {n: rate_step(r) for n, r in rates.items()}
    for entry in data["layers"]:
        assert entry["events"] == (events and entry["firing_rate"] is not None)
    assert {c.tiles.events for c in choices_in(folder)} == {True, False}


def test_compile_with_calibration_takes_what_was_measured(records, program, rates):
    folder, events, data = records
    found, tuning = lowered(program, folder, rates)
    assert found == (SPIKING if events else set())
    assert {n: t.get("firing_rate") for n, t in tuning.items()} == {
        n: entry["firing_rate"] for entry in data["layers"] for n in entry["layers"]
    }


def test_the_same_database_gives_the_same_program(events_faster, network):
    settings = PLAN | {"calibration": "example", "database": events_faster[0]}
    nets = [ttsnn.compile(*network, **settings) for _ in range(2)]
    assert nets[0].manifest == nets[1].manifest
    tvm.ir.assert_structural_equal(nets[0].program, nets[1].program)


def test_equal_to_the_bit_with_the_dense_kernels(database, network):
    """The same choices but for the event-driven stage."""
    settings = PLAN | {"database": database, "record_spikes": True, "calibration": "example"}
    net = ttsnn.compile(*network, **settings)
    with_choices(database, lambda c: replace(c, tiles=replace(c.tiles, events=False)))
    dense = ttsnn.compile(*network, **settings)
    assert any(k.rule == "events" for k in net.kernels)
    assert not [k for k in dense.kernels if k.rule == "events"]
    forms = [{k: v["form"] for k, v in n.manifest.info["tuning"].items()} for n in (net, dense)]
    assert forms[0] == forms[1]
    for a, b in zip(net(network[1]), dense(network[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_calibration_no_record_makes_a_layer_event_driven(records, program):
    folder = records[0]
    events, tuning = lowered(program, folder)
    assert not events
    # but what was measured of dense choices counts
    assert set(tuning) == SPIKING | {"convs.0"}
    assert not any("firing_rate" in entry for entry in tuning.values())
    dense = {c.tiles.to_json() for c in choices_in(folder) if not c.tiles.events}
    assert dense >= {entry["tiles"] for entry in tuning.values()}


def test_records_of_another_rate(records, program):
    """They serve layers that spike less, down to half; for others the model decides."""
    folder, events, data = records
    most = max(entry["firing_rate"] or 0.0 for entry in data["layers"])
    at = dict.fromkeys(SPIKING, STEPS[STEPS.index(most) + 1])
    found, tuning = lowered(program, folder, at)
    assert found == lowered(program, False, at)[0]
    assert set(tuning) == SPIKING | {"convs.0"}
    assert not any("firing_rate" in entry for entry in tuning.values())
    for entry in data["layers"]:
        if entry["firing_rate"] is None:
            continue
        at = dict.fromkeys(entry["layers"], 0.55 * entry["firing_rate"])
        found, tuning = lowered(program, folder, at)
        assert found == (set(at) if events else set())
        assert all(0.5 < at[n] / tuning[n]["firing_rate"] <= 1.0 for n in at)


def test_calibrated_and_other_records_share_a_database(
    events_faster, database, network, monkeypatch
):
    data = events_faster[2]
    pretend(monkeypatch)
    plain = {k: v for k, v in SETTINGS.items() if k != "calibration"}
    other = ttsnn.tune(*network, **plain, trials=12, database=database)
    assert other["new_trials"] >= 12 - other["layers"][0]["trials"]  # the first reads no spikes
    assert not any(entry["events"] or entry["firing_rate"] for entry in other["layers"])
    known = timings_of(TuningDatabase(database, CPU.tuning_identity()).records())
    for key, by_threads in known.items():
        if key.rate is None:
            assert not any(LayerChoice.from_json(c).tiles.events for c in by_threads[1])
    again = ttsnn.tune(*network, **SETTINGS, trials=data["trials"], database=database)
    assert again["new_trials"] == 0
    assert again["layers"][1:] == data["layers"][1:]


def test_default_is_the_models_choice(program, rates):
    for task in CPU.tuning_tasks(program, 1, rates):
        rate = task.rate or 1.0
        assert task.default.tiles.events == (rate < event_limit(task.config, task.isa))
    wide = dict.fromkeys(rates, 0.9)
    assert not any(t.default.tiles.events for t in CPU.tuning_tasks(program, 1, wide))


def test_candidates_are_called_with_as_many_spikes(program, rates):
    """What the runner's worker does, in this process."""
    task = next(t for t in CPU.tuning_tasks(program, 1, rates) if t.rate is not None)
    dense, events = task.spaces(Schedule(task.module), seed=True)[:2]
    given = [info.as_json() for info in args_info(task)]
    seconds, results = [], []
    for sch in (dense, events):
        task.settle(sch)
        (arguments,) = measure._arguments(tvm.cpu(), given, 1)
        x = arguments[0].numpy()
        assert x.mean() == pytest.approx(task.rate, rel=0.02)
        assert set(np.unique(x)) == {0, 1}
        assert len({part.tobytes() for part in x[:50]}) == 50
        module = build_candidate(sch.mod, task.target)
        module["main"](*arguments)
        results.append(arguments[-1].numpy())
        seconds.append(measure._time(module, tvm.cpu(), measure.EVALUATOR, [arguments])[0])
    np.testing.assert_array_equal(*results)
    assert all(s * len(x) < 0.5 for s in seconds)  # of one input, 240 pixels
    assert max(seconds) < 200e-6


def test_command_line(tmp_path, capfd, monkeypatch):
    pretend(monkeypatch, lambda text: DENSE in text)
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 6, 5, 4), "float32"))
    words = ["tests.tuning.small_network:build", "--plan", "rank=3"]
    words += ["--database", str(tmp_path / "db"), "--calibration", str(tmp_path / "x.npy")]
    assert main(["tune", *words, "--threads", "1", "--trials", "12"]) == 0
    said = capfd.readouterr().out
    assert "0.1%" in said  # nobody spikes on zeros
    assert "events" in said
    assert main(["compile", *words, "-o", str(tmp_path / "net.ttsnn"), "--json"]) == 0
    assert set(json.loads(capfd.readouterr().out)["event_driven_layers"]) == SPIKING


def test_bad_calibration(network, tmp_path):
    with pytest.raises(DataError, match="the network takes"):
        ttsnn.tune(*network, calibration=np.zeros((3, 2, 6, 5, 4)), database=tmp_path)
    with pytest.raises(DataError, match="'example'"):
        ttsnn.tune(*network, calibration="file.npy", database=tmp_path)
    with pytest.raises(TargetError, match="cannot be tuned"):
        ttsnn.tune(*network, calibration="example", target="cuda-emulated")
    assert not any(tmp_path.iterdir())


def test_records_from_before_tiles_had_the_field(database, program, network, monkeypatch):
    """A field that is missing has its default."""
    new = [n for n, c in zip(lines(database), choices_in(database)) if not c.tiles.events]
    old = [line.replace(r",\\\"events\\\":false", "") for line in new]
    assert all("events" in choice_in(line) for line in new)
    assert not any("events" in choice_in(line) for line in old)
    pretend(monkeypatch)
    found = []
    for content in (old, new):
        (database / RECORDS).write_text("".join(line + "\n" for line in content))
        tuning = lowered(program, database)[1]
        assert all(entry["default_us"] is not None for entry in tuning.values())
        again = ttsnn.tune(*network, **SETTINGS, trials=len(old), database=database)
        found.append((tuning, again))
    assert found[0] == found[1]


@pytest.mark.parametrize("what", ["tiles", "layer"])
def test_records_of_another_version_are_refused(what, database, program, monkeypatch):
    if what == "tiles":
        text = (database / RECORDS).read_text()
        (database / RECORDS).write_text(text.replace("strip_rows", "stripes"))
    else:
        monkeypatch.setattr(LayerConfig, "from_json", lambda _: {}["packing"])
    with pytest.raises(ttsnn.errors.TuningError, match=r"another version of ttsnn.*tune again"):
        look_up(program, CPU, database)
