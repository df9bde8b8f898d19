"""Running training programs, and the PyTorch results that they are held against."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from ttsnn.frontend import import_model
from ttsnn.passes.training import Manifest, build_autograd
from ttsnn.program import params_of

Values = dict[tuple[str, str], np.ndarray]


class Program:
    """A training program, compiled without schedules; calls take and give (role, name) → array."""

    def __init__(self, mod: tvm.IRModule) -> None:
        assert relax.analysis.check_well_formed(mod)
        self.mod = mod
        self.manifest = Manifest.of(mod)
        self.vm = relax.VirtualMachine(
            relax.build(mod.without_attr("ttsnn.params"), "llvm"), tvm.cpu()
        )

    def initial(self) -> Values:
        """The values that the program starts from, under every role that may ask for them."""
        roles = ("param", "buffer", "optimizer")
        return {(r, n): v for n, v in params_of(self.mod).items() for r in roles}

    def __call__(self, function: str, values: Values) -> Values:
        signature = self.manifest.functions[function]
        args = [np.asarray(values[s.role, s.name], order="C") for s in signature.arguments]
        for slot, arg in zip(signature.arguments, args):
            assert (slot.shape, slot.dtype) == (arg.shape, str(arg.dtype)), slot
        out = self.vm[function](*map(tvm.runtime.tensor, args))
        assert len(out) == len(signature.results)
        return {(s.role, s.name): o.numpy() for s, o in zip(signature.results, out)}


def vjp(program: Program, values: Values, grad_output: np.ndarray) -> tuple[Values, Values]:
    """Results of forward, and gradients of backward."""
    values = {**program.initial(), **values}
    results = program("forward", values)
    saved = {k: v for k, v in results.items() if k[0] == "saved"}
    grads = program("backward", {**values, **saved, ("grad_output", "output"): grad_output})
    return results, grads


def error(a: np.ndarray, b: torch.Tensor) -> float:
    """Norm of the difference relative to the norm."""
    want = b.detach().numpy()
    assert a.shape == want.shape
    return float(np.linalg.norm(a - want) / max(np.linalg.norm(want), 1e-30))


def check_vjp(model: torch.nn.Module, x: torch.Tensor, tol: float = 1e-12, **options) -> None:
    """Gradients of all parameters and of x, and the outputs, against autograd in train mode."""
    imported = import_model(model, example=x)
    name = imported["main"].params[0].name
    program = Program(build_autograd(imported, inputs=[name], **options))
    x = x.clone().requires_grad_()
    y = model.train()(x)
    g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    y.backward(g)
    results, grads = vjp(program, {("input", name): x.detach().numpy()}, g.numpy())
    assert error(results["output", "output"], y) <= tol
    want = {("grad", n): p.grad for n, p in model.named_parameters()}
    want["grad_input", name] = x.grad
    assert set(grads) == set(want)
    for key, w in want.items():
        assert error(grads[key], w) <= tol, key


@pytest.fixture
def tools():
    return SimpleNamespace(Program=Program, vjp=vjp, error=error, check_vjp=check_vjp)
