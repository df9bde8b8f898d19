"""The machine's peak: fused multiply-adds from registers to registers, through TVM.

    python benchmarks/peak.py --threads 1 --threads 2

Each thread runs a loop over independent sums, as many vectors as hide the latency and fit the
registers, with nothing in memory. It is what a kernel could reach at the clock that the machine
has *now*, so run it beside the figures that are divided by it. With two threads it is also the
control that says whether the second core is there at all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import numpy as np
import tvm

from ttsnn.passes.cpu.isa import Isa, isa_of
from ttsnn.passes.tir.body import Body, load, vector
from ttsnn.runtime.threads import apply_threads, prepare, threads
from ttsnn.targets import get_target

STEPS = 200_000
"""Steps of the loop in one call: about 1 ms."""


def _kernel(isa: Isa, dtype: str, workers: int) -> tuple[tvm.tirx.PrimFunc, int]:
    """The function and the floating-point operations of one call of it."""
    lanes, sums = isa.lanes(dtype), isa.registers - 4
    b = Body()
    size = workers * (sums + 2) * lanes
    data = tvm.tirx.decl_buffer((size,), dtype, "data")
    with b.loop(workers, "worker", "parallel") as worker:
        at = worker * ((sums + 2) * lanes)
        a = b.bind(load(data, vector(at, lanes)), "a")
        c = b.bind(load(data, vector(at + lanes, lanes)), "c")
        acc = b.alloc(sums * lanes, dtype, "acc", scope="local")
        with b.loop(sums, "i", "unrolled") as i:
            b.store(acc, load(data, vector(at + (i + 2) * lanes, lanes)), vector(i * lanes, lanes))
        with b.loop(STEPS, "step"), b.loop(sums, "i", "unrolled") as i:
            here = vector(i * lanes, lanes)
            b.store(acc, load(acc, here) * a + c, here)
        with b.loop(sums, "i", "unrolled") as i:
            b.store(data, load(acc, vector(i * lanes, lanes)), vector(at + (i + 2) * lanes, lanes))
    return b.function([data], "peak", {}), 2 * workers * STEPS * sums * lanes


def peak_gflops(workers: int = 1, dtype: str = "float32", *, seconds: float = 0.5) -> float:
    """Median GFLOP/s of this machine's vector units over calls of about a millisecond.

    Args:
        workers: threads, each with a loop of its own.
        dtype: ``"float32"`` or ``"float64"``.
        seconds: how long to measure, after a third as long that is not.
    """
    target = get_target("cpu").tvm_target
    isa = isa_of(target)
    func, flops = _kernel(isa, dtype, workers)
    call = tvm.compile(tvm.IRModule({"peak": func}), target).jit()["peak"]
    # a < 1, so that the sums converge to a normal number
    data = tvm.runtime.tensor(np.full(int(func.params[0].shape[0]), 0.5, dtype))
    with threads(workers):
        apply_threads(workers)
        times: list[float] = []
        begin = time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds * 4 / 3:
            call(data)
            if now > begin + seconds / 3:
                times.append(time.perf_counter() - now)
    return flops / statistics.median(times) * 1e-9


def main(argv: list[str] | None = None) -> int:
    """Print the peak for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, action="append", help="may be given again")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args(argv)
    prepare()
    for count in args.threads or [1]:
        peak = peak_gflops(count, args.dtype, seconds=args.seconds)
        row = {"threads": count, "dtype": args.dtype, "gflops": round(peak, 1)}
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
