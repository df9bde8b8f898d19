"""The zoo: sizes, firing rates, time execution, export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ttsnn.errors import DataError, ModelImportError
from ttsnn.models import (
    DATASETS,
    LIF,
    ZOO,
    MSResNet,
    SpikingVGG,
    calibrate,
    create,
    example_input,
    load_dataset,
    set_time_execution,
    spikes_of,
)

SMALL = {
    "resnet": lambda **kw: MSResNet((1, 2), (3, 9, 7), 5, 3, width=6, **kw),
    "resnet_events": lambda **kw: MSResNet((1, 1), (2, 8, 8), 5, 2, False, width=6, **kw),
    "vgg": lambda **kw: SpikingVGG(
        (6, "M", 8, 8, "M"), (3, 9, 7), 5, 3, hidden=(11,), pool="avg", **kw
    ),
    "mlp": lambda **kw: ZOO["spiking_mlp"]((3, 4, 5), 5, 3, hidden=(12, 9), **kw),
}


def small(name, dtype=torch.float64, **kw):
    torch.manual_seed(1)
    model = SMALL[name](**kw).to(dtype).eval()
    return calibrate(model, example_input(model, 8, dtype, 1))


def count(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Parameters and MACs of all convolutions and linear layers, by what they are called with."""
    params = macs = 0

    def hook(module, args, out):
        nonlocal macs
        fan_in = module.weight[0].numel()
        macs += out.numel() * fan_in

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [m.register_forward_hook(hook) for m in layers]
    params = sum(p.numel() for m in layers for p in m.parameters())
    with torch.no_grad():
        model(x)
    for h in hooks:
        h.remove()
    return params, macs


def test_counts_of_the_published_networks() -> None:
    model = create("ms_resnet34", "ncaltech101", calibrated=False)
    assert (model.T, model.input_shape, model.static_input) == (6, (2, 48, 48), False)
    assert count(model, example_input(model)) == (21311205, 15643953664)
    # stem, 16 convolutions, 3 shortcuts and the head of the 18-layer network, summed by hand
    model = create("ms_resnet18", "cifar10", calibrated=False)
    stages = [(64, 64, 32, 1), (64, 128, 16, 2), (128, 256, 8, 2), (256, 512, 4, 2)]
    params, macs = 3 * 64 * 9, 3 * 64 * 9 * 32 * 32
    for cin, cout, size, stride in stages:
        weights = cin * cout * 9 + 3 * cout * cout * 9 + (cin * cout if stride == 2 else 0)
        params, macs = params + weights, macs + weights * size * size
    expected = (params + 512 * 10 + 10, 4 * macs + 512 * 10)
    assert count(model, example_input(model)) == expected


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("ms_resnet18", "digits"),
        ("spiking_vgg9", "digits"),
        ("spiking_vgg11", "digits"),
        ("spiking_mlp", "digits"),
        ("spiking_mlp", "ncaltech101"),
    ],
)
def test_every_neuron_fires_at_a_sane_rate(name, dataset) -> None:
    model = create(name, dataset)
    x = example_input(model, 4, seed=7)
    logits, spikes = spikes_of(model, x)
    assert torch.equal(logits, model(x))
    assert logits.shape == (4, DATASETS[dataset].classes)
    neurons = {n for n, m in model.named_modules() if isinstance(m, LIF)}
    assert {n for n, _ in spikes} == neurons
    assert len(spikes) == len(neurons)
    for layer, s in spikes:
        assert s.shape[:2] == (model.T, 4)
        assert set(s.unique().tolist()) == {0.0, 1.0}
        assert 0.02 <= s.mean() <= 0.4, (layer, float(s.mean()))


def test_the_published_networks_fire_too() -> None:
    model = create("ms_resnet34", "ncaltech101", image_size=16, T=2)
    _, spikes = spikes_of(model, example_input(model, 2, seed=3))
    assert len(spikes) == 33
    assert all(0.02 <= s.mean() <= 0.4 for _, s in spikes)


