"""Where CUDA's compilers, headers and libraries lie: a toolkit, or NVIDIA's pip packages."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["find_library", "find_nvcc", "include_folders", "pip_folders"]

_COMMON = (Path("/usr/local/cuda"), Path("/opt/cuda"))


def pip_folders() -> Iterator[Path]:
    """``site-packages/nvidia/cu13`` and the like: each has ``lib`` and ``include``."""
    spec = importlib.util.find_spec("nvidia")
    for base in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from sorted(Path(base).glob("cu[0-9]*"), reverse=True)


def _toolkits() -> Iterator[Path]:
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    yield from _COMMON


def find_nvcc() -> Path | None:
    """nvcc of ``$CUDA_PATH``, ``$CUDA_HOME``, the search path, or a usual place."""
    for folder in _toolkits():
        if folder in _COMMON and shutil.which("nvcc"):
            break
        if (folder / "bin" / "nvcc").is_file():
            return folder / "bin" / "nvcc"
    found = shutil.which("nvcc")
    return Path(found) if found else None


def find_library(name: str) -> Path | None:
    """A library of NVIDIA's, such as ``libnvrtc.so.13``, in a toolkit or a pip package."""
    for folder in [*_toolkits(), *pip_folders()]:
        for part in ("lib64", "lib"):
            if (folder / part / name).exists():
                return folder / part / name
    return None


def include_folders() -> list[Path]:
    """Folders with ``cuda_fp16.h`` and ``cuda/std`` for NVRTC; nvcc knows its own."""
    out = []
    for folder in [*_toolkits(), *pip_folders()]:
        include = folder / "include"
        if include.is_dir() and include not in out:
            out += [include, *([include / "cccl"] if (include / "cccl").is_dir() else [])]
    return out
