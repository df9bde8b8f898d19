"""Products on tensor cores, by the same fragments on the emulated GPU, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from ttsnn.errors import PassError, TargetError
from ttsnn.passes.cuda.gpu import gpu_of
from ttsnn.passes.cuda.kernels.weight_grad import weight_grad
from ttsnn.targets import get_target

from ..cpu_kernels.oracle import (  # noqa: TID252
    CROSS,
    POINT,
    SQUARE,
    chain,
    expected,
    layer,
    random_operands,
)
from .emulated import emulated, run_function, run_layers

BITS = {"tf32": 10, "bf16": 7, "fp16": 10}


def rounded(x, precision):
    """float32 with so many bits behind the point, in float64."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scale = 2.0 ** (BITS[precision] + 1)
    return np.ldexp(np.round(mantissa * scale) / scale, exponent)


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


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("channels", "size", "stride", "x_dtype"),
    [
        ((20, 24), (5, 7), 1, "uint8"),
        ((3, 72), (9, 6), 2, "float32"),
        ((70, 12), (12, 11), 1, "uint8"),
    ],
)
def test_weight_gradient(precision, channels, size, stride, x_dtype):
    """The sums over pixels of products of rounded operands; spikes are exact."""
    (stage,) = chain(size, channels, (SQUARE,), {0: (stride, stride)})
    gpu = gpu_of(get_target("cuda-emulated").tvm_target)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, *size, channels[0])).astype("float32")
    if x_dtype == "uint8":
        x = (x > 0).astype("uint8")
    dy = rng.standard_normal((1, 3, *stage.out_size, channels[1])).astype("float32")
    func = weight_grad(stage, 3, "float32", gpu, x_dtype, precision)
    got = run_function(func, [x, dy], (len(stage.taps), *channels), "float32")
    padded = np.zeros((3, size[0] + 2, size[1] + 2, channels[0]))
    padded[:, 1:-1, 1:-1] = rounded(x[0].astype("float32"), precision)
    small = rounded(dy[0], precision)
    for k, (down, across) in enumerate(stage.taps):
        rows = slice(1 + down, 1 + down + stride * stage.out_size[0], stride)
        columns = slice(1 + across, 1 + across + stride * stage.out_size[1], stride)
        part = padded[:, rows, columns][:, : stage.out_size[0], : stage.out_size[1]]
        want = np.einsum("nhwi,nhwo->io", part, small)
        np.testing.assert_allclose(got[k], want, atol=3e-5)


def test_refused():
    config = layer(chain((4, 4), (4, 8), (SQUARE,)))
    with pytest.raises(PassError, match=r"block\.conv1: precision=tf32 is for float32"):
        run_layers([(config, random_operands(config, 1))], target=emulated({"precision": "tf32"}))
    with pytest.raises(TargetError, match="precision must be fp32 or tf32"):
        emulated({"precision": "tf23"})
    with pytest.raises(TargetError, match="precision=bf16 needs sm_80"):
        emulated({"precision": "bf16", "arch": "sm_75"})
