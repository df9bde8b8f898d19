""".pt2 and ONNX files: ONNX Runtime, our importer and PyTorch agree."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from ttsnn.errors import ModelImportError
from ttsnn.frontend import export_onnx, export_pt2, import_model
from ttsnn.models import LIF, TTConv2d, tt_linear
from ttsnn.program import params_of

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


class Net(nn.Module):
    """Convolution, batch norm, neuron, pool, linear; [N, C, H, W] repeated over T."""

    def __init__(self, T=3, **lif):
        super().__init__()
        self.T = T
        self.conv = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.bn = nn.BatchNorm2d(6)
        self.lif = LIF(**lif)
        self.fc = nn.Linear(6, 5)
        nn.init.uniform_(self.bn.running_var, 0.3, 0.6)

    def forward(self, x):
        y = self.bn(self.conv(x)).unsqueeze(0).expand(self.T, -1, -1, -1, -1)
        s = self.lif(y)
        p = nn.functional.avg_pool2d(s.flatten(0, 1), 2, 1).mean((2, 3))
        return self.fc(p).unflatten(0, (self.T, -1)).mean(0)


def ort(path, *inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


LIFS = [
    {},
    {"tau": 1.7, "v_threshold": 0.4},
    {"tau": 1.7, "decay_input": False, "v_reset": None, "v_threshold": 0.4},
    {"tau": 2.0, "v_reset": -0.1, "v_threshold": 0.3},
    {"beta": 0.9, "threshold": 0.4},
    {"beta": 0.9, "threshold": 0.4, "reset_mechanism": "zero"},
    {"beta": torch.tensor([0.5, 0.9, 0.1, 0.3, 0.7, 1.0])[:, None, None], "threshold": 0.4},
    {"learn_decay": True, "learn_threshold": True, "gain": 0.7},
]


@pytest.mark.parametrize("lif", LIFS)
def test_onnx_of_every_kind_of_neuron(tmp_path, run, lif):
    model = Net(**lif).double().eval()
    x = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    path = tmp_path / "net.onnx"
    export_onnx(model, path, x)
    want = model(x).detach().numpy()
    np.testing.assert_allclose(ort(path, x.numpy())[0], want, rtol=1e-10, atol=1e-12)
    mod = import_model(path)
    np.testing.assert_allclose(run(mod, x.numpy())[0], want, rtol=1e-10, atol=1e-12)
    text, straight = mod.script(), import_model(model, example=x)
    assert text.count("R.snn.lif(") == text.count("R.nn.conv2d(") == 1
    assert set(params_of(mod)) == set(params_of(straight))
    assert json.loads(mod.attrs["ttsnn.meta"]) == json.loads(straight.attrs["ttsnn.meta"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dynamic_batch(tmp_path, run, dtype):
    model = Net(T=1).eval()
    path = tmp_path / "net.onnx"
    export_onnx(model, path, torch.zeros(1, 2, 7, 8), dynamic_batch=True, dtype=dtype)
    mod = import_model(path, dynamic_batch=True)
    model = model.to(getattr(torch, dtype))
    for batch in (1, 3):
        x = torch.randn(batch, 2, 7, 8).to(getattr(torch, dtype))
        want = model(x).detach().numpy()
        np.testing.assert_allclose(ort(path, x.numpy())[0], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(run(mod, x.numpy())[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_tensor_train_layers(tmp_path, run, mode):
    model = TTConv2d(3, 4, 3, (2, 3, 3) if mode == "stt" else 2, mode, stride=2, padding=1)
    model = model.double().eval()
    x = torch.randn(3, 2, 3, 7, 6, dtype=torch.float64)
    path = tmp_path / "net.onnx"
    export_onnx(model, path, x)
    want = model(x).detach().numpy()
    np.testing.assert_allclose(ort(path, x.numpy())[0], want, rtol=1e-10, atol=1e-12)
    mod = import_model(path)
    assert "R.tt.conv2d(" in mod.script()
    np.testing.assert_allclose(run(mod, x.numpy())[0], want, rtol=1e-10, atol=1e-12)


def test_pt2(tmp_path, run):
    model = Net().double()
    x = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    path = tmp_path / "net.pt2"
    export_pt2(model, path, x, dynamic_batch=True)
    mod = import_model(path, dynamic_batch=True)
    want = model.eval()(x).detach().numpy()
    np.testing.assert_allclose(run(mod, x.numpy())[0], want, rtol=1e-12, atol=1e-12)
    assert json.loads(mod.attrs["ttsnn.meta"])["inputs"][0]["shape"] == ["n", 2, 7, 8]
    with pytest.raises(ModelImportError, match="float64, not float32"):
        import_model(path, dtype="float32")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelImportError, match="damaged"):
        import_model(path)


def test_plain_onnx_from_elsewhere(tmp_path, run):
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])
    w = np.random.default_rng(0).standard_normal((3, 2)).astype("float32")
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w.0"], ["h"]),
        onnx.helper.make_node("Relu", ["h"], ["y"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [onnx.numpy_helper.from_array(w, "w.0")])
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    mod = import_model(path, dynamic_batch=True)
    value = np.random.default_rng(1).standard_normal((5, 3)).astype("float32")
    np.testing.assert_allclose(run(mod, value)[0], np.maximum(value @ w, 0), rtol=1e-6)
    assert list(params_of(mod)) == ["w.0"]

    graph.node[1].op_type = "StringNormalizer"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    with pytest.raises(ModelImportError, match=r"StringNormalizer|damaged"):
        import_model(path)


def test_nothing_is_left_half_written(tmp_path):
    with pytest.raises(ModelImportError, match="cannot be written"):
        export_onnx(Net(), tmp_path / "none" / "net.onnx", torch.zeros(1, 2, 7, 8))
    assert list(tmp_path.iterdir()) == []


def test_tt_linear(tmp_path, run):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            shapes = [(1, 2, 3, 2), (2, 3, 2, 3), (3, 2, 2, 1)]
            self.cores = nn.ParameterList(torch.randn(s, dtype=torch.float64) for s in shapes)

        def forward(self, x):
            return tt_linear(x, list(self.cores))

    model, x = Linear(), torch.randn(3, 2, 12, dtype=torch.float64)
    path = tmp_path / "net.onnx"
    export_onnx(model, path, x)
    want = model(x).detach().numpy()
    np.testing.assert_allclose(ort(path, x.numpy())[0], want, rtol=1e-10)
    mod = import_model(path)
    np.testing.assert_allclose(run(mod, x.numpy())[0], want, rtol=1e-10)
    assert list(params_of(mod)) == ["cores.0", "cores.1", "cores.2"]
