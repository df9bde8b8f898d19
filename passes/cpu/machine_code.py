"""Kernels and the functions that call them to an executable; the machine code on several threads.

TVM's passes and LLVM take a module function by function on one thread. Kernels do not call each
other, so the module is cut into parts that are compiled side by side, each to a library of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tvm
from tvm import relax, tirx

from ttsnn.passes.cpu.lower_kernels import KERNEL_PIPELINE

__all__ = ["machine_code"]

PARTS = 16
"""Parts of a module, whatever the number of threads, which would otherwise show in the file."""


def machine_code(mod: tvm.IRModule, target: tvm.target.Target) -> relax.VMExecutable:
    """Executable of a module after ``build_passes``: kernels, and functions that call them."""
    kernels = [(g, f) for g, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]

    def compile_part(part: Sequence[tuple[tvm.ir.GlobalVar, tirx.PrimFunc]]) -> Any:
        return tirx.build(tvm.IRModule(dict(part)), target, pipeline=KERNEL_PIPELINE)

    # instruments want to see every pass on one thread; else parts are alike, since kernels of one
    # kind lie side by side and take about the same time
    count = 1 if tvm.transform.PassContext.current().instruments else PARTS
    parts = [part for i in range(count) if (part := kernels[i::count])]
    if len(parts) > 1:
        with ThreadPoolExecutor(min(PARTS, os.cpu_count() or 1)) as pool:
            libraries = [*pool.map(compile_part, parts)]
    else:
        libraries = [*map(compile_part, parts)]
    for other in libraries[1:]:
        libraries[0].import_module(other)
    builder = relax.ExecBuilder()
    tvm.get_global_func("relax.VMCodeGen")(builder, mod)
    constants = dict((mod.attrs or {}).get("const_name_to_constant", {}))
    link = tvm.get_global_func("relax.VMLink")
    return relax.VMExecutable(
        link(builder, target, libraries[0] if libraries else None, [], constants)
    )
