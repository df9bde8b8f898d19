"""Offline compilation for NVIDIA's GPUs: images, reports of the compiler, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ttsnn.cli import main
from ttsnn.cuda import compiler, toolkit
from ttsnn.cuda.compiler import CudaOptions, compile_cuda, parse_archs
from ttsnn.cuda.runtime import runs_on
from ttsnn.cuda.usage import parse_usage
from ttsnn.errors import TargetError

SOURCE = """
extern "C" __global__ void __launch_bounds__(64) axpy(float a, float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = a * tile[63 - threadIdx.x] + y[threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(32) copy(float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
}
"""
FATBIN = bytes.fromhex("50ed55ba")


def available(name: str) -> bool:
    try:
        compiler.find_compiler(name)
    except TargetError:
        return False
    return True


needs = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.skipif(not available(n), reason=f"no {n} here"))
        for n in compiler.COMPILERS
    ],
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTSNN_CACHE", str(tmp_path))


@needs
def test_code_of_several_architectures_with_its_report(name: str) -> None:
    options = CudaOptions(parse_archs("sm_90+sm_80"), compiler=name)
    code = compile_cuda(SOURCE, options)
    assert code.image[:4] == FATBIN
    assert b"axpy" in code.image
    assert {(u.kernel, u.arch) for u in code.usage} == {
        (k, a) for k in ("axpy", "copy") for a in ("sm_80", "sm_90")
    }
    axpy = next(u for u in code.usage if u.kernel == "axpy")
    assert axpy.shared_bytes == 256
    assert axpy.barriers == 1
    assert 0 < axpy.registers < 64
    assert axpy.spill_stores == axpy.spill_loads == 0
    assert code.compiler.startswith(name)
    assert compile_cuda(SOURCE, options).image == code.image


@needs
def test_contraction_can_be_left_out(name: str) -> None:
    images = {
        fmad: compile_cuda(SOURCE, CudaOptions(("sm_80",), fmad=fmad, compiler=name)).image
        for fmad in (True, False)
    }
    assert images[True] != images[False]


@needs
def test_architecture_specific_code(name: str) -> None:
    options = CudaOptions(("sm_90a",), compiler=name)
    assert options.ptx_arch is None
    assert {u.arch for u in compile_cuda(SOURCE, options).usage} == {"sm_90a"}


@needs
def test_errors_name_what_is_wrong(name: str) -> None:
    with pytest.raises(TargetError, match="has no arch sm_91, did you mean sm_90"):
        compile_cuda(SOURCE, CudaOptions(("sm_91",), compiler=name))
    with pytest.raises(TargetError, match='identifier "flaot" is undefined'):
        compile_cuda(SOURCE.replace("float a", "flaot a"), CudaOptions(("sm_80",), compiler=name))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "find_nvcc", lambda: None)
    monkeypatch.setattr(compiler.nvrtc, "version", lambda: None)
    with pytest.raises(TargetError, match=r"no CUDA compiler.*pip install 'ttsnn\[cuda\]'"):
        compile_cuda(SOURCE, CudaOptions(("sm_90",)))
    with pytest.raises(TargetError, match="no nvcc on this machine"):
        compile_cuda(SOURCE, CudaOptions(("sm_90",), compiler="nvcc"))
    with pytest.raises(TargetError, match="there are nvcc, nvrtc"):
        compile_cuda(SOURCE, CudaOptions(("sm_90",), compiler="clang"))


def test_nvcc_is_found_where_cuda_path_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    assert toolkit.find_nvcc() == tmp_path / "bin" / "nvcc"


def test_architectures_are_parsed() -> None:
    assert parse_archs("sm_90+sm_80, sm_100a+sm_80") == ("sm_80", "sm_90", "sm_100a")
    assert CudaOptions(("sm_80", "sm_90", "sm_100a")).ptx_arch == "compute_90"
    for text in ("", "90", "sm_9", "sm_90x", "compute_90"):
        with pytest.raises(TargetError, match="write"):
            parse_archs(text)


@pytest.mark.parametrize(
    ("archs", "device", "expected"),
    [
        (["sm_80"], (8, 0), True),
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (9, 0), True),
        (["compute_90"], (8, 6), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["sm_75", "sm_90"], (9, 0), True),
        (["sm_120"], (12, 1), True),
    ],
)
def test_which_device_runs_which_code(archs, device, expected: bool) -> None:
    assert runs_on(archs, *device) is expected


def test_report_with_spills() -> None:
    log = """
ptxas info    : Compiling entry function 'k' for 'sm_90'
ptxas info    : Function properties for k
    1024 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes cumulative stack, 6912 bytes smem
"""
    (usage,) = parse_usage(log)
    assert (usage.registers, usage.shared_bytes, usage.stack_bytes) == (255, 6912, 1024)
    assert (usage.spill_stores, usage.spill_loads, usage.barriers) == (12, 16, 1)


@pytest.mark.skipif(not available("nvcc"), reason="no nvcc here")
def test_inspect_lists_what_the_compiler_says(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    small = ["spiking_mlp", "--image-size", "8", "--in-channels", "1"]
    target = ["--target", "cuda:arch=sm_80+sm_90"]
    path = str(tmp_path / "mlp.ttsnn")
    assert main(["compile", *small, *target, "-o", path]) == 0
    capsys.readouterr()
    assert main(["inspect", path, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["target"]["archs"] == ["sm_80", "sm_90", "compute_90"]
    listed = [k for k in data["kernels"] if k["macs"]]
    assert listed
    for kernel in listed:
        assert {u["arch"] for u in kernel["usage"]} == {"sm_80", "sm_90"}
        assert all(0 < u["registers"] <= 255 for u in kernel["usage"])
    assert main(["inspect", path]) == 0
    assert "regs" in capsys.readouterr().out
    assert main(["inspect", path, "--source"]) == 2
    assert "artifacts hold machine code alone" in capsys.readouterr().err
    assert main(["inspect", *small, *target, "--source"]) == 0
    assert "__global__" in capsys.readouterr().out
