"""Plans applied to PyTorch networks: same cores, same outputs, and back to dense."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ttsnn.errors import PlanError
from ttsnn.models import (
    MSResNet,
    TTConv2d,
    TTLinear,
    TwoWeightConv2d,
    apply_plan,
    calibrate,
    example_input,
    merge_tt,
    set_time_execution,
    spikes_of,
)
from ttsnn.plans import TTLayer, TTPlan, cores_of_layer

PLANNED = ("layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2")


def network(T=3, **kw):
    torch.manual_seed(2)
    model = MSResNet((1, 1), (3, 9, 7), 4, T, width=6, **kw).double().eval()
    return calibrate(model, example_input(model, 8, torch.float64))


def plan_of(model, mode, ranks, timesteps=1, names=PLANNED, linear=True) -> TTPlan:
    modules = dict(model.named_modules())
    layers = {}
    for name in names:
        cout, cin = modules[name].weight.shape[:2]
        r = (min(ranks),) * 3 if mode == "htt" else ranks
        assert max(r) <= min(cin, cout)
        layers[name] = TTLayer("conv2d", mode, r, timesteps=timesteps if mode == "htt" else None)
    if linear:
        layers["fc"] = TTLayer("linear", "tt", (3,), out_factors=(2, 2), in_factors=(3, 4))
    return TTPlan(layers, T=model.T if mode == "htt" else None)


def full_ranks(weight) -> tuple[int, int, int]:
    cout, cin, kh, kw = weight.shape
    return cin, min(kh * cin, kw * cout), cout


def test_full_rank_stt_is_the_dense_network() -> None:
    model = network()
    modules = dict(model.named_modules())
    layers = {n: TTLayer("conv2d", "stt", full_ranks(modules[n].weight)) for n in PLANNED}
    layers["conv1"] = TTLayer("conv2d", "stt", full_ranks(modules["conv1"].weight))
    layers["fc"] = TTLayer("linear", "tt", (6,), out_factors=(2, 2), in_factors=(3, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    twin = apply_plan(model, TTPlan(layers))
    assert isinstance(twin.conv1, TTConv2d)
    assert isinstance(twin.fc, TTLinear)
    x = example_input(model, 3, torch.float64, 5)
    (a, dense_spikes), (b, spikes) = spikes_of(model, x), spikes_of(twin, x)
    torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(dense_spikes, spikes, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("init", ["fit", "fresh"])
@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_cores_are_those_of_the_plan(mode, init) -> None:
    model = network()
    plan = plan_of(model, mode, (3, 4, 4))
    twin = apply_plan(model, plan, init=init, seed=7)
    state = twin.state_dict()
    for name, layer in plan.layers.items():
        weight = model.state_dict()[f"{name}.weight"].numpy()
        cores = cores_of_layer(name, layer, weight, T=plan.T, init=init, seed=7)
        for key, core in cores.items():
            np.testing.assert_array_equal(state[f"{name}.{key}"].numpy(), core)
        assert f"{name}.weight" not in state
    assert torch.equal(state["fc.bias"], model.fc.bias)


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
@pytest.mark.parametrize(("T", "timesteps"), [(3, 2), (1, 1), (2, 0)])
@pytest.mark.parametrize("downsample", ["stride", "maxpool"])
def test_twin_loop_and_merged_agree(mode, T, timesteps, downsample) -> None:
    model = network(T, downsample=downsample)
    twin = apply_plan(model, plan_of(model, mode, (3, 4, 4), timesteps))
    calibrate(twin, example_input(model, 8, torch.float64, 3))
    x = example_input(model, 1, torch.float64, 5)
    y, spikes = spikes_of(twin, x)
    assert all(s.mean() > 0 for _, s in spikes)
    for other in (merge_tt(twin), set_time_execution(apply_plan(twin, TTPlan({})), "loop")):
        z, other_spikes = spikes_of(other, x)
        torch.testing.assert_close(z, y, rtol=1e-10, atol=1e-12)
        assert all(torch.equal(p, q) for (_, p), (_, q) in zip(spikes, other_spikes, strict=True))
    merged = merge_tt(twin)
    assert not any(isinstance(m, (TTConv2d, TTLinear)) for m in merged.modules())
    two = sum(isinstance(m, TwoWeightConv2d) for m in merged.modules())
    assert two == (len(PLANNED) if mode == "htt" and timesteps < T else 0)
    looped, _ = spikes_of(set_time_execution(merged, "loop"), x)
    torch.testing.assert_close(looped, y, rtol=1e-10, atol=1e-12)


def test_plain_networks_with_folded_time() -> None:
    """A network of the user's own that folds time itself, with bias, dilation and 'same'."""

    class Net(nn.Module):
        T = 4

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, (3, 5), padding="same", dilation=(1, 2))
            self.again = self.conv

        def forward(self, x):
            return self.again(x.flatten(0, 1))

    torch.manual_seed(1)
    net = Net().double()
    x = torch.randn(4, 2, 3, 8, 9, dtype=torch.float64)
    plan = TTPlan({"conv": TTLayer("conv2d", "htt", (3, 3, 3), timesteps=3)}, T=4)
    twin = apply_plan(net, plan)
    assert twin.conv is twin.again
    y = twin(x)
    merged = merge_tt(twin)
    torch.testing.assert_close(merged(x), y, rtol=1e-12, atol=1e-12)
    weight = merged.conv.half_weight
    last = F.conv2d(x[3], weight, net.conv.bias)
    torch.testing.assert_close(y.reshape(4, 2, *y.shape[1:])[3], last, rtol=1e-12, atol=1e-12)


