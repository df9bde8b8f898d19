"""Linear layers on flattened images, behind pools, against PyTorch."""

from __future__ import annotations

import copy
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.container import pack, unpack
from ttsnn.accel_target.isa import Flag, Op
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.sim.verify import verify_order
from ttsnn.accel_target.simulate import simulate
from ttsnn.accel_target.target import inference_passes
from ttsnn.models.vgg import SpikingVGG
from ttsnn.passes.training import SGD, CrossEntropy, Manifest, build_train_step
from ttsnn.program import params_of
from ttsnn.runtime.training.network import Network, network_of

T, N = 3, 2


def _vgg(pool: str, size: tuple[int, int]) -> tuple[Network, torch.Tensor]:
    """Two convolutions with pools, an image of more than one pixel flattened, two matrices."""
    torch.manual_seed(0)
    net = SpikingVGG(
        (6, "M", 8, "M"), (2, *size), 4, T, static_input=False, hidden=(10,), pool=pool
    ).double()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.bias, 0.3, 0.1)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
    x = torch.randn(T, N, 2, *size, dtype=torch.float64)
    return network_of(net, x, dtype="float64"), x


def _products(program: Program, layer: str, role: str) -> np.ndarray:
    """Instructions of a layer that are products."""
    tags = [k for k, t in enumerate(program.tags) if t.layer == layer and t.role == role]
    table = program.instructions
    return table[np.isin(table["tag"], tags) & np.isin(table["op"], (Op.GEMM, Op.WGRAD))]


CASES = [
    ("sata", "max", (12, 8), 1),
    ("sata", "max", (13, 10), 96),
    ("ttsnn4", "max", (12, 8), 1),
    ("sata", "avg", (12, 8), 96),
]


@pytest.mark.parametrize(("arch", "pool", "size", "share"), CASES)
def test_inference_is_that_of_pytorch(
    networks: ModuleType, arch: str, pool: str, size: tuple[int, int], share: int
) -> None:
    network, x = _vgg(pool, size)
    mod = network.program(x)
    for step in inference_passes():
        mod = step(mod)
    machine = networks.small(load_architecture(arch), share)
    program = unpack(pack(compile_program(mod, machine)))
    verify_order(program, machine)
    values = {mod["main"].params[0].name: x.numpy(), **params_of(mod)}
    result = simulate(program, machine, values=values, dtype="float64")
    with torch.no_grad():
        want = network.module.eval()(x).numpy()
    (got,) = result.outputs.values()
    assert np.abs(got - want).max() <= 1e-12 * np.abs(want).max()
    assert all(0 < d < 1 for d in result.density.values())
    # a maximum of spikes is one, and a matrix accumulates them
    binary = _products(program, "classifier.0.linear", "linear")["flags"] & Flag.BINARY
    assert binary.size
    assert (binary != 0).all() == (pool == "max")


@pytest.mark.parametrize(("arch", "pool", "size", "share"), CASES)
def test_a_training_step_is_that_of_pytorch(
    networks: ModuleType, arch: str, pool: str, size: tuple[int, int], share: int
) -> None:
    """All new weights, running statistics and the loss."""
    network, x = _vgg(pool, size)
    label = torch.tensor([3, 1])
    mod = build_train_step(network.program(x), CrossEntropy(), SGD(momentum=0.9), hoist=False)
    machine = networks.small(load_architecture(arch), share)
    program = compile_program(mod, machine)
    verify_order(program, machine)
    values = {
        mod["main"].params[0].name: x.numpy(),
        "labels": label.numpy(),
        "lr": np.float64(0.1),
        **params_of(mod),
    }
    result = simulate(program, machine, values=values, dtype="float64")
    assert all(0 < d < 1 for d in result.density.values())
    module = copy.deepcopy(network.module).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    loss = F.cross_entropy(module(x), label)
    loss.backward()
    optimizer.step()
    want = {k: v.numpy() for k, v in module.state_dict().items()}
    slots = Manifest.of(mod).functions["main"].results
    seen = set()
    for name, got in result.outputs.items():
        slot = slots[int(name.partition(":")[0])]
        if slot.role in ("param", "buffer"):
            seen.add(slot.name)
            scale = max(np.abs(want[slot.name]).max(), 1e-12)
            assert np.abs(got - want[slot.name]).max() <= 1e-11 * scale, slot.name
        elif slot.role == "loss":
            assert float(got) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert seen == {n for n in want if not n.endswith("num_batches_tracked")}
