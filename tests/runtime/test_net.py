from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import ttsnn
from ttsnn.errors import ArtifactError, DataError
from ttsnn.runtime.net import Net
from ttsnn.runtime.tensors import aligned_copy


def _oracle(tiny, x):
    p = tiny.dense_params()
    y = np.maximum(x @ p["w"] + p["b"], 0)
    return y, y + y


def _x(*shape, dtype="float32", seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture
def net(dense_path):
    return ttsnn.load(dense_path)


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_numpy(tiny, net, batch):
    x = _x(batch, 6)
    y, z = net(x)
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.float32
    expected = _oracle(tiny, x)
    np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z, expected[1], rtol=1e-5, atol=1e-6)


def test_torch(tiny, net):
    x = torch.from_numpy(_x(3, 6)).requires_grad_()
    y, _ = net(x)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_allclose(y.numpy(), _oracle(tiny, x.detach().numpy())[0], rtol=1e-5)


def test_by_name(tiny, net):
    x = _x(2, 6)
    np.testing.assert_array_equal(net(x=x)[0], net(x)[0])


def test_results_outlive_later_calls(net):
    first, second = _x(2, 6, seed=1), _x(2, 6, seed=2)
    y, _ = net(first)
    kept = y.copy()
    for _ in range(5):
        net(second)
    np.testing.assert_array_equal(y, kept)
    y[:] = 0  # and they are the caller's to write


def test_shared_without_copy(tiny, dense_library, tmp_path, monkeypatch):
    """An aligned array reaches the code at its own address; a misaligned one does not."""
    net = ttsnn.load(tiny.write(tmp_path, dense_library))
    seen = []
    run = net._run
    monkeypatch.setattr(
        net, "_run", lambda tensors, n: seen.append(tensors["x"]) or run(tensors, n)
    )
    x = aligned_copy(_x(4, 6), 64)
    t = torch.randn(4, 6)
    net(x)
    net(t)
    assert [np.from_dlpack(s).ctypes.data for s in seen] == [x.ctypes.data, t.data_ptr()]


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.reshape(12, 4).T[:, ::2],
        lambda a: np.asfortranarray(a.reshape(8, 6)),
        lambda a: a.reshape(8, 6)[:, ::-1],
        lambda a: np.broadcast_to(a[:6], (3, 6)),
    ],
)
def test_strided_arrays(tiny, net, view):
    x = view(_x(48))
    np.testing.assert_allclose(net(x)[0], _oracle(tiny, x)[0], rtol=1e-5, atol=1e-6)
    if all(s >= 0 for s in x.strides) and x.flags.writeable:
        y, _ = net(torch.from_numpy(x))
        np.testing.assert_allclose(y.numpy(), _oracle(tiny, x)[0], rtol=1e-5, atol=1e-6)


def test_misaligned_and_read_only(tiny, net):
    base = np.zeros(200, np.uint8)
    for offset in range(0, 64, 4):
        x = base[offset : offset + 96].view("float32").reshape(4, 6)
        x[:] = _x(4, 6)
        np.testing.assert_allclose(net(x)[0], _oracle(tiny, x)[0], rtol=1e-5, atol=1e-6)
        t, _ = net(torch.from_numpy(x))
        np.testing.assert_allclose(t.numpy(), _oracle(tiny, x)[0], rtol=1e-5, atol=1e-6)
    x.setflags(write=False)
    np.testing.assert_allclose(net(x)[0], _oracle(tiny, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 5), "float32"), r"must be float32 \[n, 6\].*got shape \[2, 5\]"),
        (np.zeros(6, "float32"), r"got shape \[6\]"),
        (np.zeros((2, 6, 1), "float32"), r"got shape \[2, 6, 1\]"),
        (np.zeros((0, 6), "float32"), r"got shape \[0, 6\]"),
        (np.zeros((2, 6)), "got dtype float64"),
        (np.zeros((2, 6), ">f4"), "byte order"),
        (torch.zeros(2, 6, dtype=torch.float16), "got dtype float16"),
        (torch.zeros(2, 6, device="meta"), "is on meta"),
        ([[0.0] * 6], "got list"),
        (None, "got NoneType"),
    ],
)
def test_wrong_inputs(net, x, message):
    with pytest.raises(DataError, match=message):
        net(x)


def test_wrong_arity(net):
    x = _x(1, 6)
    for args, named in [((), {}), ((x, x), {}), ((x,), {"x": x}), ((), {"y": x})]:
        with pytest.raises(DataError, match=r"takes 1 input\(s\): x float32 \[n, 6\]"):
            net(*args, **named)


def test_symbolic_sizes_must_agree(tiny, leaky_library, tmp_path):
    net = _leaky(tiny, leaky_library, tmp_path)
    net.state = {"v": np.ones((2, 5))}
    with pytest.raises(DataError, match=r"state v is \[2, 5\].*needs \[3, 5\].*reset"):
        net(np.zeros((3, 6)))


def _leaky(tiny, library, folder):
    from ttsnn.artifact import write_artifact

    path = folder / "leaky.ttsnn"
    w = np.random.default_rng(0).standard_normal((6, 5))
    write_artifact(path, tiny.leaky_manifest(), {"w": w}, library)
    return ttsnn.load(path)


