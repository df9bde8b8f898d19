"""The emulated CUDA device: what it computes, and which mistakes it finds."""

from __future__ import annotations

import numpy as np
import pytest

from ttsnn.cuda import emulator
from ttsnn.errors import DataError, TargetError

from .raw import launch

REVERSE = """
extern "C" __global__ void __launch_bounds__(64) k(float* __restrict__ x, float* __restrict__ y) {
  __shared__ alignas(64) float tile[64];
  tile[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  y[blockIdx.x * 64 + threadIdx.x] = tile[63 - threadIdx.x] * 2.0f;
}
"""


@pytest.fixture(autouse=True)
def fresh_device():
    emulator.enable(order="forward", threads=1)
    emulator.take_report()
    yield
    emulator.enable(order="forward", threads=1)
    emulator.take_report()


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("threads", [1, 3])
def test_barrier(order: str, threads: int) -> None:
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    emulator.enable(order=order, threads=threads)
    status, (_, y) = launch(REVERSE, [x, np.zeros_like(x)], grid=(5, 1, 1), block=(64, 1, 1))
    assert status == 0
    assert emulator.take_report() is None
    np.testing.assert_array_equal(y, x[:, ::-1] * 2)


def test_a_deleted_barrier_is_found() -> None:
    x = np.ones((2, 64), np.float32)
    source = REVERSE.replace("__syncthreads();", "")
    emulator.enable(order="both")
    status, _ = launch(source, [x, np.zeros_like(x)], grid=(2, 1, 1), block=(64, 1, 1))
    report = emulator.take_report()
    assert status != 0
    assert report is not None
    assert (report.kind, report.kernel) == ("race", "k")


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_a_deleted_barrier_shows_in_the_results_too(order: str) -> None:
    x = np.ones((1, 64), np.float32)
    emulator.enable(order=order)
    _, (_, y) = launch(REVERSE.replace("__syncthreads();", ""), [x, x], block=(64, 1, 1))
    assert np.isnan(y).sum() == 32


@pytest.mark.parametrize(
    ("index", "what", "where"),
    [
        ("i + 1", "wrote", "behind the end of"),
        ("i + 5000", "wrote", "behind the end of"),
        ("i - 70", "wrote", "before"),
        ("i + 100000000", "wrote", "no allocation"),
    ],
)
def test_out_of_bounds_write_is_found(index: str, what: str, where: str) -> None:
    source = f"""
extern "C" __global__ void __launch_bounds__(32) k(float* __restrict__ y) {{
  int i = blockIdx.x * 32 + threadIdx.x;
  y[{index}] = 1.0f;
}}"""
    status, _ = launch(source, [np.zeros(64, np.float32)], grid=(2, 1, 1), block=(32, 1, 1))
    report = emulator.take_report()
    assert status == 700
    assert report is not None
    assert report.kind == "out of bounds"
    assert report.kernel == "k"
    assert what in report.text
    assert where in report.text


def test_out_of_bounds_read_names_block_and_thread() -> None:
    source = """
extern "C" __global__ void __launch_bounds__(32) k(float* x, float* y) {
  int i = blockIdx.x * 32 + threadIdx.x;
  y[i] = i == 37 ? x[20000] : x[i];
}"""
    x = np.zeros(64, np.float32)
    status, _ = launch(source, [x, x], grid=(2, 1, 1), block=(32, 1, 1))
    report = emulator.take_report()
    assert status == 700
    assert report is not None
    assert (report.block, report.thread) == ((1, 0, 0), (5, 0, 0))
    assert "read out of bounds" in report.text


def test_write_behind_a_shared_array_is_found() -> None:
    source = REVERSE.replace("tile[threadIdx.x] =", "tile[threadIdx.x + 1] =")
    x = np.zeros((1, 64), np.float32)
    status, _ = launch(source, [x, x], block=(64, 1, 1))
    report = emulator.take_report()
    assert status != 0
    assert report is not None
    assert "tile" in report.text


