"""Compiled networks on the emulated GPU, and what users without a GPU are told."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm

import ttsnn
from ttsnn.artifact import Manifest, StateEntry
from ttsnn.cli import main
from ttsnn.cuda import emulator
from ttsnn.cuda.callback import compile_with
from ttsnn.cuda.runtime import require_device
from ttsnn.errors import DataError, DeviceError, TargetError
from ttsnn.runtime.net import Net
from ttsnn.specs import TensorSpec

from ..runtime.tiny import Dense, Leaky  # noqa: TID252
from .test_tvm_on_emulator import TARGET


def build(mod: tvm.IRModule):
    emulator.enable()
    target = tvm.target.Target(TARGET, host={"kind": "llvm"})
    with target, compile_with(emulator.compile_source):
        return tvm.relax.build(mod, target)


@pytest.fixture(scope="module")
def dense_code():
    return build(Dense)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.standard_normal((6, 5)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float32),
    }


@pytest.fixture
def dense(dense_code, weights) -> Net:
    emulator.enable(order="both", memory=4 << 30)
    specs = (TensorSpec("y", ("n", 5), "float32"), TensorSpec("z", ("n", 5), "float32"))
    manifest = Manifest(
        model="dense",
        target={"name": "cuda-emulated"},
        versions={},
        inputs=(TensorSpec("x", ("n", 6), "float32"),),
        outputs=specs,
        params=("w", "b"),
    )
    yield Net(dense_code, manifest, weights)
    emulator.enable(order="forward", memory=4 << 30)
    emulator.take_report()


@pytest.mark.parametrize("batch", [1, 7])
def test_arrays_go_to_the_device_and_come_back(dense: Net, weights, batch: int) -> None:
    x = np.random.default_rng(1).standard_normal((batch, 6)).astype(np.float32)
    want = np.maximum(x @ weights["w"] + weights["b"], 0)
    y, z = dense(x)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z, 2 * want, rtol=1e-5, atol=1e-6)
    y, _ = dense(torch.tensor(x))
    assert isinstance(y, torch.Tensor)
    np.testing.assert_allclose(y.numpy(), want, rtol=1e-5, atol=1e-6)
    y, _ = dense(np.asfortranarray(x)[::-1])
    np.testing.assert_allclose(y, want[::-1], rtol=1e-5, atol=1e-6)


def test_inputs_are_checked_as_on_the_cpu(dense: Net) -> None:
    with pytest.raises(DataError, match="must be float32"):
        dense(np.zeros((2, 6)))
    with pytest.raises(DataError, match="got shape"):
        dense(np.zeros((2, 7), np.float32))


def test_state_stays_on_the_device() -> None:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((6, 5))
    manifest = Manifest(
        model="leaky",
        target={"name": "cuda-emulated"},
        versions={},
        inputs=(TensorSpec("x", ("n", 6), "float64"), TensorSpec("v", ("n", 5), "float64")),
        outputs=(TensorSpec("y", ("n", 5), "float64"), TensorSpec("h", ("n", 5), "float64")),
        state=(StateEntry("v", 1, 0.0),),
        params=("w",),
    )
    net = Net(build(Leaky), manifest, {"w": w})
    v = np.zeros((3, 5))
    for _ in range(3):
        x = rng.standard_normal((3, 6))
        v = 0.5 * v + x @ w
        np.testing.assert_allclose(net(x), v + 1, rtol=1e-12)
    np.testing.assert_allclose(net.state["v"], v, rtol=1e-12)
    net.state = {"v": np.ones((3, 5))}
    np.testing.assert_allclose(net(x), 0.5 + x @ w + 1, rtol=1e-12)


def test_threads_may_call_at_the_same_time(dense: Net, weights) -> None:
    x = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32)
    want = np.maximum(x @ weights["w"] + weights["b"], 0)
    wrong = []

    def call() -> None:
        for _ in range(5):
            y, _ = dense(x)
            if not np.allclose(y, want, rtol=1e-5, atol=1e-6):
                wrong.append(y)

    workers = [threading.Thread(target=call) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_full_memory_is_one_clear_message(dense: Net) -> None:
    emulator.enable(memory=4096)
    with pytest.raises(DeviceError, match=r"^dense: the GPU's memory is full: use a smaller batch"):
        dense(np.zeros((10_000, 6), np.float32))


def test_failing_launch_is_one_clear_message(dense: Net) -> None:
    emulator.fail("cuLaunchKernelEx", 719)
    try:
        with pytest.raises(DeviceError, match=r"^dense: CUDALaunch Error.*LAUNCH_FAILED"):
            dense(np.zeros((2, 6), np.float32))
    finally:
        emulator.fail("cuLaunchKernelEx", 0)


class FakeGpu:
    """What TVM says of a device."""

    def __init__(self, exist: bool, version: str = "", error: str = "") -> None:
        self._error = error
        self.exist, self.compute_version = exist, version

    def __getattribute__(self, name: str):
        error = object.__getattribute__(self, "_error")
        if name == "exist" and error:
            raise RuntimeError(error)
        return object.__getattribute__(self, name)


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        (FakeGpu(False), "no GPU 0 is visible"),
        (FakeGpu(True, "8.6"), r"compiled for sm_90, compute_90, this GPU is sm_86.*arch=sm_86"),
        (FakeGpu(True, error="CUDA driver version is insufficient"), "too old.*580"),
    ],
)
def test_what_is_wrong_with_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu, message: str) -> None:
    from ttsnn.cuda import runtime

    monkeypatch.setattr(runtime, "_loaded", lambda: True)
    monkeypatch.setattr(runtime.stand_in, "driver", lambda required=True: None)
    monkeypatch.setattr(runtime.emulator, "enabled", lambda: False)
    monkeypatch.setattr(runtime, "device", lambda kind, index: gpu)
    with pytest.raises(DeviceError, match=message):
        require_device(("sm_90", "compute_90"), "net.ttsnn")


def test_a_fitting_gpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from ttsnn.cuda import runtime

    gpu = FakeGpu(True, "12.0")
    monkeypatch.setattr(runtime, "_loaded", lambda: True)
    monkeypatch.setattr(runtime.stand_in, "driver", lambda required=True: None)
    monkeypatch.setattr(runtime.emulator, "enabled", lambda: False)
    monkeypatch.setattr(runtime, "device", lambda kind, index: gpu)
    assert require_device(("sm_90", "compute_90"), "net.ttsnn") is gpu


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("net") / "mlp.ttsnn"
    ttsnn.compile("spiking_mlp", target="cuda-emulated:order=both,memory=exact", out=path)
    return path


def test_artifact_of_the_emulated_target(artifact: Path, capsys: pytest.CaptureFixture) -> None:
    net = ttsnn.load(artifact)
    reference = ttsnn.compile("spiking_mlp", target="cpu")
    x = np.random.default_rng(4).standard_normal((1, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(net(x), reference(x), rtol=1e-4, atol=1e-5)
    emulator.check()
    assert main(["inspect", str(artifact), "--repeats", "1"]) == 0
    assert "conv" in capsys.readouterr().out


def test_options_of_the_emulated_target() -> None:
    with pytest.raises(TargetError, match="memory must be planned or exact, got 'tight'"):
        ttsnn.targets.get_target("cuda-emulated:memory=tight")
    with pytest.raises(TargetError, match="has no option 'fmad'"):
        ttsnn.targets.get_target("cuda-emulated:fmad=off")
