"""Layers on the emulated GPU against NumPy: chains, strides, time, results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ttsnn.passes.cuda.kernels import body
from ttsnn.passes.layers.config import LifConfig

from ..cpu_kernels.oracle import (  # noqa: TID252
    COLUMN,
    CROSS,
    LIF,
    POINT,
    ROW,
    SQUARE,
    assert_same,
    chain,
    expected,
    layer,
    random_operands,
)
from .emulated import run_layers

TT = (POINT, CROSS, POINT)


def check(configs, batch=2, symbolic=False):
    cases = [(c, random_operands(c, batch, seed)) for seed, c in enumerate(configs)]
    for (config, operands), got in zip(cases, run_layers(cases, symbolic), strict=True):
        assert_same(got, expected(config, operands), config.dtype)


def small(dtype="float64", **kw):
    return layer(chain((5, 4), (6, 5, 6, 12), TT, {1: (2, 1)}), dtype=dtype, **kw)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chains(dtype):
    """Sizes that fill no tile, ranks that fill no vector, strides on each core, one pixel."""
    check(
        [
            layer(chain((1, 1), (3, 13, 9, 22), TT), dtype=dtype),
            layer(chain((5, 7), (3, 13, 9, 22), TT), dtype=dtype),
            layer(chain((7, 9), (5, 6, 6, 20), TT, {1: (2, 2)}), dtype=dtype),
            layer(
                chain((6, 5), (4, 6, 3, 5, 8), (POINT, COLUMN, ROW, POINT), {1: (2, 1), 2: (1, 2)}),
                dtype=dtype,
            ),
            layer(chain((9, 6), (3, 17), (SQUARE,), {0: (2, 2)}), dtype=dtype),
            layer(chain((5, 5), (1, 10), (SQUARE,)), lif=None, dtype=dtype),
            layer(chain((6, 6), (7, 10), (POINT,), {0: (2, 2)}), bias=False, dtype=dtype),
            layer(chain((1, 6), (40, 33), (POINT,)), lif=None, T=1, dtype=dtype),
            layer(chain((6, 6), (36, 40, 44, 72), TT), T=4, residual=True, dtype=dtype),
        ]
    )


def test_time():
    """Inputs and residuals that do not change, one step, more steps than a tile holds."""
    check(
        [
            small(T=1),
            small(T=11),
            small(T=12),
            small(x_T=1),
            small(x_T=1, lif=None, emit=("membrane",)),
            small(residual=True),
            small(residual=True, residual_T=1),
            small(residual=True, residual_T=1, lif=None, emit=("membrane",)),
            small(x_T=1, residual=True, v0=True, emit=("membrane", "spikes", "v_last")),
            small(T=5, v0=True, emit=("v_last",)),
        ]
    )


def test_htt():
    """Steps that run the other chain: some, all, none; a merged core in one of them."""
    full = chain((6, 5), (6, 5, 7, 12), TT, {1: (2, 2)})
    half = chain((6, 5), (6, 5, 12), (POINT, POINT), {0: (2, 2)})
    merged = chain((6, 5), (6, 12), (POINT,), {0: (2, 2)})
    emit = ("spikes", "v_last")
    check(
        [
            layer(full, T=5, half=half, timesteps=2, emit=emit),
            layer(full, T=4, half=half, timesteps=4, residual=True),
            layer(full, T=4, half=half, timesteps=0),
            layer(full, T=4, half=merged, timesteps=3),
            layer(full, T=4, half=half, timesteps=2, x_T=1, emit=emit),
            layer(full, T=4, half=half, timesteps=2, lif=None, emit=("membrane",)),
        ]
    )


def test_neurons():
    """Every kind of reset, firing, timing and form."""
    neurons = [
        replace(LIF, fire=">=", reset="soft"),
        replace(LIF, reset="none", gain=0.75),
        replace(LIF, v_reset=-0.2, form="euler"),
        replace(LIF, v_reset=-0.2, form="decay_then_add", reset="soft"),
        LifConfig(0.5, 1.0, 2.0, 0.5, 0.0, "soft", ">", "before_decay", "multiply"),
        LifConfig(0.5, 1.0, 2.0, 0.5, 0.0, "hard", ">", "after_decay", "multiply"),
    ]
    check([small(lif=n, v0=True, emit=("spikes", "v_last")) for n in neurons])


def test_symbolic_batch():
    configs = [small(), small(x_T=1, residual=True), small(lif=None), small("float32")]
    check(configs, batch=3, symbolic=True)


def test_batch_too_large_for_its_indices(monkeypatch):
    """With a symbolic batch indices have 32 bits; the limit is lowered here."""
    monkeypatch.setattr(body, "NARROW", 3000)
    config = small()  # 3 · 5 · 4 · 6 elements of x, 3 · 3 · 4 · 12 of the spikes, a sample
    check([config], batch=6, symbolic=True)
    with pytest.raises(ValueError, match="CUDA kernel: the batch is limited to 6 samples"):
        run_layers([(config, random_operands(config, 7))], symbolic=True)


def test_wide_indices(monkeypatch):
    """Arrays that are too large for 32 bits; the limit is lowered here."""
    monkeypatch.setattr(body, "NARROW", 100)
    ragged = layer(chain((5, 6), (6, 9), (SQUARE,), {0: (2, 1)}), lif=None, dtype="float32")
    check([small(), ragged])


def test_more_offsets_than_bits_of_a_word():
    """What lies outside the image is marked in words of 31 bits."""
    row = tuple((0, x) for x in range(-17, 18))
    plus = (*row, *((y, 0) for y in (-9, -4, 2, 7)))
    check([layer(chain((11, 20), (4, 8), (taps,)), lif=None, T=1) for taps in (row, plus)])


def test_nothing_is_tuned_to_zero_padding():
    """A NaN beyond an image's edge, in the next one, does not come through."""
    config = layer(chain((4, 4), (4, 8), (SQUARE,)), lif=None, T=1)
    operands = random_operands(config, 3)
    operands["x"][:, 1] = np.nan
    (got,) = run_layers([(config, operands)])
    want = expected(config, operands)
    assert np.isnan(got["membrane"][:, 1]).all()
    for image in (0, 2):
        np.testing.assert_allclose(
            got["membrane"][:, image], want["membrane"][:, image], rtol=1e-12, atol=1e-12
        )
