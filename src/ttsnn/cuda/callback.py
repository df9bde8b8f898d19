"""Which compiler TVM's CUDA code generator calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import tvm_ffi

__all__ = ["compile_with"]

_NAME = "tvm_callback_cuda_compile"


@contextlib.contextmanager
def compile_with(compiler: Callable[[str], bytes]) -> Iterator[None]:
    """Let TVM compile CUDA source with ``compiler(source) -> image`` for a while."""
    before = tvm_ffi.get_global_func(_NAME, allow_missing=True)
    tvm_ffi.register_global_func(_NAME, lambda source: compiler(str(source)), override=True)
    try:
        yield
    finally:
        if before is not None:
            tvm_ffi.register_global_func(_NAME, before, override=True)
        else:
            tvm_ffi.registry.remove_global_func(_NAME)
