"""Plans as data: JSON, validation, checking against a network."""

import json

import pytest

from ttsnn.errors import PlanError
from ttsnn.plans import TTLayer, TTPlan, core_names, cores_of_layer, errors_of_layer

from .networks import small


def plan():
    return TTPlan(
        {
            "body.conv1": TTLayer("conv2d", "htt", (4, 4, 4), timesteps=2),
            "body.conv2": TTLayer("conv2d", "stt", (3, 5, 4)),
            "hidden": TTLayer("linear", "tt", (5,), None, (4, 6), (8, 6)),
        },
        rule="rank=4",
        T=4,
        notes=("a remark",),
    )


def test_json_round_trip(tmp_path):
    path = tmp_path / "plan.json"
    plan().save(path)
    assert TTPlan.load(path) == plan()
    assert list(TTPlan.load(path).layers) == list(plan().layers)
    assert json.loads(path.read_text())["version"] == 1
    assert list(tmp_path.iterdir()) == [path]
    plan().check(small(), T=4)


def edited(change):
    data = json.loads(json.dumps(plan().to_json()))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema="other"), "not a TT plan"),
        (lambda d: d.update(version=2), "version 2.*ttsnn plan"),
        (lambda d: d.update(layer=1), "unknown key 'layer'; did you mean 'layers'"),
        (lambda d: d.update(T=0), "T 0"),
        (lambda d: d.update(T=1), "layer 'body.conv1': 2 timesteps in full, but T is 1"),
        (lambda d: d.update(T=None), "'body.conv1' is htt: the plan must give T"),
        (lambda d: d.update(layers=[]), "object from layer name"),
        (lambda d: d.update(notes=[1]), "notes"),
        (lambda d: d["layers"]["hidden"].update(rank=3), "'hidden'.*did you mean 'ranks'"),
        (lambda d: d["layers"]["hidden"].pop("ranks"), "'hidden': missing ranks"),
        (lambda d: d["layers"]["hidden"].update(mode="stt"), "'hidden'.*the only one is 'tt'"),
        (lambda d: d["layers"]["hidden"].update(in_factors=[48]), "'hidden'.*d − 1 ranks"),
        (lambda d: d["layers"]["hidden"].update(kind="conv1d"), "'hidden'.*'conv1d'"),
        (lambda d: d["layers"]["body.conv1"].update(ranks=[4, 4]), "'body.conv1'.*has three"),
        (lambda d: d["layers"]["body.conv1"].update(ranks=[4, 0, 4]), "'body.conv1'.*≥ 1"),
        (lambda d: d["layers"]["body.conv1"].update(ranks="444"), "'body.conv1'.*integers"),
        (lambda d: d["layers"]["body.conv1"].update(ranks=[4.0, 4, 4]), "'body.conv1'"),
        (lambda d: d["layers"]["body.conv1"].update(timesteps=None), "'body.conv1'.*in full"),
        (lambda d: d["layers"]["body.conv2"].update(timesteps=1), "'body.conv2'.*mode 'htt'"),
        (lambda d: d["layers"]["body.conv2"].update(mode="cp"), "'body.conv2'.*stt, ptt, htt"),
        (lambda d: d["layers"].update(x=3), "'x': expected an object"),
    ],
)
def test_malformed_plans_are_refused(change, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(edited(change)))
    with pytest.raises(PlanError, match=message) as caught:
        TTPlan.load(path)
    assert "plan.json" in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(PlanError, match=r"missing\.json.*No such file"):
        TTPlan.load(tmp_path / "missing.json")
    (tmp_path / "cut.json").write_text(json.dumps(plan().to_json())[:40])
    with pytest.raises(PlanError, match=r"cut\.json.*not valid JSON"):
        TTPlan.load(tmp_path / "cut.json")
    with pytest.raises(PlanError, match="cannot write the plan"):
        plan().save(tmp_path / "nowhere" / "plan.json")


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("body.conv3", TTLayer("conv2d", "stt", (2, 2, 2)), "did you mean 'body.conv"),
        ("body.conv1", TTLayer("linear", "tt", (), None, (8,), (9,)), "says linear"),
        ("body.conv1", TTLayer("conv2d", "ptt", (9, 9, 9)), r"'body.conv1'.*use \[8, 9, 9\]"),
        ("grouped", TTLayer("conv2d", "ptt", (2, 2, 2)), "'grouped'.*4 groups"),
        ("even", TTLayer("conv2d", "ptt", (2, 2, 2)), "'even'.*even kernel"),
        ("shortcut", TTLayer("conv2d", "ptt", (2, 2, 2)), "'shortcut'.*1×1"),
        ("hidden", TTLayer("linear", "tt", (2,), None, (4, 5), (8, 6)), "'hidden'.*multiply"),
        ("hidden", TTLayer("linear", "tt", (99,), None, (4, 6), (8, 6)), r"use \[32\]"),
    ],
)
def test_plans_that_do_not_fit_the_network_are_refused(name, layer, message):
    with pytest.raises(PlanError, match=message):
        TTPlan({name: layer}).check(small())


def test_plans_for_another_number_of_timesteps_are_refused():
    with pytest.raises(PlanError, match="made for T = 4, the network has T = 6"):
        plan().check(small(), T=6)
    with pytest.raises(PlanError, match="give at most 1"):
        plan().check(small(), T=1)


def test_cores_of_a_layer():
    infos = {i.name: i for i in small()}
    for name, layer in plan().layers.items():
        weight = infos[name].weight
        fit = cores_of_layer(name, layer, weight, T=4)
        assert list(fit) == core_names(layer)
        assert 0 < errors_of_layer(layer, weight, fit).weight < 1
        fresh = cores_of_layer(name, layer, weight, T=4, init="fresh", seed=1)
        assert [v.shape for v in fresh.values()] == [v.shape for v in fit.values()]
        other = cores_of_layer(f"{name}2", layer, weight, T=4, init="fresh", seed=1)
        key = core_names(layer)[0]
        assert (fresh[key] != other[key]).any()
    with pytest.raises(PlanError, match="unknown init 'svd'"):
        cores_of_layer(name, layer, weight, init="svd")
    with pytest.raises(PlanError, match=r"'body.conv2'.*do not fit"):
        cores_of_layer("body.conv2", TTLayer("conv2d", "stt", (99, 9, 9)), infos["stem"].weight)
