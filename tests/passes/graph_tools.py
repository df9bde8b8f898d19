"""Run programs and lowered modules; compare graphs."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from ttsnn.program import PARAMS, params_of, with_params

__all__ = ["assert_same_graph", "op_names", "program_of", "run"]


def program_of(script: tvm.IRModule, **params: np.ndarray) -> tvm.IRModule:
    """A module written in TVMScript with the values of its parameters; ``__`` stands for a dot."""
    return with_params(script, {k.replace("__", "."): v for k, v in params.items()})


def run(mod: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """Results of a program by Relax's default build: reference legalisation, no schedule."""
    assert relax.analysis.check_well_formed(mod)
    vm = relax.VirtualMachine(tvm.compile(mod.without_attr(PARAMS), "llvm"), tvm.cpu())
    args = [np.ascontiguousarray(a) for a in [*inputs, *params_of(mod).values()]]
    out = vm["main"](*[tvm.runtime.tensor(a) for a in args])
    return [o.numpy() for o in ([out] if hasattr(out, "numpy") else out)]


def assert_same_graph(got: tvm.IRModule, expected: tvm.IRModule) -> None:
    """Equal but for names and parameters' values."""
    assert relax.analysis.check_well_formed(got)
    got = got.without_attr(PARAMS)
    tvm.ir.assert_structural_equal(got, expected, map_free_vars=True)


def op_names(mod: tvm.IRModule) -> list[str]:
    """Operators of ``main`` in order, without the prefix."""
    values = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    return [
        v.op.name.removeprefix("relax.")
        for v in values
        if isinstance(v, relax.Call) and isinstance(v.op, tvm.ir.Op)
    ]