@pytest.mark.parametrize("downsample", ["stride", "maxpool"])
def test_residual_network_by_hand(downsample) -> None:
    """The whole network once more, step by step in time, without modules of ours."""
    model = small("resnet", downsample=downsample)
    x = example_input(model, 2, torch.float64, 4)
    state = dict(model.state_dict())
    membranes: dict[str, torch.Tensor] = {}

    def conv(name, v, stride=1):
        w = state[f"{name}.weight"]
        return nn.functional.conv2d(v, w, None, stride, w.shape[-1] // 2)

    def norm(name, v):
        s = {k: state[f"{name}.{k}"][:, None, None] for k in ("weight", "bias")}
        mean, var = (state[f"{name}.running_{k}"][:, None, None] for k in ("mean", "var"))
        return (v - mean) / torch.sqrt(var + 1e-5) * s["weight"] + s["bias"]

    def fire(name, v):
        u = 0.25 * membranes.get(name, torch.zeros_like(v)) + v
        s = (u > 0.5).to(v.dtype)
        membranes[name] = u * (1 - s)
        return s

    total = 0
    for _ in range(model.T):
        v = norm("bn1", conv("conv1", x))
        for block, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer2.1", 1)):
            pooled = stride == 2 and downsample == "maxpool"
            y = conv(f"{block}.conv1", fire(f"{block}.lif1", v), 1 if pooled else stride)
            if pooled:
                y = nn.functional.max_pool2d(nn.functional.pad(y, (0, 1, 0, 1), value=-1e9), 2)
            y = fire(f"{block}.lif2", norm(f"{block}.bn1", y))
            y = norm(f"{block}.bn2", conv(f"{block}.conv2", y))
            if stride == 2:
                v = norm(f"{block}.shortcut.1", conv(f"{block}.shortcut.0", v, 2))
            v = v + y
        total = total + fire("lif", v).mean((-2, -1))
    expected = total / model.T @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_loop_equals_folded(name) -> None:
    model = small(name)
    x = example_input(model, 3, torch.float64, 2)
    folded, spikes = spikes_of(model, x)
    set_time_execution(model, "loop")
    looped, loop_spikes = spikes_of(model, x)
    torch.testing.assert_close(looped, folded, rtol=1e-12, atol=1e-14)
    assert [n for n, _ in spikes] == [n for n, _ in loop_spikes]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(spikes, loop_spikes, strict=True))
    model.train()  # statistics too are those of all timesteps together
    losses = []
    for mode in ("loop", "folded"):
        set_time_execution(model, mode)
        model.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        losses.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    assert any(g.abs().max() > 0 for g in losses[0][1:])
    for a, b in zip(*losses, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_static_image_equals_its_repetition() -> None:
    model = small("resnet")
    x = example_input(model, 2, torch.float64)
    torch.testing.assert_close(model(x), model(x.expand(3, *x.shape).contiguous()))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(name, dynamic) -> None:
    dtype = torch.float64 if dynamic else torch.float32
    model = small(name, dtype, lif={"tau": 2.0, "v_threshold": 0.6, "v_reset": None})
    x = example_input(model, 2, dtype)
    shapes = ({0 if model.static_input else 1: torch.export.Dim("n")},) if dynamic else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes).run_decompositions()
    nodes = [n for n in program.graph.nodes if n.target is torch.ops.ttsnn.lif.default]
    assert len(nodes) == sum(isinstance(m, LIF) for m in model.modules())
    assert not any("where" in str(n.target) or "gt" in str(n.target) for n in program.graph.nodes)
    for batch in (1, 3) if dynamic else (2,):
        y = example_input(model, batch, dtype, 9)
        torch.testing.assert_close(program.module()(y), model(y))


def test_creation_is_seeded_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = (create("spiking_mlp", "digits", seed=3) for _ in range(2))
    c = create("spiking_mlp", "digits", seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.fc.weight, b.fc.weight)
    assert not torch.equal(a.fc.weight, c.fc.weight)
    assert not a.training
    x = example_input(a, 2, "float64", 1)
    assert torch.equal(x.float(), example_input(a, 2, torch.float32, 1))
    assert create("spiking_mlp", "digits", T=2, image_size=5, num_classes=3).T == 2


def test_calibration_uses_the_batch_and_restores_the_mode() -> None:
    model = SMALL["resnet"]().double()
    model.conv1.eval()
    x = example_input(model, 4, torch.float64)
    calibrate(model, x)
    assert model.training
    assert not model.conv1.training
    assert model.bn1.momentum == 0.1
    stem = nn.functional.conv2d(x, model.conv1.weight, None, 1, 1)
    torch.testing.assert_close(model.bn1.running_mean, stem.mean((0, 2, 3)))
    n = stem[:, 0].numel() * model.T
    expected = stem.var((0, 2, 3), unbiased=False) * n / (n - 1)
    torch.testing.assert_close(model.bn1.running_var, expected)


def test_norms_start_at_the_threshold() -> None:
    model = SMALL["resnet"](lif={"v_threshold": 0.8})
    assert model.bn1.weight[0].item() == pytest.approx(0.8)
    assert model.layer2[0].bn1.weight[0].item() == pytest.approx(0.8)
    assert model.layer2[0].bn2.weight[0].item() == pytest.approx(0.16)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: create("ms_resnet19"), ModelImportError, "ms_resnet18"),
        (lambda: create("ms_resnet18", "imagenet"), DataError, "cifar10"),
        (lambda: create("ms_resnet18", downsample="avg"), ModelImportError, "maxpool"),
        (lambda: create("spiking_vgg9", pool="sum"), ModelImportError, "avg"),
        (lambda: create("spiking_mlp", colour=1), ModelImportError, "colour"),
        (lambda: create("spiking_mlp", T=0), ModelImportError, "T=0"),
        (lambda: create("spiking_mlp", num_classes=0), ModelImportError, "0 classes"),
        (lambda: small("resnet")(torch.zeros(1, 2, 9, 7)), ModelImportError, r"\[1, 2, 9, 7\]"),
        (lambda: small("resnet")(torch.zeros(4, 1, 3, 9, 7)), ModelImportError, "T=3"),
        (lambda: set_time_execution(small("mlp"), "unrolled"), ModelImportError, "folded"),
        (lambda: set_time_execution(nn.Linear(2, 2), "loop"), ModelImportError, "Linear"),
        (lambda: example_input(nn.Linear(2, 2)), ModelImportError, "input_shape"),
        (lambda: example_input(small("mlp"), dtype="float99"), DataError, "float99"),
    ],
)
def test_bad_requests_are_named(call, error, words) -> None:
    with pytest.raises(error, match=words):
        call()


def test_training_learns_real_digits() -> None:
    model = create("spiking_mlp", "digits", hidden=(64,)).train()
    train, test = (load_dataset("digits", split=s) for s in ("train", "test"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(2):
        for x, y in train.batches(64, shuffle=True, seed=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(test.images).argmax(1) == test.labels).float().mean()
    assert accuracy > 0.9


@pytest.mark.parametrize("name", ["resnet", "mlp"])
def test_compiles_as_one_graph(name) -> None:
    """Dynamo traces inference and training without a graph break, so inductor gets all of it."""
    model = small(name)
    x = example_input(model, 2, torch.float64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    grads = []
    for fn in (model, compiled):
        model.zero_grad()
        fn(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
