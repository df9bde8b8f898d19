"""Running a compiled program inside TVM's virtual machine: the function ``ttsnn.accel.run``.

Importing this module registers it. It needs NumPy and TVM's runtime alone.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import tvm_ffi

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.container import unpack
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.sim.check import check_program
from ttsnn.accel_target.sim.execute import execute

__all__ = ["RUN", "register"]

RUN = "ttsnn.accel.run"
"""``run(program, architecture, inputs…, outputs…)``; the first two are bytes (uint8 tensors)."""


@functools.lru_cache(maxsize=16)
def _load(program: bytes, arch: bytes) -> tuple[Program, Architecture]:
    machine = Architecture.from_json(json.loads(arch))
    loaded = unpack(program)
    check_program(loaded, machine)
    return loaded, machine


def _run(*tensors: Any) -> None:
    arrays = [np.from_dlpack(t) for t in tensors]
    program, arch = _load(arrays[0].tobytes(), arrays[1].tobytes())
    ins = program.named("input")
    # the network's results carry their number in front of their name
    outs = sorted(program.named("output"), key=lambda t: int(t.name.partition(":")[0]))
    given = arrays[2 : 2 + len(ins)]
    dtype = str(next((a.dtype for a in given if a.dtype.kind == "f"), np.dtype("float32")))
    values = {t.name: a for t, a in zip(ins, given, strict=True)}
    results, _ = execute(program, arch, values, dtype=dtype)
    for t, out in zip(outs, arrays[2 + len(ins) :], strict=True):
        np.copyto(out, results[t.name].reshape(out.shape), casting="unsafe")


@functools.cache
def register() -> None:
    """Make the function known to TVM; may be called again."""
    tvm_ffi.register_global_func(RUN, _run, override=True)
