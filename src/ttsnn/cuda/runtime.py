"""TVM's CUDA runtime: loaded over the driver, over the emulated one, or with no device at all.

TVM loads it by itself where it finds the driver and CUDA's runtime library. Here it is loaded
where that library comes by pip, and what is missing gets one clear message.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm.runtime import device

from ttsnn.cuda import emulator
from ttsnn.cuda.emulator import stand_in
from ttsnn.cuda.toolkit import find_library
from ttsnn.errors import DeviceError, first_line

__all__ = ["CUDART", "device_error", "load_for_compiling", "require_device", "runs_on"]

CUDART = "libcudart.so.13"
"""CUDA's runtime library, by the name that TVM's CUDA runtime needs."""

_NO_DEVICE = 100  # cudaErrorNoDevice


def _loaded() -> bool:
    return tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is not None


def load_for_compiling() -> None:
    """Load what makes modules of device code: the runtime, over any driver.

    On a machine without a driver it is the emulated one, without a device.

    Raises:
        TargetError: no driver, and no C++ compiler for the emulated one.
    """
    if not _loaded() and _load_real() is not None:
        stand_in.load()
        stand_in.driver().ttsnn_emulator_fail(b"cudaGetDeviceCount", _NO_DEVICE, 0)


def _load_real() -> str | None:
    """Load the runtime over the real driver; None, or what is missing and what to do."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver (libcuda.so.1): run it on a machine with a GPU"
    try:
        beside = stand_in.runtime_library().with_name(CUDART)  # in a bundle
        cudart = beside if beside.exists() else find_library(CUDART)
        ctypes.CDLL(str(cudart or CUDART), ctypes.RTLD_GLOBAL)
    except OSError:
        return f"CUDA's runtime library {CUDART} is missing: pip install 'ttsnn[cuda]'"
    try:
        ctypes.CDLL(str(stand_in.runtime_library()))
    except OSError as error:
        return f"TVM's CUDA runtime cannot be loaded ({first_line(error)})"
    return None


def require_device(archs: Sequence[str], what: str, *, index: int = 0) -> Any:
    """The GPU, for code of some architectures.

    Args:
        archs: those that the code was compiled for: ``sm_90``, ``compute_90`` for PTX.
        what: whose code, for the message.
        index: number of the device.

    Raises:
        DeviceError: no driver, no GPU, a driver that is too old, or another architecture.
    """
    if not _loaded():
        missing = _load_real()
        if missing is not None:
            raise DeviceError(f"{what}: {missing}, or compile it for cpu or cuda-emulated")
    if stand_in.driver(required=False) is not None and not emulator.enabled():
        raise DeviceError(
            f"{what}: this machine has no NVIDIA driver (libcuda.so.1): run it on a machine with "
            "a GPU, or compile it for cpu or cuda-emulated"
        )
    if emulator.enabled():
        raise DeviceError(
            f"{what}: compiled for a GPU, but this process emulates one; load it in another process"
        )
    gpu = device("cuda", index)
    try:
        there = bool(gpu.exist)
        capability = str(gpu.compute_version) if there else ""
    except Exception as error:  # TVM's own kinds
        raise DeviceError(f"{what}: {_explain(str(error)) or first_line(error)}") from error
    if not there:
        raise DeviceError(
            f"{what}: no GPU {index} is visible to the NVIDIA driver; see nvidia-smi, "
            "CUDA_VISIBLE_DEVICES, and whether the driver is at least of CUDA 13 (580)"
        )
    major, _, minor = capability.partition(".")
    if archs and not runs_on(archs, int(major), int(minor)):
        raise DeviceError(
            f"{what}: compiled for {', '.join(archs)}, this GPU is sm_{major}{minor}; compile it "
            f"with --target cuda:arch=sm_{major}{minor}"
        )
    return gpu


def runs_on(archs: Sequence[str], major: int, minor: int) -> bool:
    """Whether code for ``archs`` runs on compute capability ``major.minor``.

    Machine code runs on its own major version from its minor version on, that of ``sm_90a`` on
    9.0 alone, that of ``sm_100f`` on its family; PTX (``compute_80``) on everything later.
    """
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        kind, own = match[1], (int(match[2]), int(match[3]))
        if match[4] == "a":
            fits = own == (major, minor)
        elif kind == "compute" and not match[4]:
            fits = own <= (major, minor)
        else:
            fits = own[0] == major and own[1] <= minor
        if fits:
            return True
    return False


_EXPLAIN = (
    (r"out of memory", "the GPU's memory is full: use a smaller batch, or free memory of others"),
    (
        r"no kernel image|NO_BINARY_FOR_GPU",
        "the code is for another GPU: compile it with --target cuda:arch=… of this one",
    ),
    (
        r"driver version is insufficient|unsupported toolchain|UNSUPPORTED_PTX_VERSION",
        "the NVIDIA driver is too old for CUDA 13: install 580 or later",
    ),
    (r"no CUDA-capable device", "the NVIDIA driver sees no GPU: see nvidia-smi"),
)


def device_error(error: BaseException, what: str) -> DeviceError | None:
    """An error of ours for one that TVM's CUDA runtime raised; None where it is no such one."""
    text = str(error)
    if not re.search(r"CUDA|cuda", text):
        return None
    if emulator.enabled():
        report = emulator.take_report()
        if report is not None:
            return DeviceError(f"{what}: emulated CUDA device: {report.text}")
    found = re.search(r"(?:CUDALaunch Error|CUDA Runtime Error|CUDAError|CUDA)[^\n]*", text)
    return DeviceError(f"{what}: {_explain(text) or (found[0] if found else first_line(error))}")


def _explain(text: str) -> str | None:
    for pattern, meaning in _EXPLAIN:
        if re.search(pattern, text):
            return meaning
    return None
