"""Oracle of these tests: PyTorch in eager mode, against Relax's default llvm build."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from ttsnn.frontend import import_model
from ttsnn.program import params_of


def run_program(mod: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs of ``main`` for its inputs, with the program's own parameters."""
    assert relax.analysis.check_well_formed(mod.without_attr("ttsnn.params"))
    vm = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    args = [np.asarray(a, order="C") for a in [*inputs, *params_of(mod).values()]]
    out = vm["main"](*[tvm.runtime.tensor(a) for a in args])
    return [o.numpy() for o in ([out] if hasattr(out, "numpy") else out)]


def _agree(model, *inputs, atol=1e-12, example=None, **options) -> tvm.IRModule:
    """Import ``model``, run it on ``inputs``, compare with PyTorch; returns the program."""
    mod = import_model(model, example=inputs if example is None else example, **options)
    got = run_program(mod, *[x.numpy() for x in inputs])
    was = model.training
    with torch.no_grad():
        want = model.eval()(*inputs)
    model.train(was)
    want = [want] if isinstance(want, torch.Tensor) else list(want)
    assert len(got) == len(want)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.dtype == w.numpy().dtype, f"output {i}"
        np.testing.assert_allclose(g, w.numpy(), rtol=1e-12, atol=atol, err_msg=f"output {i}")
    return mod


@pytest.fixture
def agree():
    return _agree


@pytest.fixture
def run():
    return run_program


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)
