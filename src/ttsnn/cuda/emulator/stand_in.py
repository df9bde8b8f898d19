"""Loading the emulated driver, and TVM's CUDA runtime over it."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

from ttsnn.cuda.cache import cached, key_of
from ttsnn.cuda.emulator.elf import rename_needed
from ttsnn.cuda.host_compiler import compiler_id, run_cxx
from ttsnn.errors import TargetError

__all__ = ["INCLUDE", "LIBRARIES", "driver", "load", "prepare"]

_HERE = Path(__file__).resolve().parent
INCLUDE = _HERE / "include"
_SOURCES = ("api.cc", "memory.cc", "launch.cc", "fiber.cc")
_NAME = "libttsnncuda.so"
_RUNTIME = "libtvm_runtime_cuda.so"

LIBRARIES = (_NAME, _RUNTIME)
"""Names of the two libraries; a folder ``prebuilt`` beside this file may hold them."""

_driver: Any = None


def driver(*, required: bool = True) -> Any:
    """The emulated driver's library.

    Raises:
        TargetError: it is not loaded.
    """
    if _driver is None and required:
        raise TargetError("the CUDA emulator is off: call ttsnn.cuda.emulator.enable() first")
    return _driver


def load() -> None:
    """Load both libraries; nothing where they are loaded.

    Raises:
        TargetError: no C++ compiler, or TVM runs on a real CUDA driver already.
    """
    global _driver
    if _driver is not None:
        return
    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
        raise TargetError(
            "TVM runs on this machine's CUDA driver already, so that no device can be emulated in "
            "this process; use target cuda, or set LD_LIBRARY_PATH so that libcuda.so.1 isn't found"
        )
    stand_in, runtime = prepare()
    library = ctypes.CDLL(str(stand_in), ctypes.RTLD_GLOBAL)
    library.ttsnn_emulator_set.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    library.ttsnn_emulator_fail.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.ttsnn_emulator_report.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
    library.ttsnn_emulator_launches.restype = ctypes.c_uint64
    library.ttsnn_emulator_graph_launches.restype = ctypes.c_uint64
    library.ttsnn_emulator_bytes.restype = ctypes.c_uint64
    ctypes.CDLL(str(runtime))
    _driver = library


def prepare() -> tuple[Path, Path]:
    """Paths of the driver and of TVM's runtime linked to it, both built if need be."""
    ready = [_HERE / "prebuilt" / name for name in LIBRARIES]
    if all(path.exists() for path in ready):
        return ready[0], ready[1]
    return _build_driver(), _relink_runtime()


def _build_driver() -> Path:
    sources = [_HERE / name for name in _SOURCES]
    headers = [_HERE / "internal.h", INCLUDE / "ttsnn_device.h", _HERE / "versions.map"]
    key = key_of(compiler_id(), *(path.read_bytes() for path in (*sources, *headers)))
    arguments = [
        *map(str, sources),
        "-std=gnu++17",
        f"-Wl,-soname,{_NAME}",
        f"-Wl,--version-script={_HERE / 'versions.map'}",
    ]
    return cached(
        f"driver-{key}.so", lambda path: run_cxx(arguments, path, "the emulated CUDA driver")
    )


def _relink_runtime() -> Path:
    """TVM's CUDA runtime with our driver in the place of NVIDIA's two libraries.

    A copy with other names in it, so that libraries of NVIDIA that the process may have loaded
    (PyTorch's) stay out of it.
    """
    source = runtime_library()
    data = source.read_bytes()

    def make(path: Path) -> None:
        path.write_bytes(rename_needed(data, {"libcudart.so.13": _NAME, "libcuda.so.1": _NAME}))

    return cached(f"runtime-{key_of(data, _NAME)}.so", make)


def runtime_library() -> Path:
    """The CUDA runtime in TVM's wheel.

    Raises:
        TargetError: this TVM has none.
    """
    spec = importlib.util.find_spec("tvm")
    assert spec is not None
    path = Path(str(spec.origin)).parent / "lib" / _RUNTIME
    if not path.exists():
        raise TargetError(f"this TVM ({tvm.__version__}) has no CUDA runtime: {path} is missing")
    return path
