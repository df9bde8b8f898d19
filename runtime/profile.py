"""How long each kernel of a compiled network takes."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from ttsnn.runtime.net import Net
from ttsnn.runtime.tensors import as_tensor
from ttsnn.runtime.threads import apply_threads

__all__ = ["KernelTime", "profile"]


@dataclass(frozen=True)
class KernelTime:
    """Time of one symbol of the library in one call of the network.

    Attributes:
        name: the symbol; ``vm.builtin.…`` are the virtual machine's own steps.
        calls: how often one call of the network runs it.
        ms: median over the repeats of the time that all its calls take together.
    """

    name: str
    calls: int
    ms: float


def profile(
    net: Net, inputs: list[Any], *, repeats: int = 10, threads: int | None = None
) -> tuple[list[KernelTime], float]:
    """Time every kernel through the virtual machine's instrument.

    Args:
        net: without state, or its state is taken as initial.
        inputs: its inputs, as for calling it.
        repeats: calls that are measured, after two that are not.
        threads: CPU threads.

    Returns:
        Times in order of first use, and the median time in ms of a whole call *without* the
        instrument (which costs about a microsecond a kernel).
    """
    sizes: dict[str, int] = {}
    tensors = {
        s.name: as_tensor(x, s, sizes, net.manifest.alignment, net.place)
        for s, x in zip(net.inputs, inputs)
    }
    tensors |= net.initial_state(sizes)
    arguments = [tensors[s.name] for s in net.manifest.inputs] + net.parameters
    machine = net.machine()
    call = machine["main"]
    apply_threads(threads or net.threads)

    def timed() -> float:
        start = time.perf_counter()
        call(*arguments)
        net.place.synchronize()
        return (time.perf_counter() - start) * 1e3

    timed()
    timed()
    whole = statistics.median(timed() for _ in range(repeats))

    runs: list[dict[str, list[float]]] = []
    started = 0.0

    def instrument(_func: Any, symbol: str, before: bool, _result: Any, *_args: Any) -> int:
        nonlocal started
        net.place.synchronize()
        now = time.perf_counter()
        if before:
            started = time.perf_counter()
        else:
            runs[-1].setdefault(symbol, []).append(now - started)
        return 0

    machine.set_instrument(instrument)
    for _ in range(repeats):
        runs.append({})
        call(*arguments)
    times = [
        KernelTime(name, len(spans), statistics.median(sum(r[name]) for r in runs) * 1e3)
        for name, spans in runs[0].items()
    ]
    return times, whole
