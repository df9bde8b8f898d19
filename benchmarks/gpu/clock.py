"""Times and memory on a GPU."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

BLOCK_MS = 20.0  # of calls between two events
MOST_CALLS = 100


class Clock:
    """Times calls on a GPU between events; on a CPU, for trying the benchmark out, by the clock."""

    def __init__(self, device: str) -> None:
        self.gpu = device == "cuda"

    def wait(self) -> None:
        """Until the GPU has done everything; raises what went wrong there."""
        if self.gpu:
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any], inner: int) -> float:
        """Of one of ``inner`` calls."""
        if not self.gpu:
            begin = time.perf_counter()
            for _ in range(inner):
                call()
            return (time.perf_counter() - begin) * 1e3 / inner
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            call()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / inner

    def first_calls(
        self, make: Callable[[], Callable[[], Any]], own: bool
    ) -> tuple[Callable[[], Any], float]:
        """Make something to call and call it three times.

        Returns:
            It, and the MiB that it took: with ``own`` the most by PyTorch's allocator, else what
            the device has less. 0 on a CPU.
        """
        before = torch.cuda.mem_get_info()[0] if self.gpu else 0
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        call = make()
        for _ in range(3):
            call()
        self.wait()
        if not self.gpu:
            return call, 0.0
        taken = torch.cuda.max_memory_allocated()
        return call, (taken if own else before - torch.cuda.mem_get_info()[0]) / 2**20

    def free(self) -> None:
        """Give memory back that nobody uses."""
        gc.collect()
        with contextlib.suppress(Exception):
            import tvm_ffi

            tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
        if self.gpu:
            torch.cuda.empty_cache()


def times(
    call: Callable[[], Any], clock: Clock, *, repeats: int, seconds: float
) -> dict[str, float]:
    """Median milliseconds of blocks of calls; at least three, ``repeats`` in ``seconds``."""
    end = time.perf_counter() + seconds
    one = clock.milliseconds(call, 1)
    inner = min(MOST_CALLS, max(1, math.ceil(BLOCK_MS / max(one, 1e-3))))
    values: list[float] = []
    while len(values) < repeats and (len(values) < 3 or time.perf_counter() < end):
        values.append(clock.milliseconds(call, inner))
    return {
        "ms": statistics.median(values),
        "spread": max(values) / min(values),
        "blocks": len(values),
        "calls": inner,
    }
