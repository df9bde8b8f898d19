from __future__ import annotations

import textwrap

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ttsnn.errors import ArtifactError, DataError, ModelImportError
from ttsnn.sources import InputShape, ModelOptions, parse_input_shape, resolve

NETS = """
import torch
from torch import nn

class Flat(nn.Module):
    '''[N, 1, 28, 28], which only the linear layer knows.'''
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.fc = nn.Linear(2 * 28 * 28, 4)
    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))

class Events(nn.Module):
    '''[T, N, 2, H, W], one step at a time.'''
    def __init__(self, T=3, num_classes=5, in_channels=2):
        super().__init__()
        self.T = T
        self.conv = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, num_classes)
    def forward(self, x):
        assert x.dim() == 5
        return sum(self.fc(self.conv(step).mean((2, 3))) for step in x) / len(x)

class Sequence(nn.Module):
    def __init__(self, in_features: int = 9):
        super().__init__()
        self.fc = nn.Linear(in_features, 3)
    def forward(self, x):
        assert x.dim() == 3
        return self.fc(x).mean(0)

class Steps(nn.Module):
    '''A static image and a count of steps in a submodule.'''
    def __init__(self):
        super().__init__()
        self.timesteps = 4
        self.conv = nn.Conv2d(3, 2, 1)
    def forward(self, x):
        return sum(self.conv(x).mean((2, 3)) for _ in range(self.timesteps))

class Keeps(nn.Module):
    '''State in a plain attribute.'''
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.v = None
    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        self.v = y if self.v is None else self.v + y
        return self.v

class Declared(nn.Module):
    T, input_shape, static_input = 2, (3, 9, 9), False
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
    def forward(self, x):
        return self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean((0, 3, 4))

class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
    def forward(self, x):
        return x.sum()

def required(num_classes, in_channels, image_size, T):
    net = Events(T, num_classes, in_channels)
    net.seen = (num_classes, in_channels, image_size, T)
    return net

def options(**anything):
    return Flat()

def broken():
    raise KeyError("wrong")

def number():
    return 3

class Space:
    net = Flat()

value = 7
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module ``own_nets`` in the current folder."""
    import sys

    (tmp_path / "own_nets.py").write_text(textwrap.dedent(NETS))
    (tmp_path / "bad_nets.py").write_text("raise RuntimeError('at import')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_nets", None)
    sys.modules.pop("bad_nets", None)


@pytest.mark.parametrize(
    ("text", "shape", "axis"),
    [
        ("N,3,32,32", (0, 3, 32, 32), 0),
        ("4,n,2,48,48", (4, 0, 2, 48, 48), 1),
        ("3x32x32", (0, 3, 32, 32), 0),
        ("4,2,48,48", (4, 0, 2, 48, 48), 1),
        ("784", (0, 784), 0),
        ("4, N, 10", (4, 0, 10), 1),
    ],
)
def test_parse_input_shape(text, shape, axis):
    assert parse_input_shape(text) == InputShape(shape, axis)
    assert parse_input_shape(text).sized(7)[axis] == 7


@pytest.mark.parametrize("text", ["", "a,b", "N,N,3", "N,0,3", "1,2", "-1,3,3", "1,2,3,4,5,6"])
def test_bad_input_shapes(text):
    with pytest.raises(DataError, match="input shape"):
        parse_input_shape(text)


@pytest.mark.parametrize(
    ("name", "options", "shape", "axis"),
    [
        ("Flat", {}, (0, 1, 28, 28), 0),
        ("Events", {}, (3, 0, 2, 32, 32), 1),
        ("Events", {"timesteps": 5, "image_size": 12}, (5, 0, 2, 12, 12), 1),
        ("Events", {"dataset": "ncaltech101"}, (6, 0, 2, 48, 48), 1),
        ("Sequence", {"timesteps": 4}, (4, 0, 9), 1),
        ("Steps", {"image_size": 6}, (0, 3, 6, 6), 0),
        ("Declared", {}, (2, 0, 3, 9, 9), 1),
        ("Declared", {"image_size": 5}, (2, 0, 3, 5, 5), 1),
        ("Keeps", {"input_shape": InputShape((0, 3, 4, 4), 0)}, (0, 3, 4, 4), 0),
        ("Space.net", {}, (0, 1, 28, 28), 0),
        ("options", {"num_classes": 3}, (0, 1, 28, 28), 0),
    ],
)
def test_inputs_are_found(nets, name, options, shape, axis):
    source = resolve(f"own_nets:{name}", ModelOptions(**options))
    assert source.kind == "module"
    assert not source.module.training
    assert source.input == InputShape(shape, axis)
    x = source.example(3, "float64", seed=1)
    assert tuple(x.shape) == source.input.sized(3)
    assert x.dtype == torch.float64
    assert torch.equal(x, source.example(3, "float64", seed=1))


