"""A CUDA device emulated on the CPU, for machines without a GPU.

TVM's own CUDA runtime runs over a driver of ours whose kernels are the generated CUDA source,
compiled by the C++ compiler of this machine. So the same kernels, launch configurations, argument
packing, memory plans and CUDA graphs run as on a GPU, slowly, and their mistakes show:

- memory that was never written reads as 0xff bytes, which is a NaN;
- accesses outside an allocation, or behind a shared array, are reported with kernel, block and
  thread;
- the threads of a block run one after another up to the next barrier, in an order that can be
  reversed; ``order="both"`` runs each launch in both orders and reports a kernel whose results
  differ, as they do where a barrier is missing;
- barriers and warp operations that some threads never reach are reported.

What differs from a GPU: floating-point code is compiled as written, without contraction into FMA;
functions such as ``expf`` are the host's; copies and launches end before they return. Tensor
cores (wmma), inline PTX, TMA and asynchronous copies are not emulated.

>>> from ttsnn.cuda import emulator
>>> emulator.enable()
>>> x = tvm.runtime.tensor(array, tvm.cuda(0))
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Iterator
from dataclasses import dataclass

from ttsnn.cuda.emulator.images import compile_source
from ttsnn.cuda.emulator.stand_in import driver, load
from ttsnn.errors import DataError, DeviceError

__all__ = [
    "ORDERS",
    "Report",
    "check",
    "compile_source",
    "enable",
    "enabled",
    "fail",
    "graph_launches",
    "launches",
    "order",
    "take_report",
]

ORDERS = ("forward", "reverse", "both")
_order = "forward"
_enabled = False  # the driver may be loaded for compiling alone, see ttsnn.cuda.runtime


@dataclass(frozen=True)
class Report:
    """The first thing that went wrong on the emulated device.

    Attributes:
        kind: ``"out of bounds"``, ``"race"``, ``"divergence"``, ``"launch"``, ``"arithmetic"``,
            ``"trap"`` or ``"image"``.
        text: for people.
        kernel: its name; empty where it was none.
        block, thread: indices (x, y, z).
        address: of the access, 0 where there is none.
    """

    kind: str
    text: str
    kernel: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    address: int


def enable(
    *,
    order: str | None = None,
    threads: int | None = None,
    memory: int | None = None,
    arch: int | None = None,
) -> None:
    """Make ``tvm.cuda(0)`` the emulated device; once more: change the settings that are given.

    Args:
        order: of the threads of a block and of the blocks: ``"forward"`` (at first),
            ``"reverse"``, or ``"both"``, which runs each launch twice and compares what it wrote
            bit by bit.
        threads: CPU threads that blocks are spread over; 1 at first.
        memory: of the device, bytes; 4 GiB at first.
        arch: its compute capability; 90, which is sm_90, at first.

    Raises:
        TargetError: no C++ compiler, or TVM runs on a real CUDA driver already.
    """
    global _enabled
    load()
    if not _enabled:
        driver().ttsnn_emulator_fail(b"cudaGetDeviceCount", 0, 0)
        _enabled = True
    if order is not None:
        _set_order(order)
    for key, value in (("threads", threads), ("memory", memory), ("arch", arch)):
        if value is not None:
            driver().ttsnn_emulator_set(key.encode(), value)


def enabled() -> bool:
    """Whether TVM's CUDA runtime runs over the emulated driver in this process."""
    return _enabled


def _set_order(name: str) -> None:
    global _order
    if name not in ORDERS:
        raise DataError(f"order of threads {name!r}: use {', '.join(ORDERS)}")
    driver().ttsnn_emulator_set(b"order", ORDERS.index(name))
    _order = name


@contextlib.contextmanager
def order(name: str) -> Iterator[None]:
    """Run the threads of each block in another order for a while, see :func:`enable`."""
    before = _order
    _set_order(name)
    try:
        yield
    finally:
        _set_order(before)


def take_report() -> Report | None:
    """What went wrong first since the last call; None: nothing."""
    room = ctypes.create_string_buffer(4096)
    driver().ttsnn_emulator_report(room, len(room))
    if not room.value:
        return None
    data = json.loads(room.value.decode(errors="replace"))
    return Report(**{**data, "block": tuple(data["block"]), "thread": tuple(data["thread"])})


def check() -> None:
    """Raise what :func:`take_report` says.

    Raises:
        DeviceError: something went wrong.
    """
    report = take_report()
    if report is not None:
        raise DeviceError(f"emulated CUDA device: {report.text}")


def launches() -> int:
    """Kernels that ran so far, those of graphs included."""
    return int(driver().ttsnn_emulator_launches())


def graph_launches() -> int:
    """CUDA graphs that ran so far."""
    return int(driver().ttsnn_emulator_graph_launches())


def fail(function: str, status: int, after: int = 0) -> None:
    """Let a function of CUDA fail, for tests of error messages.

    Args:
        function: as CUDA names it: ``"cudaMalloc"``.
        status: CUDA's number; 0: work again.
        after: calls that succeed before.
    """
    driver().ttsnn_emulator_fail(function.encode(), status, after)
