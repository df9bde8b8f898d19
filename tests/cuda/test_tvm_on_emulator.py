"""TVM's CUDA code generator and runtime on the emulated device, against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from ttsnn.cuda import emulator
from ttsnn.cuda.callback import compile_with
from ttsnn.errors import DeviceError

TARGET = {
    "kind": "cuda",
    "arch": "sm_90",
    "max_shared_memory_per_block": 49152,
    "max_threads_per_block": 1024,
    "thread_warp_size": 32,
}
X, W = (4, 8, 12, 12), (8, 8, 3, 3)


def network() -> tvm.IRModule:
    """conv → relu → (softmax → d @ dᵀ, sums): kernels with barriers, with shuffles, and plain."""
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(X, "float32"))
    w = relax.Var("w", relax.TensorType(W, "float32"))
    with bb.function("main", [x, w]):
        with bb.dataflow():
            b = bb.emit(relax.op.nn.relu(relax.op.nn.conv2d(x, w, padding=1)))
            sums = bb.emit(relax.op.sum(b, axis=[1, 2, 3]))
            d = bb.emit(relax.op.nn.softmax(relax.op.reshape(b, (4, 8 * 144))))
            gram = bb.emit(relax.op.matmul(d, relax.op.permute_dims(d)))
            out = bb.emit_output(relax.Tuple([sums, gram]))
        bb.emit_func_output(out)
    return bb.get()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "graph"])
def built(request: pytest.FixtureRequest) -> tuple[relax.VMExecutable, bool]:
    """The compiled network, without and with CUDA graphs, and which it is."""
    emulator.enable()
    mod = network()
    mod["main"] = mod["main"].with_attr("num_input", 1)
    target = tvm.target.Target(TARGET, host={"kind": "llvm"})
    with (
        target,
        compile_with(emulator.compile_source),
        tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": request.param}),
    ):
        return relax.build(mod, target), request.param


@pytest.fixture(autouse=True)
def fresh_device():
    emulator.enable(order="forward", memory=4 << 30)
    emulator.take_report()
    yield
    emulator.enable(order="forward", memory=4 << 30)


def inputs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(X, np.float32), rng.standard_normal(W, np.float32)


def expected(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    b = torch.relu(torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(w), padding=1))
    d = torch.softmax(b.reshape(4, -1), -1)
    return b.sum((1, 2, 3)).numpy(), (d @ d.T).numpy()


def check(got, want) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_network(built, order: str) -> None:
    executable, captured = built
    emulator.enable(order=order)
    device = tvm.cuda(0)
    machine = relax.VirtualMachine(executable, device)
    x, w = inputs(0)
    weight = tvm.runtime.tensor(w, device)
    counts, graphs = [], []
    for seed in range(3):  # with CUDA graphs: plain launches and a capture, then the graph
        x, _ = inputs(seed)
        launches, replays = emulator.launches(), emulator.graph_launches()
        check(machine["main"](tvm.runtime.tensor(x, device), weight), expected(x, w))
        counts.append(emulator.launches() - launches)
        graphs.append(emulator.graph_launches() - replays)
    emulator.check()
    assert counts == [5, 5, 5]
    assert graphs == ([0, 1, 1] if captured else [0, 0, 0])


def test_exported_library_runs(built, tmp_path: Path) -> None:
    executable, _ = built
    file = tmp_path / "lib.so"
    executable.export_library(str(file))
    module = tvm.runtime.load_module(str(file))
    device = tvm.cuda(0)
    machine = relax.VirtualMachine(module, device, memory_cfg="naive")
    x, w = inputs(5)
    out = machine["main"](tvm.runtime.tensor(x, device), tvm.runtime.tensor(w, device))
    check(out, expected(x, w))


def test_mistake_in_a_kernel_is_named_by_tvms_error() -> None:
    def broken(source: str) -> bytes:
        assert "__syncthreads();" in source
        return emulator.compile_source(source.replace("__syncthreads();", ""))

    target = tvm.target.Target(TARGET, host={"kind": "llvm"})
    with target, compile_with(broken):
        executable = relax.build(network(), target)
    emulator.enable(order="both")
    device = tvm.cuda(0)
    machine = relax.VirtualMachine(executable, device)
    arrays = [tvm.runtime.tensor(a, device) for a in inputs(0)]
    with pytest.raises(Exception, match="conv2d_relu_kernel gives other results when its threads"):
        machine["main"](*arrays)
    with pytest.raises(DeviceError, match="missing barrier"):
        emulator.check()


def test_memory_of_the_device_is_limited() -> None:
    emulator.enable(memory=1 << 20)
    with pytest.raises(Exception, match="out of memory"):
        tvm.runtime.tensor(np.zeros(1 << 19, np.float32), tvm.cuda(0))


@pytest.mark.parametrize(
    ("function", "status", "text"),
    [
        ("cudaMalloc", 2, "out of memory"),
        ("cudaMemcpyAsync", 700, "illegal memory access"),
        ("cudaGetDeviceCount", 100, None),
    ],
)
def test_injected_failures(function: str, status: int, text: str | None) -> None:
    emulator.fail(function, status)
    try:
        if text is None:
            assert not tvm.cuda(0).exist
        else:
            with pytest.raises(Exception, match=text):
                tvm.runtime.tensor(np.zeros(4, np.float32), tvm.cuda(0)).numpy()
    finally:
        emulator.fail(function, 0)
    assert tvm.cuda(0).exist
