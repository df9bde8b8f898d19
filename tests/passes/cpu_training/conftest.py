"""Compiling single kernels and whole training programs for the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from ttsnn.frontend import import_model
from ttsnn.passes.cpu.any_alignment import AnyAlignment
from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.training import Manifest, build_autograd
from ttsnn.program import params_of
from ttsnn.targets import get_target


def run_kernel(func, *arrays: np.ndarray) -> None:
    """Call a finished kernel; results are written into the last arrays."""
    mod = AnyAlignment()(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    tvm.compile(mod, get_target("cpu").tvm_target)["main"](*tensors)
    for array, tensor in zip(arrays, tensors):
        array[...] = tensor.numpy()


class Program:
    """``forward`` and ``backward`` of a model, lowered and built for a target."""

    def __init__(self, model: torch.nn.Module, x: torch.Tensor, target="cpu", device=None) -> None:
        imported = import_model(model, example=x)
        self.input = imported["main"].params[0].name
        mod = build_autograd(imported, inputs=[self.input])
        self.manifest, self.params = Manifest.of(mod), params_of(mod)
        target = get_target(target)
        self.device = device or tvm.cpu()
        self.lowered = target.lower_training(mod)
        assert relax.analysis.check_well_formed(self.lowered)
        self.kernels = target.kernels(self.lowered)
        self.vm = relax.VirtualMachine(target.build(self.lowered), self.device)

    def call(self, function: str, values: dict) -> dict:
        signature = self.manifest.functions[function]
        args = []
        for s in signature.arguments:
            value = self.params[s.name] if s.role in ("param", "buffer") else None
            value = values[s.role, s.name] if value is None else value
            args.append(tvm.runtime.tensor(np.asarray(value, order="C"), self.device))
        out = self.vm[function](*args)
        return {(s.role, s.name): o.numpy() for s, o in zip(signature.results, out, strict=True)}


def error(a: np.ndarray, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    want = b.detach().numpy()
    assert a.shape == want.shape
    return float(np.abs(a - want).max() / max(np.abs(want).max(), 1e-30))


def check(
    model: torch.nn.Module, x: torch.Tensor, tol: float = 1e-11, target="cpu", device=None
) -> Program:
    """Outputs, gradients of all parameters and of x, and buffers, against autograd."""
    program = Program(model, x, target, device)
    x = x.clone().requires_grad_()
    y = model.train()(x)
    g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    y.backward(g)
    forward = program.call("forward", {("input", program.input): x.detach().numpy()})
    backward = program.call(
        "backward",
        {
            ("input", program.input): x.detach().numpy(),
            ("grad_output", "output"): g.numpy(),
            **{k: v for k, v in forward.items() if k[0] == "saved"},
        },
    )
    assert error(forward["output", "output"], y) <= tol
    for name, p in model.named_parameters():
        assert error(backward["grad", name], p.grad) <= tol, name
    assert error(backward["grad_input", program.input], x.grad) <= tol
    for name, b in model.named_buffers():
        if ("buffer", name) in forward:
            assert error(forward["buffer", name], b) <= tol, name
    return program


@pytest.fixture
def tools():
    return SimpleNamespace(
        check=check, error=error, isa=isa_of(get_target("cpu").tvm_target), run=run_kernel
    )
