"""The checks of these tests notice a kernel that lacks a barrier."""

from __future__ import annotations

import re

import pytest
import tvm

from ttsnn.cuda import emulator
from ttsnn.errors import DeviceError
from ttsnn.passes.cuda.emulated import EmulatedCudaTarget
from ttsnn.passes.cuda.kernels.grad_tile import GradTile
from ttsnn.passes.layers.config import Stage

from ..cpu_kernels.oracle import CROSS, chain, layer, random_operands  # noqa: TID252
from .emulated import run_layers
from .test_weight_grad import check, gradients, operands


class Careless(EmulatedCudaTarget):
    """Leaves out one of the barriers."""

    left_out = 0
    found = 0

    def device_compiler(self):
        compiler = super().device_compiler()

        def careless(source):
            places = [m.span() for m in re.finditer(r"__syncthreads\(\);", source)]
            self.found = len(places)
            begin, end = places[self.left_out]
            return compiler(source[:begin] + source[end:])

        return careless


@pytest.mark.parametrize("left_out", [0, 1, 2, 3])
def test_a_missing_barrier_is_noticed(left_out):
    """Around the writing of operands to shared memory, and of the parts of a split sum."""
    config = layer(chain((6, 6), (56, 20), (CROSS,)), T=2, lif=None)
    operands = random_operands(config, 2)
    target = Careless({"memory": "exact"})
    target.left_out = left_out
    with pytest.raises(tvm.error.InternalError, match="other results when its threads run in rev"):
        run_layers([(config, operands)], target=target)
    assert target.found == 4
    emulator.take_report()


@pytest.mark.parametrize("left_out", range(9))
def test_a_missing_barrier_of_a_weight_gradient(left_out):
    """Around the operands, around the sums that groups hand over, and before the parts' sum."""
    stage = Stage(CROSS, (6, 6), (6, 6), 12, 12)
    tile = GradTile(5, 12, 12, 4, 4, 4, 5, 3)
    target = Careless({"memory": "exact"})
    target.left_out = left_out
    case = (stage, *operands(stage, 3, "float32"), tile)
    # other bits in another order, or memory that nobody wrote yet
    with pytest.raises((tvm.error.InternalError, DeviceError, AssertionError)):
        check([case], gradients([case], "float32", target=target), 1e-5)
    assert target.found == 9
    emulator.take_report()
