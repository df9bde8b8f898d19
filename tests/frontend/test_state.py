"""State is explicit or refused; errors name the layer, the line and the cure."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from ttsnn.errors import ModelImportError
from ttsnn.frontend import import_model
from ttsnn.models import LIF
from ttsnn.program import num_inputs, params_of


class Counter(nn.Module):
    """Keeps a membrane in a buffer from call to call."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.register_buffer("mem", torch.zeros(2, 4))

    def forward(self, x):
        self.mem = 0.5 * self.mem + self.fc(x)
        return (self.mem > 0.2).to(x)


def test_updated_buffer_becomes_input_and_output(run):
    model = Counter().double()
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    mod = import_model(model, example=x[0])
    meta = json.loads(mod.attrs["ttsnn.meta"])
    assert meta["state"] == [{"input": "mem", "output": 1, "initial": 0.0}]
    assert [s["name"] for s in meta["inputs"]] == ["x", "mem"]
    assert num_inputs(mod["main"]) == 2
    assert "mem" not in params_of(mod)
    mem = torch.zeros(2, 4, dtype=torch.float64).numpy()
    for step in x:
        spikes, mem = run(mod, step.numpy(), mem)
        want = model(step)
        torch.testing.assert_close(torch.tensor(spikes), want)
        torch.testing.assert_close(torch.tensor(mem), model.mem.detach())


def test_buffer_with_an_old_run_is_refused():
    model = Counter()
    with torch.no_grad():
        model(torch.randn(2, 3))
    with pytest.raises(ModelImportError, match=r"'mem'.*reset"):
        import_model(model, example=torch.zeros(2, 3))


class Attribute(nn.Module):
    def __init__(self, reset: bool):
        super().__init__()
        self.reset = reset
        self.v = None

    def forward(self, x):
        if self.reset:
            self.v = None
        self.v = x if self.v is None else 0.5 * self.v + x
        return (self.v > 0.5).to(x)


def test_attribute_that_carries_state_is_refused(agree):
    with pytest.raises(ModelImportError, match=r"'v'.*register_buffer"):
        import_model(Attribute(False), example=torch.zeros(2, 3))
    agree(Attribute(True), torch.randn(2, 3))


def test_stale_attribute_is_refused():
    model = Attribute(True)
    with torch.no_grad():
        model(torch.randn(2, 3))
    with pytest.raises(ModelImportError, match="earlier run"):
        import_model(model, example=torch.zeros(2, 3))


def test_the_callers_module_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    import_model(model, example=torch.randn(2, 3))
    assert model.training
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[0].weight.requires_grad


def test_parameters_and_float_buffers_keep_their_names():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    mod = import_model(model, example=torch.zeros(1, 2, 5, 5))
    names = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    assert set(params_of(mod)) == names


def test_lif_is_one_operator_started_from_zeros(agree):
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    mod = agree(nn.Sequential(LIF(decay=0.9, v_threshold=0.3)), x)
    text = mod.script()
    assert text.count("R.snn.lif(") == 1
    assert text.count("R.zeros(") == 1
    assert "decay=0.9" in text.replace("0.90000000000000002", "0.9")
    assert json.loads(mod.attrs["ttsnn.meta"])["T"] == 3


class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        y = torch.fft.fft(x).real
        z = torch.linalg.inv(x)
        return y + z + torch.rand_like(x)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Bad()

    def forward(self, x):
        return self.block(x)


def test_every_unsupported_operator_is_named_with_its_layer_and_line():
    with pytest.raises(ModelImportError) as error:
        import_model(Holder(), example=torch.eye(3))
    text = str(error.value)
    for part in ("_fft_r2c", "linalg_inv", "'block' (Bad)", "test_state.py", "torch.linalg.inv(x)"):
        assert part in text
    assert "random numbers" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda x: x * 2 if x.sum() > 0 else x, "torch.where"),
        (lambda x: x[x > 0], "depends on data|branches|cannot be imported"),
        (lambda x: x.add_(1), "in place"),
        (lambda x: torch.bernoulli(x.sigmoid()), "random"),
        (lambda x: None, "returns nothing|no tensor"),
    ],
)
def test_refusals(body, words):
    class Net(nn.Module):
        def forward(self, x):
            return body(x)

    with pytest.raises(ModelImportError, match=words):
        import_model(Net(), example=torch.randn(2, 3))


def test_a_fixed_batch_is_refused_as_dynamic():
    class Net(nn.Module):
        def forward(self, x):
            return x.reshape(2, 3) * torch.ones(2, 3)

    with pytest.raises(ModelImportError, match="batch"):
        import_model(Net(), example=torch.randn(2, 3), dynamic_batch=True)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ModelImportError, match="example"):
        import_model(nn.Linear(2, 3))
    with pytest.raises(ModelImportError, match="fails on an input"):
        import_model(nn.Linear(2, 3), example=torch.zeros(1, 5))
    with pytest.raises(ModelImportError, match="dtype"):
        import_model(nn.Linear(2, 3), example=torch.zeros(1, 2), dtype="int8")
    with pytest.raises(ModelImportError, match="cannot import a list"):
        import_model([])
    for name in ("none.pt2", "none.onnx"):
        with pytest.raises(ModelImportError, match="no such file"):
            import_model(tmp_path / name)
    for name in ("bad.pt2", "bad.onnx"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nonsense")
        with pytest.raises(ModelImportError, match="damaged"):
            import_model(tmp_path / name)
    with pytest.raises(ModelImportError, match="unknown kind"):
        import_model("net.txt")
