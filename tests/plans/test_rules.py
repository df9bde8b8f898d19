"""Rules: which layers they take and which ranks they find, and the counting rule."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ttsnn.errors import PlanError
from ttsnn.plans import (
    LayerInfo,
    TTLayer,
    TTPlan,
    cores_of_layer,
    errors_of_layer,
    layer_cost,
    make_plan,
    network_cost,
    parse_rule,
    plan_for,
)
from ttsnn.plans.rules import eligible_layers

from .networks import ms_resnet, small

RESNET34 = ms_resnet((3, 4, 6, 3), 2, 48, 6, 101)
RESNET18 = ms_resnet((2, 2, 2, 2), 3, 32, 4, 10)


@pytest.mark.parametrize(
    ("infos", "T", "mode", "params", "flops"),
    [
        (RESNET34, 6, "ptt", 7.98, 9.25),
        (RESNET34, 6, "stt", 7.98, 9.25),
        (RESNET34, 6, "htt", 7.98, 11.70),
        (RESNET18, 4, "ptt", 6.78, 5.97),
        (RESNET18, 4, "htt", 6.78, 7.78),
    ],
)
def test_published_counts(infos, T, mode, params, flops):
    cost = network_cost(infos, make_plan(infos, "paper", mode, T=T)).to_json()
    assert cost["ratio"] == {"params": params, "flops": flops}
    if infos is RESNET34:
        assert cost["dense"] == {"params": 21311205, "flops": 15643953664}


def test_paper_fits_published_networks_only():
    with pytest.raises(PlanError, match=r"ms_resnet18.*not for this network.*ratio=8"):
        make_plan(small(), "paper")
    narrow = [replace(i, weight_shape=(32, *i.weight_shape[1:])) for i in RESNET18]
    with pytest.raises(PlanError, match="ms_resnet34"):
        make_plan(narrow, "paper")


def test_layers_that_stay_dense():
    def names(*include):
        return [i.name for i in eligible_layers(small(), include)]

    assert names() == ["body.conv1", "body.conv2", "hidden"]
    assert names("stem") == ["stem", "body.conv1", "body.conv2", "hidden"]
    assert names("pointwise") == ["body.conv1", "body.conv2", "shortcut", "hidden"]
    assert names("classifier")[-1] == "head"
    assert "shortcut" in names("shortcut")
    with pytest.raises(PlanError, match=r"include names layer 'hea'.*'head'"):
        names("hea")
    plan = make_plan(small(), "rank=2", "ptt", include=["pointwise", "stem", "classifier"])
    assert plan.layers["shortcut"].mode == "stt"
    plan.check(small())
    only_head = small()[-1:]
    with pytest.raises(PlanError, match="no layer to factorise"):
        make_plan(only_head, "rank=2")


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_rank_is_clipped_to_the_shape(mode):
    plan = make_plan(small(), "rank=10", mode, T=4)
    plan.check(small(), T=4)
    first = {"stt": (8, 10, 10), "ptt": (8, 10, 10), "htt": (8, 8, 8)}[mode]
    assert plan.layers["body.conv1"].ranks == first
    assert plan.layers["body.conv2"].ranks == (10, 10, 10)
    assert plan.layers["hidden"].ranks == (10,)
    # ascending beside descending keeps the two cores about equally large
    assert plan.layers["hidden"].out_factors == (4, 6)
    assert plan.layers["hidden"].in_factors == (8, 6)
    assert plan.layers["body.conv1"].timesteps == (2 if mode == "htt" else None)
    assert plan.T == 4 if mode == "htt" else plan.T is None


def test_htt_runs_half_of_the_timesteps_in_full_unless_told():
    for T, full in ((1, 1), (4, 2), (5, 3), (6, 3)):
        assert make_plan(small(), "rank=2", "htt", T=T).layers["body.conv1"].timesteps == full
    plan = make_plan(small(), "rank=2", "htt", T=6, timesteps=0)
    assert plan.layers["body.conv1"].timesteps == 0
    with pytest.raises(PlanError, match="needs the number of timesteps"):
        make_plan(small(), "rank=2", "htt")
    with pytest.raises(PlanError, match="timesteps are for mode 'htt'"):
        make_plan(small(), "rank=2", "ptt", timesteps=2)


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
@pytest.mark.parametrize("ratio", [2, 5])
def test_ratio_is_reached_and_tight(mode, ratio):
    plan = make_plan(small(), f"ratio={ratio}", mode, T=4)
    infos = {i.name: i for i in small()}
    for name, layer in plan.layers.items():
        shapes = [
            c.size
            for c in cores_of_layer(name, layer, infos[name].weight, T=4, init="fresh").values()
        ]
        dense = infos[name].weight.size
        assert sum(shapes) * ratio <= dense
        more = make_plan(small(), f"rank={max(layer.ranks) + 1}", mode, T=4).layers[name]
        at_its_limit = more == layer
        assert (
            at_its_limit or layer_cost(infos[name], more).params - infos[name].bias > dense / ratio
        )


def test_ratio_out_of_reach_is_noted():
    plan = make_plan(small(), "ratio=1000")
    assert set(plan.layers["body.conv1"].ranks) == {1}
    assert "even rank 1 misses the ratio 1000: body.conv1, body.conv2, hidden" in plan.notes


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("mode", ["stt", "ptt"])
def test_energy_is_kept_by_the_fit(mode, energy):
    plan = make_plan(small(), f"energy={energy}", mode)
    infos = {i.name: i for i in small()}
    for name, layer in plan.layers.items():
        weight = infos[name].weight
        errors = errors_of_layer(layer, weight, cores_of_layer(name, layer, weight))
        error = errors.weight if errors.cross is None else errors.cross
        assert error**2 <= 1 - energy + 1e-12
    loose = make_plan(small(), f"energy={energy / 2}", mode)
    assert sum(loose.layers["body.conv2"].ranks) < sum(plan.layers["body.conv2"].ranks)


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_vbmf_finds_the_rank_under_noise(mode):
    rng = np.random.default_rng(0)
    core = rng.normal(size=(5, 5, 3, 3))
    weight = np.einsum(
        "oc,cayx,ai->oiyx", rng.normal(size=(24, 5)), core, rng.normal(size=(5, 20))
    ) + 0.1 * rng.normal(size=(24, 20, 3, 3))
    stem = LayerInfo("stem", "conv2d", (20, 3, 3, 3), (8, 8), 2)
    infos = [stem, LayerInfo("conv", "conv2d", weight.shape, (8, 8), 2, weight=weight)]
    plan = make_plan(infos, "vbmf", mode, T=2)
    assert plan.layers["conv"].ranks == (5, 5, 5)
    assert not plan.notes


def test_layers_that_grow_are_noted():
    plan = make_plan(small(), "rank=99", "stt")
    assert "more parameters than dense: body.conv1, body.conv2, hidden" in plan.notes
    assert not make_plan(small(), "rank=2", "stt").notes


def test_vbmf_of_untrained_weights_is_noted():
    plan = make_plan(small(), "vbmf")
    assert plan.layers["body.conv1"].ranks == (1, 1, 1)
    assert any(n.startswith("EVBMF finds only noise") and "body.conv1" in n for n in plan.notes)


def test_rules_that_need_values_say_so():
    with pytest.raises(PlanError, match=r"'layer1.0.conv1'.*values.*'rank=16'"):
        make_plan(RESNET18, "vbmf")
    with pytest.raises(PlanError, match=r"'layer1.0.conv1'.*values"):
        make_plan(RESNET18, "energy=0.9")


@pytest.mark.parametrize(
    "text",
    ["", "none", "rank", "rank=", "rank=0", "rank=2.5", "rank=inf", "ratio=1", "energy=1",
     "energy=nan", "vbmf=2", "budget=3", "paper=1", "RANK=4"],
)  # fmt: skip
def test_unknown_rules_are_refused(text):
    with pytest.raises(PlanError, match=r"plan rule .*'rank=16'"):
        parse_rule(text)


def test_plan_for_takes_whatever_a_user_gives(tmp_path):
    infos = small()
    made = make_plan(infos, "rank=3", "stt")
    path = tmp_path / "a.json"
    made.save(path)
    for source in (made, "rank=3", parse_rule("rank=3"), path, str(path)):
        assert plan_for(source, infos, "stt") == made
    with pytest.raises(PlanError, match="No such file"):
        plan_for("gone.json", infos)
    with pytest.raises(PlanError, match="unknown plan rule 'gone'"):
        plan_for("gone", infos)
    with pytest.raises(PlanError, match="does not have"):
        plan_for(TTPlan({"x": TTLayer("conv2d", "ptt", (1, 1, 1))}), infos)
    json.loads(path.read_text())


def test_flops_of_a_linear_tensor_train_are_those_of_its_contractions():
    """[n1 n2] · core 1 over n1, then · core 2 over (r, n2), on three vectors a step."""
    info = LayerInfo("fc", "linear", (6, 35), (1, 3), steps=2, bias=6)
    layer = TTLayer("linear", "tt", (4,), None, (2, 3), (5, 7))
    cost = layer_cost(info, layer)
    first = 2 * 4 * 5 * 7  # outputs (m1, r, n2), each a sum over n1
    second = 2 * 3 * 4 * 7  # outputs (m1, m2), each a sum over (r, n2)
    assert cost.flops == 2 * 3 * (first + second)
    assert cost.params == 2 * 5 * 4 + 4 * 3 * 7 + 6
    assert (cost.dense_params, cost.dense_flops) == (6 * 35 + 6, 2 * 3 * 6 * 35)
