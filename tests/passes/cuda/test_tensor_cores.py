"""Products on tensor cores, by the same fragments on the emulated GPU, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from ttsnn.errors import PassError, TargetError

from ..cpu_kernels.oracle import (  # noqa: TID252
    CROSS,
    POINT,
    SQUARE,
    chain,
    expected,
    layer,
    random_operands,
)
from .emulated import emulated, run_layers

BITS = {"tf32": 10, "bf16": 7, "fp16": 10}


def rounded(x, precision):
    """float32 with so many bits behind the point, in float64; tf32 rounds halves away from 0."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = mantissa * 2.0 ** (BITS[precision] + 1)
    nearest = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled)
    whole = nearest if precision == "tf32" else np.round(scaled)
    return np.ldexp(whole, exponent - BITS[precision] - 1)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_products(precision):
    """One stage: the sums of products of rounded operands, exactly but for the sums' rounding."""
    configs = [
        layer(chain((5, 7), (20, 24), (CROSS,)), T=2, lif=None, dtype="float32"),
        layer(chain((6, 6), (3, 21), (SQUARE,), {0: (2, 2)}), T=1, lif=None, dtype="float32"),
        layer(chain((1, 40), (48, 40), (POINT,)), T=1, lif=None, dtype="float32"),
    ]
    cases = [(c, random_operands(c, 2, i)) for i, c in enumerate(configs)]
    found = run_layers(cases, target=emulated({"precision": precision}))
    for (config, operands), got in zip(cases, found, strict=True):
        small = {
            k: rounded(v, precision) if k in ("x", "w0") else v.astype(np.float64)
            for k, v in operands.items()
        }
        np.testing.assert_allclose(got["membrane"], expected(config, small)["membrane"], atol=2e-5)
        exact = expected(config, {k: v.astype(np.float64) for k, v in operands.items()})
        error = np.abs(got["membrane"] - exact["membrane"]).max()
        assert 1e-5 < error < 8 * 2.0 ** -BITS[precision]


def test_chain_with_neuron():
    """Spikes of a chain: few differ, for rounding near the threshold."""
    config = layer(
        chain((6, 5), (16, 12, 12, 24), (POINT, CROSS, POINT), {1: (2, 1)}),
        T=4,
        residual=True,
        v0=True,
        emit=("spikes", "v_last"),
        dtype="float32",
    )
    operands = random_operands(config, 2)
    (got,) = run_layers([(config, operands)], target=emulated({"precision": "tf32"}))
    want = expected(config, operands)
    assert (got["spikes"] != want["spikes"]).mean() < 0.01
    assert 0.05 < got["spikes"].mean() < 0.95
    assert (np.abs(got["v_last"] - want["v_last"]) > 1e-2).mean() < 0.01


def test_refused():
    config = layer(chain((4, 4), (4, 8), (SQUARE,)))
    with pytest.raises(PassError, match=r"block\.conv1: precision=tf32 is for float32"):
        run_layers([(config, random_operands(config, 1))], target=emulated({"precision": "tf32"}))
    with pytest.raises(TargetError, match="precision must be fp32 or tf32"):
        emulated({"precision": "tf23"})
    with pytest.raises(TargetError, match="precision=bf16 needs sm_80"):
        emulated({"precision": "bf16", "arch": "sm_75"})