def test_a_read_of_what_nobody_wrote_is_a_nan() -> None:
    source = """
extern "C" __global__ void __launch_bounds__(32) k(float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x] + 1.0f;
}"""
    x = np.zeros(32, np.float32)
    status, (_, y) = launch(source, [x, x], block=(32, 1, 1), fresh=[0])
    assert status == 0
    assert np.isnan(y).all()


def test_threads_that_write_one_place_are_found() -> None:
    source = """
extern "C" __global__ void __launch_bounds__(32) k(int* y) { y[threadIdx.x / 2] = threadIdx.x; }"""
    emulator.enable(order="both")
    launch(source, [np.zeros(32, np.int32)], block=(32, 1, 1))
    report = emulator.take_report()
    assert report is not None
    assert report.kind == "race"


def test_a_barrier_that_some_never_reach_is_found() -> None:
    source = """
extern "C" __global__ void __launch_bounds__(64) k(int* y) {
  if (threadIdx.x < 40) { __syncthreads(); }
  y[threadIdx.x] = 1;
}"""
    status, _ = launch(source, [np.zeros(64, np.int32)], block=(64, 1, 1))
    report = emulator.take_report()
    assert status != 0
    assert report is not None
    assert report.kind == "divergence"
    assert "24 of 64" in report.text


def test_different_barriers_are_found() -> None:
    source = """
extern "C" __global__ void __launch_bounds__(64) k(int* y) {
  if (threadIdx.x < 40) {
    __syncthreads();
    y[0] = 1;
  } else {
    __syncthreads();
    y[1] = 1;
  }
}"""
    launch(source, [np.zeros(64, np.int32)], block=(64, 1, 1))
    report = emulator.take_report()
    assert report is not None
    assert report.kind == "divergence"


def test_division_of_an_integer_by_zero_is_found() -> None:
    source = """
extern "C" __global__ void k(int* x, int* y) { y[0] = 7 / x[0]; }"""
    launch(source, [np.zeros(1, np.int32), np.zeros(1, np.int32)])
    report = emulator.take_report()
    assert report is not None
    assert report.kind == "arithmetic"


def test_limits_of_a_launch() -> None:
    x = np.zeros((1, 64), np.float32)
    assert launch(REVERSE, [x, x], block=(65, 1, 1))[0] == 1
    report = emulator.take_report()
    assert report is not None
    assert "__launch_bounds__" in report.text
    assert launch(REVERSE, [x, x], block=(64, 1, 1), shared=300 << 10)[0] == 1
    large = REVERSE.replace("tile[64]", "tile[12800]")
    assert launch(large, [x, x], block=(64, 1, 1))[0] == 1


def test_dynamic_shared_memory_and_3d_indices() -> None:
    source = """
extern "C" __global__ void __launch_bounds__(24) k(int* y) {
  extern __shared__ alignas(64) unsigned char buf[];
  int* tile = (int*)buf;
  int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  tile[i] = 100 * blockIdx.y + 10000 * blockIdx.x + i;
  __syncthreads();
  y[(blockIdx.x + gridDim.x * blockIdx.y) * 24 + i] = tile[23 - i];
}"""
    y = np.zeros((3, 2, 24), np.int32)
    status, (y,) = launch(source, [y], grid=(2, 3, 1), block=(4, 3, 2), shared=96)
    by, bx, i = np.indices(y.shape)
    assert status == 0, emulator.take_report()
    np.testing.assert_array_equal(y, 100 * by + 10000 * bx + 23 - i)


