"""Whole networks of the zoo on the simulated accelerator, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.simulate import simulate
from ttsnn.accel_target.target import inference_passes
from ttsnn.passes.training import SGD, CrossEntropy, Manifest, build_train_step
from ttsnn.program import params_of
from ttsnn.runtime.training.network import network_of

LR, MOMENTUM = 0.1, 0.9


def _network(name: str, dataset: str, plan: str | None, mode: str):
    torch.manual_seed(0)
    network = network_of(
        name, plan=plan, mode=mode, init="fresh", seed=0, dtype="float64", options=None
    )
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    return network, x


def _torch_step(module: torch.nn.Module, x: torch.Tensor, label: torch.Tensor):
    """Loss, and everything that a step changes, by name."""
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)
    loss = F.cross_entropy(module.train()(x), label)
    loss.backward()
    optimizer.step()
    return float(loss.detach()), {k: v.numpy() for k, v in module.state_dict().items()}


def _check_step(program, arch, manifest, values, loss, want, dtype):
    result = simulate(program, arch, values=values, dtype=dtype)
    slots = manifest.functions["main"].results
    for name, got in result.outputs.items():
        slot = slots[int(name.partition(":")[0])]
        if slot.role == "loss":
            assert abs(float(got) - loss) <= 1e-5 * abs(loss)
        elif slot.role in ("param", "buffer"):
            w = want[slot.name]
            assert np.abs(got - w).max() <= 1e-5 * max(np.abs(w).max(), 1e-12), slot.name
    return result


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ptt", "htt"])
@pytest.mark.parametrize("name", ["sata", "ttsnn4"])
def test_a_training_step_of_ms_resnet18_is_that_of_pytorch(mode, name):
    """All new weights and running statistics, spikes being the same (float64)."""
    network, x = _network("ms_resnet18", "cifar10", "paper", mode)
    label = torch.tensor([3])
    mod = build_train_step(network.program(x), CrossEntropy(), SGD(momentum=MOMENTUM), hoist=False)
    arch = load_architecture(name)
    program = compile_program(mod, arch)
    values = {
        mod["main"].params[0].name: x.numpy(),
        "labels": label.numpy(),
        "lr": np.float64(LR),
        **params_of(mod),
    }
    loss, want = _torch_step(network.module, x, label)
    result = _check_step(program, arch, Manifest.of(mod), values, loss, want, "float64")
    assert min(result.density.values()) > 0
    assert max(result.density.values()) < 1


@pytest.mark.slow
def test_an_inference_of_ms_resnet18_is_that_of_pytorch():
    network, x = _network("ms_resnet18", "cifar10", "paper", "ptt")
    mod = network.program(x)
    for step in inference_passes():
        mod = step(mod)
    arch = load_architecture("ttsnn4")
    values = {mod["main"].params[0].name: x.numpy(), **params_of(mod)}
    result = simulate(compile_program(mod, arch), arch, values=values, dtype="float64")
    with torch.no_grad():
        want = network.module.eval()(x).numpy()
    (got,) = result.outputs.values()
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
