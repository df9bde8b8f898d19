"""Build, differentiate and run small Relax functions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax


def _flatten(value: Any) -> list[np.ndarray]:
    if isinstance(value, tvm.runtime.Tensor):
        return [value.numpy()]
    return [a for v in value for a in _flatten(v)]


class Harness:
    """Relax functions of named arrays."""

    @staticmethod
    def build(
        body: Callable[..., relax.Expr],
        arrays: dict[str, np.ndarray],
        batch: dict[str, int] | None = None,
        name: str = "main",
        mod: tvm.IRModule | None = None,
    ) -> tvm.IRModule:
        """``main(arrays…) = body(variables…)``; ``batch`` names the axis that is symbolic."""
        n = tvm.tirx.Var("n", "int64")
        params = []
        for key, a in arrays.items():
            shape = list(a.shape)
            if batch and key in batch:
                shape[batch[key]] = n
            params.append(relax.Var(key, relax.TensorType(shape, str(a.dtype))))
        bb = relax.BlockBuilder(mod)
        with bb.function(name, params):
            with bb.dataflow():
                out = bb.emit_output(body(bb, *params))
            bb.emit_func_output(out)
        mod = bb.get()
        assert relax.analysis.check_well_formed(mod)
        return mod

    @staticmethod
    def run(
        mod: tvm.IRModule, arrays: Sequence[np.ndarray], name: str = "main"
    ) -> list[np.ndarray]:
        """Compile for the CPU and call; tuples are flattened."""
        target = tvm.target.Target({"kind": "llvm", "opt-level": 0})  # quick to compile
        vm = relax.VirtualMachine(tvm.compile(mod, target), tvm.cpu())
        return _flatten(vm[name](*[tvm.runtime.tensor(a) for a in arrays]))

    @classmethod
    def eval(
        cls,
        body: Callable[..., relax.Expr],
        arrays: dict[str, np.ndarray],
        batch: dict[str, int] | None = None,
    ) -> list[np.ndarray]:
        return cls.run(cls.build(body, arrays, batch), list(arrays.values()))

    @classmethod
    def grads(
        cls, body: Callable[..., relax.Expr], arrays: dict[str, np.ndarray], wrt: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Gradients of the scalar that ``body`` returns, through relax.transform.Gradient."""
        mod = cls.build(body, arrays)
        require = [p for p in mod["main"].params if p.name in wrt]
        mod = relax.transform.Gradient("main", require_grads=require)(mod)
        assert relax.analysis.check_well_formed(mod)
        del mod["main"]
        _, *grads = cls.run(mod, list(arrays.values()), "main_adjoint")
        return dict(zip([p.name for p in require], grads, strict=True))


@pytest.fixture
def harness() -> type[Harness]:
    return Harness
