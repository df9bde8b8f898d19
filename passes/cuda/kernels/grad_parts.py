"""Sums of a gradient's parts, in a fixed order."""

from __future__ import annotations

from contextlib import nullcontext
from math import ceil

from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_load import width_of
from ttsnn.passes.tir.body import load, splat, vector

__all__ = ["sum_parts"]

THREADS, GROUPS, UNROLLED = 256, 8, 64
"""Threads of a block; groups of them, each of which adds up some parts; loads written out."""


def sum_parts(
    b: CudaBody, parts: int, size: int, source: Var, out: Var, dtype: str, lanes: int
) -> None:
    """One launch: ``out`` [size] ← the sum over the first axis of ``source`` [parts, size].

    A small gradient has few elements and many parts: groups of threads share these.
    """
    vec = width_of(size, lanes)
    groups = min(GROUPS, parts)
    each, vectors, columns = ceil(parts / groups), size // vec, THREADS // GROUPS
    with b.launch(ceil(vectors / columns), columns * groups) as (block, thread):
        shared = b.alloc(columns * groups * vec, dtype, "shared", "shared")
        total = b.alloc(vec, dtype, "total", "local")
        group = b.bind(thread // columns, "group")
        at = b.bind(block * columns + thread % columns, "at")
        here = vector(b.at(0), vec)

        def add(value: Expr) -> None:
            b.store(total, load(total, here) + value, here)

        b.store(total, splat(0.0, dtype, vec), here)
        kind = "unrolled" if each <= UNROLLED else "serial"
        with b.when(at < vectors), b.loop(each, "i", kind) as i:
            part = b.bind(group * each + i, "part")
            with b.when(part < parts) if parts % groups else nullcontext():
                add(load(source, vector((part * vectors + at) * vec, vec)))
        b.store(shared, load(total, here), vector(thread * vec, vec))
        with b.when((group < 1) & (at < vectors)):
            with b.loop(groups - 1, "g", "unrolled") as g:
                add(load(shared, vector(((g + 1) * columns + thread) * vec, vec)))
            b.store(out, load(total, here), vector(at * vec, vec))
