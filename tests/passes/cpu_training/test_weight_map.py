"""Packing of weights in a training step, against the packing of inference in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from ttsnn.passes.cpu.kernels.pack import pack_weight
from ttsnn.passes.cpu.kernels.weight_map import packed_weight
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.training_kernels.weight_map import WeightMap

LANES, VECTORS = 8, 4


def square(cin: int, cout: int) -> WeightMap:
    return WeightMap(((cout, cin, 3, 3),), tuple(((0, k),) for k in range(9)))


@pytest.mark.parametrize("cout", [3, 32, 61, 96, 200])
@pytest.mark.parametrize("transposed", [False, True])
def test_packs_as_inference_does(tools, cout: int, transposed: bool) -> None:
    rng = np.random.default_rng(cout)
    cin, order = 5, (0, 4, 7, 1)
    map_ = square(cin, cout)
    channels = (cout, cin) if transposed else (cin, cout)
    func = packed_weight(map_, channels, "float64", (LANES, VECTORS), transposed, order)
    weight = rng.standard_normal((cout, cin, 3, 3))
    taps = weight.reshape(cout, cin, 9)[:, :, list(order)].transpose(2, 1, 0)
    taps = taps.transpose(0, 2, 1) if transposed else taps
    stage = Stage(tuple((0, k) for k in range(4)), (9, 9), (9, 9), *channels)
    expected = pack_weight(stage, np.ascontiguousarray(taps), LANES, VECTORS)
    ours = np.full(expected.shape, np.nan)
    tools.run(func, weight, ours)
    np.testing.assert_array_equal(ours, expected)


def test_code_does_not_grow_with_the_channels() -> None:
    small, large = (
        packed_weight(square(c, c), (c, c), "float64", (LANES, VECTORS), False) for c in (64, 1024)
    )
    assert small.script().count("packed[") == large.script().count("packed[") == 9