def test_twin_trains() -> None:
    model = network().train()
    twin = apply_plan(model, plan_of(model, "ptt", (3, 4, 4)), init="fresh")
    assert twin.training
    twin(example_input(model, 2, torch.float64)).square().sum().backward()
    grads = [p.grad for p in twin.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    assert sum(bool(g.abs().max() > 0) for g in grads) > len(grads) - 3


@pytest.mark.parametrize("mode", ["ptt", "htt"])
def test_export_of_the_twin(mode) -> None:
    model = network()
    twin = apply_plan(model, plan_of(model, mode, (3, 4, 4)))
    x = example_input(model, 2, torch.float64)
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(twin, (x,), dynamic_shapes=shapes).run_decompositions()
    targets = [str(n.target) for n in program.graph.nodes]
    assert targets.count("ttsnn.tt_conv2d.default") == len(PLANNED)
    assert targets.count("ttsnn.tt_linear.default") == 1
    x = example_input(model, 5, torch.float64, 1)
    torch.testing.assert_close(program.module()(x), twin(x))


def test_random_state_is_left_alone() -> None:
    model = network()
    before = torch.get_rng_state()
    merge_tt(apply_plan(model, plan_of(model, "ptt", (3, 4, 4))))
    assert torch.equal(torch.get_rng_state(), before)


def one(name, layer, T=None):
    return TTPlan({name: layer}, T=T)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (one("layer1.0.conv9", TTLayer("conv2d", "stt", (2, 2, 2))), "layer1.0.conv9"),
        (one("layer1.0.conv1", TTLayer("conv2d", "stt", (7, 2, 2))), "layer1.0.conv1"),
        (one("fc", TTLayer("conv2d", "stt", (2, 2, 2))), "fc"),
        (one("fc", TTLayer("linear", "tt", (2,), None, (2, 2), (3, 5))), "fc"),
        (one("layer1.0.conv1", TTLayer("conv2d", "htt", (2, 2, 2), 1), T=8), "T = 8"),
    ],
)
def test_plans_that_do_not_fit(plan, words) -> None:
    with pytest.raises(PlanError, match=words):
        apply_plan(network(), plan)


def test_layers_that_cannot_be_factorised() -> None:
    plan = TTPlan({"0": TTLayer("conv2d", "stt", (2, 2, 2))})
    with pytest.raises(PlanError, match="groups"):
        apply_plan(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), plan)
    with pytest.raises(PlanError, match="reflect"):
        apply_plan(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), plan)
    uneven = nn.Sequential(TTConv2d(4, 4, 3, 2, padding=(0, 1, 1, 1)))
    with pytest.raises(PlanError, match="'0'"):
        merge_tt(uneven)
