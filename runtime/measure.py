"""Fair time and memory measurements of callables in one process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Pairs", "peak_mb", "time_pairs"]

_MIN_BLOCK_S = 0.01
_MAX_PAIRS = 200
_PAUSE_S = 0.01


@dataclass(frozen=True)
class Pairs:
    """Interleaved measurements of two callables.

    Attributes:
        ours_ms, peer_ms: one entry a pair, time of one call in ms.
    """

    ours_ms: tuple[float, ...]
    peer_ms: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Peer / ours of each pair."""
        return [p / o for o, p in zip(self.ours_ms, self.peer_ms)]

    @property
    def ratio(self) -> float:
        """Median of the pairs' ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the pairs' ratios."""
        ratios = sorted(self.ratios)
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        q = statistics.quantiles(ratios, n=4, method="inclusive")
        return q[0], q[2]


def time_pairs(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    seconds: float = 2.0,
    repeats: int | None = None,
) -> Pairs:
    """Measure two callables in turn, so that both see the same machine.

    A pair is a block of each; who comes first alternates. A block is one call that is not
    measured (the other one has just filled the caches), then as many as take 10 ms, averaged.
    Before each block the machine rests for 10 ms, so that the other's idle workers sleep.

    Args:
        seconds: for all pairs together; at least 3 pairs are made.
        repeats: exact number of pairs instead.
    """
    counts = [_calls_per_block(ours), _calls_per_block(peer)]
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    with _no_garbage_collection():
        while True:
            done = len(times[0])
            if done >= (repeats if repeats is not None else _MAX_PAIRS):
                break
            if repeats is None and done >= 3 and time.perf_counter() > end:
                break
            for which in (0, 1) if done % 2 == 0 else (1, 0):
                times[which].append(_block((ours, peer)[which], counts[which]))
    return Pairs(tuple(times[0]), tuple(times[1]))


def _calls_per_block(call: Callable[[], object]) -> int:
    call()
    start = time.perf_counter()
    call()
    return max(1, round(_MIN_BLOCK_S / max(time.perf_counter() - start, 1e-6)))


def _block(call: Callable[[], object], count: int) -> float:
    """Milliseconds of one call."""
    time.sleep(_PAUSE_S)
    call()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) * 1e3 / count


@contextlib.contextmanager
def _no_garbage_collection():
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def peak_mb(call: Callable[[], object], *, warm: bool = True) -> float | None:
    """How far one call raises this process' resident memory, in MB (10⁶ bytes).

    Before it, memory that allocators keep for later is given back to the system (TVM's pools,
    the C library's heap), and Linux' high-water mark is reset (``/proc/self/clear_refs``). So
    this is what a call needs beside the loaded network: activations and work space. Weights do
    not count. The call runs in a thread of its own, since work space may be kept by thread.

    Args:
        warm: call once before, so that code that is loaded at the first call does not count.
            Not for allocators that never give back (ONNX Runtime's arena): there the first call
            is the one that shows what is needed.

    Returns:
        None where the system cannot say it.
    """
    if warm:
        call()
    trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kb("VmRSS")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(call).result()
        return max(0.0, (_status_kb("VmHWM") - before) * 1024 / 1e6)
    except (OSError, ValueError):
        return None


def trim() -> None:
    """Give unused memory back to the system."""
    gc.collect()
    with contextlib.suppress(Exception):
        import tvm_ffi

        tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status_kb(field: str) -> int:
    text = Path(f"/proc/{os.getpid()}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise ValueError(field)
    return int(found.group(1))