@pytest.mark.parametrize("block", [32, 64, 48])
def test_warp_operations(block: int) -> None:
    source = """
extern "C" __global__ void __launch_bounds__(64) k(float* x, float* sum, int* votes, float* up) {
  float v = x[threadIdx.x];
  unsigned mask = __activemask();
  up[threadIdx.x] = __shfl_up_sync(mask, v, 3, 32);
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  sum[threadIdx.x] = v;
  votes[threadIdx.x] = __ballot_sync(0xffffffffu, x[threadIdx.x] > 0.0f);
}"""
    x = np.random.default_rng(1).integers(-9, 9, block).astype(np.float32)
    x = np.pad(x, (0, -block % 32)) if block == 48 else x
    n = len(x)
    status, (_, total, votes, up) = launch(
        source, [x, x, np.zeros(n, np.int32), x], block=(n, 1, 1)
    )
    assert status == 0, emulator.take_report()
    warps = x.reshape(-1, 32)
    np.testing.assert_array_equal(total.reshape(-1, 32), np.tile(warps.sum(1)[:, None], 32))
    bits = ((warps > 0) << np.arange(32)).sum(1).astype(np.uint32)
    np.testing.assert_array_equal(votes.view(np.uint32).reshape(-1, 32), np.tile(bits[:, None], 32))
    shifted = np.concatenate([warps[:, :3], warps[:, :-3]], 1)
    np.testing.assert_array_equal(up.reshape(-1, 32), shifted)


def test_warp_operations_of_some_lanes() -> None:
    source = """
extern "C" __global__ void __launch_bounds__(64) k(int* y) {
  int v = threadIdx.x;
  if (threadIdx.x < 8) {
    unsigned mask = __activemask();
    for (int d = 4; d > 0; d >>= 1) v += __shfl_down_sync(mask, v, d, 8);
  }
  __syncthreads();
  y[threadIdx.x] = v;
}"""
    status, (y,) = launch(source, [np.zeros(64, np.int32)], block=(64, 1, 1))
    assert status == 0, emulator.take_report()
    assert y[0] == 28
    np.testing.assert_array_equal(y[8:], np.arange(8, 64))


def test_vectors_atomics_and_bits() -> None:
    source = """
extern "C" __global__ void __launch_bounds__(32) k(float* x, float* y, int* count) {
  float4 v = *(float4*)(x + threadIdx.x * 4);
  uchar4 u = make_uchar4(v.x > 0, v.y > 0, v.z > 0, v.w > 0);
  *(float2*)(y + threadIdx.x * 2) = make_float2(v.x + v.y, fmaxf(v.z, v.w));
  atomicAdd(count, u.x + u.y + u.z + u.w);
  atomicMax(count + 1, __popc(threadIdx.x));
}"""
    x = np.random.default_rng(2).standard_normal((32, 4), np.float32)
    arrays = [x, np.zeros((32, 2), np.float32), np.zeros(2, np.int32)]
    status, (_, y, count) = launch(source, arrays, block=(32, 1, 1))
    assert status == 0
    np.testing.assert_array_equal(y, np.stack([x[:, 0] + x[:, 1], x[:, 2:].max(1)], 1))
    assert count.tolist() == [(x > 0).sum(), 5]


def test_no_contraction_into_fma() -> None:
    source = """
extern "C" __global__ void k(float* x) { x[3] = x[0] * x[1] + x[2]; }"""
    a = np.float32(1 + 2**-12)
    x = np.array([a, a, -(a * a), 1], np.float32)
    assert launch(source, [x])[1][0][3] == 0


def test_unknown_order_and_source_are_refused() -> None:
    with pytest.raises(DataError, match="use forward, reverse, both"):
        emulator.enable(order="random")
    with pytest.raises(TargetError, match="no kernel"):
        emulator.compile_source("int x;")
    with pytest.raises(TargetError, match=r"fails: .*not declared"):
        emulator.compile_source('extern "C" __global__ void k(int* y) {\n  y[0] = wmma();\n}')


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from ttsnn.cuda import host_compiler

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    host_compiler.compiler_id.cache_clear()
    with pytest.raises(TargetError, match="install g"):
        emulator.compile_source('extern "C" __global__ void k(int* y) {\n  y[0] = 5;\n}')
    host_compiler.compiler_id.cache_clear()
