"""Linear layers on flattened images, behind pools, against PyTorch."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.isa import Flag, Op
from ttsnn.accel_target.program import Program
from ttsnn.models.vgg import SpikingVGG
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
    networks: ModuleType,
    pytorch: ModuleType,
    arch: str,
    pool: str,
    size: tuple[int, int],
    share: int,
) -> None:
    machine = networks.small(load_architecture(arch), share)
    program, result = pytorch.check_inference(*_vgg(pool, size), machine)
    assert all(0 < d < 1 for d in result.density.values())
    # a maximum of spikes is one, and a matrix accumulates them
    binary = _products(program, "classifier.0.linear", "linear")["flags"] & Flag.BINARY
    assert binary.size
    assert (binary != 0).all() == (pool == "max")


@pytest.mark.parametrize(("arch", "pool", "size", "share"), CASES)
def test_a_training_step_is_that_of_pytorch(
    networks: ModuleType,
    pytorch: ModuleType,
    arch: str,
    pool: str,
    size: tuple[int, int],
    share: int,
) -> None:
    """All new weights, momenta, running statistics and the loss."""
    machine = networks.small(load_architecture(arch), share)
    result = pytorch.check_step(*_vgg(pool, size), torch.tensor([3, 1]), machine)
    assert all(0 < d < 1 for d in result.density.values())
