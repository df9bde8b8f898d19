"""CUDA source launched through the emulated driver's own functions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from ttsnn.cuda import emulator
from ttsnn.cuda.emulator.stand_in import driver


class _Config(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    ]


def launch(
    source: str,
    arrays: Sequence[np.ndarray],
    *,
    grid: tuple[int, int, int] = (1, 1, 1),
    block: tuple[int, int, int] = (1, 1, 1),
    shared: int = 0,
    fresh: Sequence[int] = (),
    numbers: Sequence[int] = (),
) -> tuple[int, list[np.ndarray]]:
    """Run the only kernel ``k`` of ``source`` on copies of ``arrays``, then ``numbers``.

    Args:
        source: the kernel's parameters are pointers, then ints.
        arrays: contents of the pointers.
        grid, block, shared: the launch.
        fresh: indices of arrays that are allocated, but not written before.
        numbers: further arguments.

    Returns:
        CUDA's status and the arrays afterwards.
    """
    emulator.enable()
    lib = driver()
    image = emulator.compile_source(source)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert lib.cuModuleLoadData(ctypes.byref(module), image) == 0, emulator.take_report()
    assert lib.cuModuleGetFunction(ctypes.byref(function), module, b"k") == 0
    pointers = []
    for i, array in enumerate(arrays):
        pointer = ctypes.c_void_p()
        assert lib.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(array.nbytes)) == 0
        if i not in fresh:
            ctypes.memmove(pointer, array.ctypes.data, array.nbytes)
        pointers.append(pointer)
    values = [*pointers, *(ctypes.c_int(n) for n in numbers)]
    parameters = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    config = _Config((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), shared)
    status = lib.cuLaunchKernelEx(ctypes.byref(config), function, parameters, None)
    out = []
    for pointer, array in zip(pointers, arrays):
        result = np.empty_like(array)
        ctypes.memmove(result.ctypes.data, pointer, array.nbytes)
        out.append(result)
        lib.cudaFree(pointer)
    lib.cuModuleUnload(module)
    return status, out
