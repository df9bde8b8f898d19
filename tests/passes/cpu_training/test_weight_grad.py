"""The weight-gradient kernel against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from ttsnn.passes.cpu.kernels.weight_grad import weight_grad
from ttsnn.passes.layers.config import Stage

POINT = ((0, 0),)
CROSS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
SQUARE = tuple((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1))
FAR = ((-3, 2), (4, -5), (0, 1))

CASES = {
    "cross": (Stage(CROSS, (7, 5), (7, 5), 3, 5), 3, 4),
    "square strided, odd channels": (Stage(SQUARE, (7, 6), (4, 3), 7, 21, (2, 2)), 5, 4),
    "point, small image": (Stage(POINT, (4, 4), (4, 4), 24, 37), 9, 3),
    "point strided": (Stage(POINT, (5, 5), (3, 3), 13, 70, (2, 2)), 1, 4),
    "one pixel": (Stage(SQUARE, (1, 1), (1, 1), 24, 37), 3, 4),
    "taps far outside": (Stage(FAR, (4, 6), (5, 4), 2, 9, (1, 2)), 4, 2),
    "several strips": (Stage(CROSS, (40, 17), (40, 17), 8, 16), 2, 2),
    "many panels": (Stage(POINT, (2, 3), (2, 3), 11, 190), 40, 4),
    "one unit": (Stage(CROSS, (6, 6), (6, 6), 8, 8), 2, 1),
}


def oracle(stage: Stage, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    out = np.zeros((len(stage.taps), stage.in_channels, stage.out_channels))
    for k, (dh, dw) in enumerate(stage.taps):
        for h in range(stage.out_size[0]):
            for w in range(stage.out_size[1]):
                r, c = h * stage.strides[0] + dh, w * stage.strides[1] + dw
                if 0 <= r < stage.in_size[0] and 0 <= c < stage.in_size[1]:
                    out[k] += x[0, :, r, c].T @ dy[0, :, h, w]
    return out


def operands(stage: Stage, images: int, dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, images, *stage.in_size, stage.in_channels))
    dy = rng.standard_normal((1, images, *stage.out_size, stage.out_channels))
    dw = np.full((len(stage.taps), stage.in_channels, stage.out_channels), np.nan)
    return [a.astype(dtype) for a in (x, dy, dw)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_weight_grad(tools, name, dtype):
    stage, images, units = CASES[name]
    x, dy, dw = operands(stage, images, dtype)
    tools.run(weight_grad(stage, images, dtype, tools.isa, units), x, dy, dw)
    want = oracle(stage, x.astype("float64"), dy.astype("float64"))
    tol = 1e-13 if dtype == "float64" else 1e-5
    assert np.abs(dw - want).max() <= tol * np.abs(want).max()


def test_some_input_channels(tools):
    stage, images, units = CASES["several strips"]
    x, dy, dw = operands(stage, images, "float64")
    dw = np.ascontiguousarray(dw[:, :5])
    tools.run(weight_grad(stage, images, "float64", tools.isa, units, 5), x, dy, dw)
    np.testing.assert_allclose(dw, oracle(stage, x, dy)[:, :5], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["cross", "square strided, odd channels", "several strips"])
def test_spikes_as_bytes(tools, name):
    stage, images, units = CASES[name]
    x, dy, dw = operands(stage, images, "float32")
    spikes = (x > 0.5).astype("uint8")
    kernel = weight_grad(stage, images, "float32", tools.isa, units, x_dtype="uint8")
    tools.run(kernel, spikes, dy, dw)
    again = np.empty_like(dw)
    tools.run(
        weight_grad(stage, images, "float32", tools.isa, units), spikes.astype("float32"), dy, again
    )
    np.testing.assert_array_equal(dw, again)


def test_same_bits_every_time(tools):
    stage = Stage(CROSS, (16, 16), (16, 16), 8, 24)
    x, dy, dw = operands(stage, 32, "float32")
    kernel = weight_grad(stage, 32, "float32", tools.isa, 4)
    tools.run(kernel, x, dy, dw)
    for _ in range(3):
        again = np.empty_like(dw)
        tools.run(kernel, x, dy, again)
        np.testing.assert_array_equal(again, dw)