def test_factory_arguments(nets):
    required = resolve("own_nets:required", ModelOptions(timesteps=2, num_classes=7))
    assert required.module.seen == (7, 3, 32, 2)
    events = resolve("own_nets:Events", ModelOptions(dataset="ncaltech101"))
    assert (events.module.T, events.module.fc.out_features) == (6, 101)
    plain = resolve("own_nets:Events")
    assert (plain.module.T, plain.module.fc.out_features) == (3, 5)


def test_timesteps_of_a_network_that_its_factory_hides(nets):
    assert resolve("own_nets:Steps", ModelOptions(timesteps=9)).module.timesteps == 9


def test_probing_leaves_state_alone(nets):
    assert resolve("own_nets:Keeps").module.v is None


def test_seed_makes_the_weights(nets):
    a, b, c = (resolve("own_nets:Flat", ModelOptions(seed=s)).module.fc.weight for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_nets:nothing", "has no 'nothing'"),
        ("no_such_package:net", "cannot import 'no_such_package'"),
        ("bad_nets:net", "raised RuntimeError: at import"),
        ("own_nets:broken", "raised KeyError: 'wrong'"),
        ("own_nets:number", "returned int"),
        ("own_nets:value", "neither"),
        ("own_nets:Strange", "give --input-shape"),
        ("ms_resnet19", "unknown model 'ms_resnet19'.*ms_resnet18"),
        ("net.onnx", "no such file"),
        ("net.pt2", "no such file"),
    ],
)
def test_bad_names(nets, name, message):
    with pytest.raises(ModelImportError, match=message):
        resolve(name)


def test_bad_shapes(nets):
    with pytest.raises(ModelImportError, match="does not run on input shape"):
        resolve("own_nets:Flat", ModelOptions(input_shape=InputShape((0, 1, 27, 27), 0)))
    with pytest.raises(ModelImportError, match="has no axis for the batch"):
        resolve("own_nets:Strange", ModelOptions(input_shape=InputShape((0, 3, 4, 4), 0)))
    with pytest.raises(DataError, match="unknown dataset"):
        resolve("own_nets:Flat", ModelOptions(dataset="mnist"))


def test_files(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        resolve(tmp_path / "net.ttsnn")
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    assert resolve(path).kind == "onnx"
    with pytest.raises(ModelImportError, match="its own weights"):
        resolve(path, ModelOptions(weights="w.pt"))
    with pytest.raises(ModelImportError, match="carries its own input"):
        resolve(path).example()


def test_modules_and_nonsense():
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    source = resolve(net)
    assert source.trained
    assert source.input == InputShape((0, 8), 0)
    assert resolve(source) is source
    with pytest.raises(ModelImportError, match="got int"):
        resolve(3)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("wrap", ["plain", "nested", "parallel"])
def test_weights(nets, tmp_path, suffix, wrap):
    torch.manual_seed(5)
    weights = nn.Linear(2 * 28 * 28, 4).state_dict()
    state = resolve("own_nets:Flat").module.state_dict()
    state["fc.weight"] = weights["weight"]
    if wrap == "parallel":
        state = {f"module.{k}": v for k, v in state.items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"epoch": 3, "state_dict": state} if wrap == "nested" else state, path)
    elif wrap == "nested":
        pytest.skip("safetensors files are flat")
    else:
        save_file(state, path)
    source = resolve("own_nets:Flat", ModelOptions(weights=path))
    assert source.trained
    assert torch.equal(source.module.fc.weight, weights["weight"])


def test_bad_weights(nets, tmp_path):
    state = resolve("own_nets:Flat").module.state_dict()
    for name, change, message in [
        ("missing", lambda s: s.pop("fc.bias"), r"1 missing \(fc.bias"),
        ("unknown", lambda s: s.update(extra=torch.zeros(1)), r"1 unknown \(extra"),
        ("shape", lambda s: s.update({"fc.bias": torch.zeros(5)}), r"fc.bias is \[5\]"),
        ("none", lambda s: s.clear(), "no state_dict"),
        ("text", lambda s: s.update(note="hello"), "'note' is str"),
    ]:
        changed = dict(state)
        change(changed)
        path = tmp_path / f"{name}.pt"
        torch.save(changed, path)
        with pytest.raises(ModelImportError, match=message):
            resolve("own_nets:Flat", ModelOptions(weights=path))
    with pytest.raises(ModelImportError, match="no such weights file"):
        resolve("own_nets:Flat", ModelOptions(weights=tmp_path / "none"))
    truncated = tmp_path / "missing.pt"
    truncated.write_bytes(truncated.read_bytes()[:100])
    with pytest.raises(ModelImportError, match="cannot be read as a state_dict"):
        resolve("own_nets:Flat", ModelOptions(weights=truncated))


def test_weights_with_code_are_refused(nets, tmp_path):
    """A pickle that would run code on loading is not loaded."""
    path = tmp_path / "evil.pt"
    torch.save(nn.Linear(1, 1), path)
    with pytest.raises(ModelImportError, match="cannot be read as a state_dict") as refused:
        resolve("own_nets:Flat", ModelOptions(weights=path))
    assert "weights_only" not in str(refused.value)  # torch's advice to run the file's code
