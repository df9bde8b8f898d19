"""Kernels and the functions that call them to an executable; the machine code on several threads.

TVM's passes, LLVM and NVIDIA's compiler take a module function by function on one thread. Kernels
do not call each other, so the module is cut into parts that are compiled side by side, each to a
library of its own, with its own image for the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tvm
from tvm import relax, tirx

__all__ = ["machine_code"]


def machine_code(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    pipeline: str,
    *,
    parts: int,
    at_least: int = 1,
) -> relax.VMExecutable:
    """Executable of a module after ``build_passes``: kernels, and functions that call them.

    Args:
        mod: the module.
        target: what for.
        pipeline: name of the passes for kernels.
        parts: at most so many, whatever the number of threads, which would otherwise show in the
            file.
        at_least: kernels of a part, on average.
    """
    kernels = [(g, f) for g, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]
    context = tvm.transform.PassContext.current()

    def compile_part(part: Sequence[tuple[tvm.ir.GlobalVar, tirx.PrimFunc]]) -> Any:
        return tirx.build(tvm.IRModule(dict(part)), target, pipeline=pipeline)

    def compile_on_thread(part: Sequence[tuple[tvm.ir.GlobalVar, tirx.PrimFunc]]) -> Any:
        with tvm.transform.PassContext(opt_level=context.opt_level, config=dict(context.config)):
            return compile_part(part)

    # instruments want to see every pass on one thread; else parts are alike, since kernels of one
    # kind lie side by side and take about the same time
    count = 1 if context.instruments else max(1, min(parts, len(kernels) // at_least))
    cut = [part for i in range(count) if (part := kernels[i::count])]
    if len(cut) > 1:
        with ThreadPoolExecutor(min(parts, os.cpu_count() or 1)) as pool:
            libraries = [*pool.map(compile_on_thread, cut)]
    else:
        libraries = [*map(compile_part, cut)]
    for other in libraries[1:]:
        libraries[0].import_module(other)
    builder = relax.ExecBuilder()
    tvm.get_global_func("relax.VMCodeGen")(builder, mod)
    constants = dict((mod.attrs or {}).get("const_name_to_constant", {}))
    link = tvm.get_global_func("relax.VMLink")
    return relax.VMExecutable(
        link(builder, target, libraries[0] if libraries else None, [], constants)
    )
