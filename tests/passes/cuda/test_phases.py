"""Convolutions of operands with zeros between their pixels, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec, Segment, phases
from ttsnn.passes.layers.config import Stage

from ..cpu_kernels.oracle import CROSS, POINT, SQUARE, convolve  # noqa: TID252
from .emulated import run_conv

FAR = ((-3, 2), (0, -4), (1, 1), (5, 0))


def spec_of(taps, apart, small, large, channels):
    stage = Stage(taps, small, large, *channels)
    part = Segment(stage, 0, 1, 1, 0, "float64", apart)
    return ConvSpec(
        (part,), 1, False, 0, "float64", None, False, ("membrane",), "float64", "float64"
    )


@pytest.mark.parametrize(
    ("taps", "apart", "small", "large"),
    [
        (POINT, (2, 2), (3, 4), (6, 7)),
        (CROSS, (2, 2), (3, 4), (5, 8)),
        (SQUARE, (3, 1), (2, 5), (4, 5)),
        (FAR, (2, 3), (4, 3), (7, 9)),
        (CROSS, (3, 2), (1, 2), (1, 3)),
    ],
)
def test_zeros_between_pixels(taps, apart, small, large):
    """Each pixel of the result, also those that no tap reaches."""
    images, channels = 3, (6, 10)
    spec = spec_of(taps, apart, small, large, channels)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, images, *small, channels[0]))
    w = rng.standard_normal((len(taps), *channels))
    found = run_conv(spec, x, w)
    # the zeros are there, as far as taps go beyond the result
    size = [n + max(t[i] for t in taps) for i, n in enumerate(large)]
    wide = np.zeros((images, *(max(s, m * a) for s, m, a in zip(size, small, apart)), channels[0]))
    wide[:, : small[0] * apart[0] : apart[0], : small[1] * apart[1] : apart[1]] = x[0]
    want = convolve(wide, w, Stage(taps, wide.shape[1:3], large, *channels))
    np.testing.assert_allclose(found[0], want, rtol=1e-12, atol=1e-12)


def test_products_with_zeros_are_left_out():
    """A strided cross: one, two and two taps, and none, for a quarter of the pixels each."""
    found = phases(spec_of(CROSS, (2, 2), (12, 12), (24, 24), (8, 8)))
    assert [len(p.spec.stage.taps) for p in found] == [1, 2, 2, 0]
    assert {p.spec.stage.out_size for p in found} == {(12, 12)}


def test_fewer_pixels_than_a_stride():
    found = phases(spec_of(CROSS, (2, 2), (1, 1), (1, 1), (8, 8)))
    assert [p.first for p in found] == [(0, 0)]