def test_state(tiny, leaky_library, tmp_path):
    net = _leaky(tiny, leaky_library, tmp_path)
    w = np.random.default_rng(0).standard_normal((6, 5))
    assert [s.name for s in net.inputs] == ["x"]
    assert len(net.outputs) == 1
    assert net.state == {}
    v = np.zeros((3, 5))
    for step in range(4):
        x = _x(3, 6, dtype="float64", seed=step)
        v = v / 2 + x @ w
        np.testing.assert_allclose(net(x), v + 1, rtol=1e-12)
        np.testing.assert_allclose(net.state["v"], v, rtol=1e-12)
    saved = net.state
    net.reset()
    x = _x(2, 6, dtype="float64")
    np.testing.assert_allclose(net(x), x @ w + 1, rtol=1e-12)
    net.state = saved
    x = _x(3, 6, dtype="float64")
    np.testing.assert_allclose(net(x), v / 2 + x @ w + 1, rtol=1e-12)
    np.testing.assert_allclose(saved["v"], v)  # the call did not write to what was given


def test_initial_state(tiny, leaky_library):
    from dataclasses import replace

    from ttsnn.artifact import Artifact, StateEntry
    from ttsnn.runtime.net import load_library

    manifest = replace(tiny.leaky_manifest(), state=(StateEntry("v", 1, initial=-3.0),))
    artifact = Artifact("leaky.ttsnn", manifest, {}, leaky_library)
    net = Net(load_library(artifact), manifest, {"w": np.zeros((6, 5))})
    for expected in (-0.5, 0.25):
        np.testing.assert_array_equal(net(np.zeros((2, 6))), np.full((2, 5), expected))


def test_state_errors(tiny, leaky_library, tmp_path):
    net = _leaky(tiny, leaky_library, tmp_path)
    with pytest.raises(DataError, match="entries v"):
        net.state = {"u": np.zeros((1, 5))}
    with pytest.raises(DataError, match="must be float64"):
        net.state = {"v": np.zeros((1, 5), "float32")}
    before = net(np.ones((1, 6)))
    with pytest.raises(DataError):
        net(np.ones((2, 6)))
    np.testing.assert_allclose(net.state["v"], before - 1, rtol=1e-12)


def test_threads_share_one_net(tiny, net):
    """Eight threads, each with inputs of its own, get what a single one gets."""
    inputs = [_x(1 + i, 6, seed=i) for i in range(8)]
    expected = [net(x)[0].copy() for x in inputs]
    failures = []
    start = threading.Barrier(len(inputs))

    def work(i):
        start.wait()
        for _ in range(50):
            y, _ = net(inputs[i], threads=1 + i % 2)
            if not np.array_equal(y, expected[i]):
                failures.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert failures == []


def test_state_is_safe_between_threads(tiny, leaky_library, tmp_path):
    """With x = 0 and w irrelevant the state halves at every call, whoever calls."""
    net = _leaky(tiny, leaky_library, tmp_path)
    net.state = {"v": np.full((1, 5), 2.0**60)}
    workers = [
        threading.Thread(target=lambda: [net(np.zeros((1, 6))) for _ in range(10)])
        for _ in range(4)
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    np.testing.assert_array_equal(net.state["v"], np.full((1, 5), 2.0**20))


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_bad_thread_counts(net, count):
    with pytest.raises(DataError, match="threads must be"):
        net(_x(1, 6), threads=count)
    with pytest.raises(DataError, match="threads must be"):
        net.threads = count


def test_compiled_module_needs_no_file(tiny):
    from tvm import relax

    net = Net(relax.build(tiny.Dense, "llvm"), tiny.manifest(), tiny.dense_params())
    x = _x(2, 6)
    np.testing.assert_allclose(net(x)[1], _oracle(tiny, x)[1], rtol=1e-5, atol=1e-6)
    assert "dense" in repr(net)


def test_other_machines(tiny, dense_library, tmp_path):
    for target, message in [
        ({**tiny.TARGET, "arch": "sparc64"}, "compiled for sparc64"),
        ({**tiny.TARGET, "features": ["avx9000"]}, "with avx9000, which this one"),
    ]:
        path = tiny.write(tmp_path, dense_library, target=target)
        with pytest.raises(ArtifactError, match=message):
            ttsnn.load(path)


def test_library_that_is_none(tiny, tmp_path):
    path = tiny.write(tmp_path, b"no library")
    with pytest.raises(ArtifactError, match="library cannot be loaded"):
        ttsnn.load(path)


def test_runtime_library_alone(tiny, dense_path, tmp_path):
    """No compiler in the process, no PyTorch, no Relax: TVM's runtime library is enough."""
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("no torch here")
sys.meta_path.insert(0, Block())
import numpy as np, ttsnn
x = np.load(sys.argv[2])
np.save(sys.argv[3], ttsnn.load(sys.argv[1])(x)[0])
assert "torch" not in sys.modules
assert not any(k.split(".")[:2] == ["tvm", "relax"] for k in sys.modules)
with open("/proc/self/maps") as maps:
    libraries = {line.split("/")[-1].strip() for line in maps if "libtvm" in line}
print(sorted(libraries))
"""
    x = _x(3, 6)
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run(
        [sys.executable, "-c", code, str(dense_path), tmp_path / "x.npy", tmp_path / "y.npy"],
        capture_output=True,
        text=True,
        env={"TVM_USE_RUNTIME_LIB": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert "compiler" not in done.stdout
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(y, _oracle(tiny, x)[0], rtol=1e-5, atol=1e-6)


def test_import_is_light():
    code = "import sys, ttsnn; print([m for m in ('torch', 'tvm', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
