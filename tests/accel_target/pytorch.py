"""Networks of PyTorch on the accelerator, and what PyTorch computes itself."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.container import pack, unpack
from ttsnn.accel_target.events import SimulationResult
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.sim.verify import verify_order
from ttsnn.accel_target.simulate import simulate
from ttsnn.accel_target.target import inference_passes
from ttsnn.passes.training import SGD, CrossEntropy, Manifest, build_train_step
from ttsnn.program import params_of
from ttsnn.runtime.training.network import Network

__all__ = ["check_inference", "check_step"]


def check_inference(
    network: Network, x: torch.Tensor, arch: Architecture, options: Options | None = None
) -> tuple[Program, SimulationResult]:
    """Logits of a float64 network in eval mode, within 1e-12; program and simulation."""
    mod = network.program(x)
    for step in inference_passes():
        mod = step(mod)
    program = unpack(pack(compile_program(mod, arch, options)))
    verify_order(program, arch)
    values = {mod["main"].params[0].name: x.numpy(), **params_of(mod)}
    result = simulate(program, arch, values=values, dtype="float64")
    with torch.no_grad():
        want = network.module.eval()(x).numpy()
    (got,) = result.outputs.values()
    assert np.abs(got - want).max() <= 1e-12 * np.abs(want).max()
    return program, result


def check_step(
    network: Network,
    x: torch.Tensor,
    label: torch.Tensor,
    arch: Architecture,
    options: Options | None = None,
) -> SimulationResult:
    """New parameters, momenta (from random ones), running statistics within 1e-11; the loss."""
    mod = build_train_step(network.program(x), CrossEntropy(), SGD(momentum=0.9), hoist=False)
    program = compile_program(mod, arch, options)
    verify_order(program, arch)
    rng = np.random.default_rng(0)
    values = {
        mod["main"].params[0].name: x.numpy(),
        "labels": label.numpy(),
        "lr": np.float64(0.1),
        **params_of(mod),
    }
    for name in [n for n in values if n.endswith("momentum_buffer")]:
        values[name] = rng.normal(size=values[name].shape) * 0.01
    result = simulate(program, arch, values=values, dtype="float64")
    module = copy.deepcopy(network.module).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for name, p in module.named_parameters():
        momentum = torch.tensor(values[f"{name}.momentum_buffer"])
        optimizer.state[p]["momentum_buffer"] = momentum
    loss = F.cross_entropy(module(x), label)
    loss.backward()
    optimizer.step()
    want = {k: v.numpy() for k, v in module.state_dict().items()}
    want |= {
        f"{name}.momentum_buffer": optimizer.state[p]["momentum_buffer"].numpy()
        for name, p in module.named_parameters()
    }
    slots = Manifest.of(mod).functions["main"].results
    seen = set()
    for name, got in result.outputs.items():
        slot = slots[int(name.partition(":")[0])]
        if slot.role in ("param", "buffer", "optimizer"):
            seen.add(slot.name)
            scale = max(np.abs(want[slot.name]).max(), 1e-12)
            assert np.abs(got - want[slot.name]).max() <= 1e-11 * scale, slot.name
        elif slot.role == "loss":
            assert float(got) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert seen == {n for n in want if not n.endswith("num_batches_tracked")}
    return result
