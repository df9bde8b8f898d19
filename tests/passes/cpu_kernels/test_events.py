"""Event-driven layers against NumPy, and against their dense form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.target import codegen

from ttsnn.errors import PassError
from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.kernels.pack import pack_layer_weights
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, default_tiles
from ttsnn.passes.cpu.rules.layer import event_rule, layer_rule
from ttsnn.passes.layers.reference import reference_layer
from ttsnn.passes.layers.signature import TILES_ATTR

from .oracle import (
    CROSS,
    POINT,
    SQUARE,
    assert_same,
    chain,
    expected,
    fused,
    layer,
    random_operands,
)

TT = (POINT, CROSS, POINT)
TARGETS = {
    name: tvm.target.Target({"kind": "llvm", "mcpu": mcpu})
    for name, mcpu in (
        ("host", codegen.llvm_get_system_cpu()),
        ("avx2", "haswell"),
        ("generic", "x86-64"),
    )
}


def check(config, rate, target, batch=1, packed=True, tiles=None):
    """Both forms on the same spikes: equal to each other to the bit, and to NumPy."""
    config = replace(config, byte_x=True)
    operands = random_operands(config, batch)
    drawn = np.random.default_rng(1).random(operands["x"].shape)
    operands["x"] = (drawn < rate).astype(np.uint8)
    want = expected(config, operands)
    if packed:
        names = [n for n in operands if n.startswith(("w", "half_w"))]
        config, weights = pack_layer_weights(config, [operands[n] for n in names], target)
        operands.update(zip(names, weights))
    tiles = tiles or default_tiles(config, batch, isa_of(target), 1)
    events, dense = (
        fused(config, operands, batch, target, replace(tiles, events=e)) for e in (True, False)
    )
    assert_same(events, want, config.dtype)
    for name in config.emit:
        np.testing.assert_array_equal(events[name], dense[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("channels", "target"),
    [
        *((c, "host") for c in (1, 3, 8, 17, 64, 65, 130, 256)),
        *((c, t) for c in (3, 65) for t in ("avx2", "generic")),
    ],
)
def test_channels(channels, dtype, target):
    stages = chain((3, 5), (channels, 13, 9, 22), TT)
    config = layer(stages, dtype=dtype, T=2, emit=("spikes", "membrane"))
    check(config, channels % 4 / 5, TARGETS[target])


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5, 1.0])
def test_rates(rate):
    stages = chain((4, 3), (70, 20, 20, 40), TT)
    check(layer(stages, residual=True), rate, TARGETS["host"], batch=3)


SHAPES = {
    "one pixel": layer(chain((1, 1), (40, 10), (POINT,)), T=1),
    "strided": layer(chain((7, 9), (66, 6, 6, 20), TT, {0: (2, 2)})),
    "shortcut": layer(chain((6, 5), (17, 130), (POINT,), {0: (2, 2)}), lif=None),
    "dense": layer(chain((5, 7), (19, 150), (SQUARE,)), T=2, v0=True, emit=("spikes", "v_last")),
    "dense strided": layer(chain((9, 6), (65, 33), (SQUARE,), {0: (2, 2)})),
    "merged": layer(chain((6, 4), (9, 12, 20), (CROSS, POINT))),
    "far taps": layer(chain((5, 4), (12, 6), (((-2, 0), (0, -1), (1, 3)),))),
    "inner taps": layer(chain((5, 5), (4, 6), (((0, 0), (0, 1)),))),
    "half": layer(
        chain((3, 5), (67, 3, 3, 9), TT),
        T=4,
        half=chain((3, 5), (67, 3, 9), (POINT, POINT)),
        timesteps=2,
        emit=("spikes", "v_last"),
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, target):
    check(SHAPES[name], 0.3, TARGETS[target], batch=2)


def test_plain_weights():
    check(SHAPES["strided"], 0.3, TARGETS["avx2"], packed=False)


@pytest.mark.parametrize(("rows", "block"), [(1, 4), (2, 2), (3, 1)])
def test_strips_and_blocks(rows, block):
    config = layer(chain((7, 5), (20, 12, 12, 24), TT), T=4, v0=True, emit=("v_last", "spikes"))
    target = TARGETS["host"]
    tiles = default_tiles(config, 2, isa_of(target), 1)
    one = tuple(replace(t, time=1, height=1, width=1) for t in tiles.stages)
    check(config, 0.2, target, batch=2, tiles=LayerTiles(rows, block, one, ()))


def test_input_of_numbers_is_refused():
    config = layer(chain((5, 5), (2, 3), (POINT,)))
    tiles = replace(default_tiles(config, 1, isa_of(TARGETS["avx2"]), 1), events=True)
    with pytest.raises(PassError, match=r"block\.conv1.*spikes as bytes"):
        layer_rule(reference_layer(config, 1, "layer"), TARGETS["avx2"], tiles)


def test_rule_takes_layers_whose_tiles_say_so():
    config = layer(chain((5, 5), (2, 3), (POINT,)), byte_x=True)
    func = reference_layer(config, 1, "layer")
    tiles = default_tiles(config, 1, isa_of(TARGETS["avx2"]), 1)
    assert event_rule(func, TARGETS["avx2"]) is None
    assert event_rule(func.with_attr(TILES_ATTR, tiles.to_json()), TARGETS["avx2"]) is None
    events = func.with_attr(TILES_ATTR, replace(tiles, events=True).to_json())
    assert event_rule(events, TARGETS["avx2"]) is not None
