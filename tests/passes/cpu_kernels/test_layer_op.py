"""relax.snn.layer: its type inference and its reference function."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.passes.cpu.kernels.pack import pack_layer_weights
from ttsnn.passes.layers import layer_call
from ttsnn.passes.layers.config import LayerConfig

from .oracle import (
    COLUMN,
    CROSS,
    POINT,
    ROW,
    SQUARE,
    assert_same,
    chain,
    expected,
    layer,
    layer_module,
    random_operands,
    run,
)

HOST = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})


@pytest.mark.parametrize(
    "config",
    [
        layer(chain((5, 7), (3, 4, 4, 6), (POINT, CROSS, POINT), {1: (2, 2)})),
        layer(chain((4, 3), (3, 5, 2, 3, 4), (POINT, COLUMN, ROW, POINT)), T=1, bias=False),
        layer(chain((3, 3), (2, 4), (SQUARE,)), lif=None, residual=True, residual_T=1),
        layer(
            chain((4, 4), (2, 3, 3, 5), (POINT, CROSS, POINT)),
            half=chain((4, 4), (2, 3, 5), (POINT, POINT)),
            timesteps=1,
            v0=True,
            residual=True,
            emit=("v_last", "membrane", "spikes"),
        ),
        layer(chain((3, 2), (1, 4), (SQUARE,)), x_T=1),
    ],
)
@pytest.mark.parametrize("symbolic", [False, True])
def test_reference(config, symbolic):
    operands = random_operands(config, 2)
    got = run(layer_module(config, operands, symbolic), config, operands, HOST)
    assert_same(got, expected(config, operands), config.dtype)


def test_reference_reads_packed_weights():
    config = layer(chain((4, 5), (3, 13, 9, 30), (POINT, CROSS, POINT)), emit=("membrane",))
    operands = random_operands(config, 1)
    want = expected(config, operands)
    names = [n for n in operands if n.startswith("w")]
    packed, weights = pack_layer_weights(config, [operands[n] for n in names], HOST)
    operands.update(zip(names, weights))
    assert operands["w1"].ndim == 1
    got = run(layer_module(packed, operands), packed, operands, HOST)
    assert_same(got, want, config.dtype)


@pytest.mark.parametrize(
    ("size", "taps", "stride", "count"),
    [((1, 1), CROSS, 1, 1), ((1, 4), CROSS, 1, 3), ((2, 2), SQUARE, 1, 9), ((2, 2), SQUARE, 2, 4)],
)
def test_packing_drops_taps_that_read_zeros_only(size, taps, stride, count):
    config = layer(chain(size, (3, 5), (taps,), {0: (stride, stride)}), emit=("membrane",))
    operands = random_operands(config, 2)
    want = expected(config, operands)
    packed, (operands["w0"],) = pack_layer_weights(config, [operands["w0"]], HOST)
    assert len(packed.stages[0].taps) == count
    got = run(layer_module(packed, operands), packed, operands, HOST)
    assert_same(got, want, config.dtype)


def test_config_json_round_trip():
    config = layer(chain((4, 3), (3, 5, 4), (POINT, ROW)), packing=(8, 3))
    assert LayerConfig.from_json(config.to_json()) == config


def test_errors_name_the_layer_and_the_shape():
    config = layer(chain((4, 3), (3, 5, 4), (POINT, ROW)))
    x = relax.Var("x", relax.TensorType((3, 1, 4, 3, 3), "float64"))
    w0 = relax.Var("w0", relax.TensorType((1, 3, 5), "float64"))
    w1 = relax.Var("w1", relax.TensorType((3, 5, 5), "float64"))
    b = relax.Var("b", relax.TensorType((4,), "float64"))
    with pytest.raises(PassError, match=r"block\.conv1.*w1 must be \[3, 5, 4\], got \[3, 5, 5\]"):
        layer_call(config, [x, w0, w1, b])
    with pytest.raises(PassError, match="takes 4 operands"):
        layer_call(config, [x, w0])
    with pytest.raises(PassError, match="timesteps 2 must be T = 3"):
        layer_call(replace(config, timesteps=2), [x, w0, w1, b])
    with pytest.raises(PassError, match="without a neuron"):
        layer_call(replace(config, lif=None), [x, w0, w1, b])
