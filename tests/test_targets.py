"""The registry of targets, and the CPU target from program to numbers."""

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax

from ttsnn.errors import TargetError
from ttsnn.frontend import import_model
from ttsnn.models import LIF
from ttsnn.program import params_of
from ttsnn.targets import get_target, register_target, target_names


class Small(nn.Module):
    """Stem, residual block with a pool, classifier, over T timesteps."""

    def __init__(self, steps: int, static: bool) -> None:
        super().__init__()
        self.steps, self.static = steps, static
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)
        self.lif0, self.lif1, self.lif2 = (LIF(v_threshold=0.3) for _ in range(3))

    def fold(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return layer(x.flatten(0, 1)).unflatten(0, (self.steps, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.static:
            x = x.unsqueeze(0).expand(self.steps, *x.shape)
        x = self.fold(nn.Sequential(self.stem, self.norm), x)
        x = self.fold(nn.Sequential(self.conv, self.bn), self.lif0(x)) + x
        x = self.fold(nn.MaxPool2d(2), self.lif1(x))
        x = self.lif2(self.fold(nn.Sequential(self.conv, self.bn), x)).mean((0, 3, 4))
        return self.fc(x)


def small(steps: int, static: bool, dtype: torch.dtype) -> Small:
    torch.manual_seed(0)
    model = Small(steps, static).to(dtype).eval()
    for bn in (model.norm, model.bn):
        nn.init.uniform_(bn.running_mean, -0.2, 0.2)
        nn.init.uniform_(bn.running_var, 0.2, 0.6)
    return model


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("batch", "dynamic", "steps", "static"),
    [(1, False, 3, True), (2, False, 2, False), (3, True, 1, True), (1, True, 2, False)],
)
def test_network_agrees_with_pytorch(dtype, batch, dynamic, steps, static) -> None:
    model = small(steps, static, getattr(torch, dtype))
    shape = (batch, 2, 6, 4) if static else (steps, batch, 2, 6, 4)
    x = torch.randn(shape, dtype=getattr(torch, dtype))
    cpu = get_target("cpu")
    options = {"dynamic_batch": True} if dynamic else {}
    mod = import_model(model, example=torch.cat([x, x], -4) if dynamic else x, **options)
    before = mod.without_attr("ttsnn.params").script()
    lowered = cpu.lower(mod, record_spikes=True)
    assert mod.without_attr("ttsnn.params").script() == before
    vm = relax.VirtualMachine(cpu.build(lowered), tvm.cpu())
    args = [np.ascontiguousarray(a) for a in [x.numpy(), *params_of(lowered).values()]]
    logits, *spikes = [o.numpy() for o in vm["main"](*map(tvm.runtime.tensor, args))]
    want: list[np.ndarray] = []
    for neuron in (model.lif0, model.lif1, model.lif2):
        neuron.register_forward_hook(lambda _m, _i, out: want.append(out.numpy()))
    with torch.no_grad():
        result = model(x).numpy()
    assert len(spikes) == 3
    for got, s in zip(spikes, want, strict=True):
        assert 0 < s.mean() < 1
        np.testing.assert_array_equal(got, s)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(logits, result, rtol=tolerance, atol=tolerance)


def test_kernels_say_what_they_are() -> None:
    cpu = get_target("cpu")
    model = small(2, True, torch.float32)
    mod = import_model(model, example=torch.randn(1, 2, 6, 4))
    kernels = cpu.kernels(cpu.lower(mod))
    assert all(k.scheduled for k in kernels)
    layers = [k for k in kernels if k.rule == "layer"]
    # the stem is computed for its neuron, and again for the shortcut
    assert sorted(k.layers[0] for k in layers) == ["conv", "conv", "fc", "stem", "stem"]
    macs = {k.layers[0]: k.macs for k in layers}
    assert macs["stem"] == 24 * 9 * 2 * 6
    assert macs["fc"] == 30
    conv = sorted(k.macs for k in layers if k.layers == ("conv",))
    assert conv == [2 * 6 * 9 * 36, 2 * 24 * 9 * 36]


def test_dump_shows_every_pass(tmp_path) -> None:
    mod = import_model(small(2, True, torch.float32), example=torch.randn(1, 2, 6, 4))
    get_target("cpu").lower(mod, dump_ir=tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[0].startswith("001_")
    assert any(n.endswith("_FuseLayers.py") for n in names)
    text = next(p for p in tmp_path.iterdir() if "FuseLayers" in p.name).read_text()
    assert "R.snn.layer" in text


def test_code_for_another_cpu() -> None:
    old = get_target("cpu:mcpu=x86-64-v3")
    assert old.describe()["isa"] == "avx2"
    assert old.describe()["mcpu"] == "x86-64-v3"
    mod = import_model(small(1, True, torch.float32), example=torch.randn(1, 2, 6, 4))
    assert all(k.scheduled for k in old.kernels(old.lower(mod)))


def test_threads_of_one_image(monkeypatch) -> None:
    def cores(target) -> int:
        return int(target.tvm_target.attrs["num-cores"])

    monkeypatch.setattr("ttsnn.passes.cpu.target.available_cpus", lambda: 5)
    assert cores(get_target("cpu")) == 5
    assert cores(get_target("cpu").for_threads(3)) == 3
    assert cores(get_target("cpu:mcpu=x86-64-v3")) == 2
    assert cores(get_target("cpu:num-cores=7").for_threads(3)) == 7
    accelerator = get_target("ttsnn-accel")
    assert accelerator.for_threads(3) is accelerator


def test_registry() -> None:
    assert "cpu" in target_names()
    cpu = get_target("cpu", mcpu="x86-64-v3", num_cores=2)
    assert get_target(cpu) is cpu
    assert cpu.options == {"mcpu": "x86-64-v3", "num-cores": "2"}
    listed = get_target("cpu:mcpu=x86-64-v3,mattr=+avx512f,-avx512vl")
    assert listed.options["mattr"] == "+avx512f,-avx512vl"
    register_target("second", "ttsnn.passes.cpu.target:CpuTarget")
    assert "second" in target_names()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cpuu", "unknown target 'cpuu', did you mean cpu"),
        ("tpu9000", "there are "),
        ("cpu:mpcu=znver4", "no option 'mpcu', did you mean mcpu"),
        ("cpu:mcpu=znver44", "no mcpu 'znver44'"),
        ("cpu:fast", "'fast' is no option"),
        ("cpu:num-cores=many", "num-cores must be a number"),
        ("cpu:num-cores=0", "num-cores must be a number"),
    ],
)
def test_bad_targets_are_refused(spec: str, message: str) -> None:
    with pytest.raises(TargetError, match=message.replace("(", "\\(")):
        get_target(spec)
