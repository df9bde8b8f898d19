"""NVRTC and nvFatbin, CUDA's compiler and binder as libraries; they need no driver."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from ttsnn.cuda.toolkit import find_library, include_folders
from ttsnn.errors import TargetError

__all__ = ["archs", "compile_program", "fat_binary", "version"]


@functools.cache
def _library(name: str) -> Any:
    path = find_library(name)
    try:
        if path is not None:  # which it opens by name: loaded already, it is found
            for other in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(other))
        return ctypes.CDLL(str(path)) if path is not None else None
    except OSError:
        return None


def _nvrtc() -> Any:
    return _library("libnvrtc.so.13") or _library("libnvrtc.so.12")


def version() -> str | None:
    """NVRTC's version; None where it is missing."""
    library = _nvrtc()
    if library is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def archs() -> tuple[str, ...]:
    """Architectures that NVRTC generates code for."""
    library = _nvrtc()
    count = ctypes.c_int()
    _check(library.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    numbers = (ctypes.c_int * count.value)()
    _check(library.nvrtcGetSupportedArchs(numbers), "nvrtcGetSupportedArchs")
    return tuple(f"sm_{n}" for n in numbers)


def compile_program(source: str, arch: str, flags: Sequence[str], kind: str) -> tuple[bytes, str]:
    """Compile for one architecture.

    Args:
        source: CUDA.
        arch: ``sm_90`` for a cubin, ``compute_90`` for PTX.
        flags: the compiler's.
        kind: ``"cubin"`` or ``"ptx"``.

    Returns:
        The code and the compiler's log.

    Raises:
        TargetError: it refuses the source.
    """
    library = _nvrtc()
    program = ctypes.c_void_p()
    _check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
        ),
        "nvrtcCreateProgram",
    )
    try:
        options = [f"-arch={arch}", "--ptxas-options=-v", "-w", *flags]
        options += [f"-I{folder}" for folder in include_folders()]
        array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        status = library.nvrtcCompileProgram(program, len(options), array)
        log = _get(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if status != 0:
            lines = [line.strip() for line in log.splitlines() if "error" in line]
            raise TargetError(f"target cuda: NVRTC fails: {'; '.join(lines[:3]) or log[-300:]}")
        return _get(library, program, "CUBIN" if kind == "cubin" else "PTX"), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def fat_binary(images: Sequence[tuple[str, str, bytes]]) -> bytes:
    """Bind code of several architectures, ``(arch, "cubin" or "ptx", code)``, into one image.

    Raises:
        TargetError: nvFatbin is missing or refuses.
    """
    library = _library("libnvfatbin.so.13") or _library("libnvfatbin.so.12")
    if library is None:
        if len(images) == 1 and images[0][1] == "cubin":
            return images[0][2]
        raise TargetError("target cuda: nvFatbin is missing: pip install 'ttsnn[cuda]'")
    handle = ctypes.c_void_p()
    options = (ctypes.c_char_p * 1)(b"-64")
    _check(library.nvFatbinCreate(ctypes.byref(handle), options, ctypes.c_size_t(1)), "nvFatbin")
    try:
        for arch, kind, code in images:
            number = arch.partition("_")[2].encode()
            size = ctypes.c_size_t(len(code))
            if kind == "cubin":
                status = library.nvFatbinAddCubin(handle, code, size, number, b"kernels")
            else:
                status = library.nvFatbinAddPTX(handle, code, size, number, b"kernels", None)
            _check(status, f"nvFatbin, {arch}")
        size = ctypes.c_size_t()
        _check(library.nvFatbinSize(handle, ctypes.byref(size)), "nvFatbinSize")
        out = ctypes.create_string_buffer(size.value)
        _check(library.nvFatbinGet(handle, out), "nvFatbinGet")
        return out.raw
    finally:
        library.nvFatbinDestroy(ctypes.byref(handle))


def _get(library: Any, program: Any, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    out = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, out), what)
    return out.raw


def _check(status: int, what: str) -> None:
    if status != 0:
        raise TargetError(f"target cuda: {what} fails with status {status}")
