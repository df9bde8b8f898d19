"""The fused kernel of a layer against NumPy: shapes, strides, time, emits, tiles."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import tvm
from tvm.target import codegen

from ttsnn.errors import PassError
from ttsnn.passes.cpu.isa import AVX2, AVX512, GENERIC, isa_of
from ttsnn.passes.cpu.kernels.pack import pack_layer_weights
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, StageTile
from ttsnn.passes.cpu.rules.layer import layer_rule
from ttsnn.passes.layers.config import LifConfig
from ttsnn.passes.layers.reference import reference_layer

from .oracle import (
    COLUMN,
    CROSS,
    LIF,
    POINT,
    ROW,
    SQUARE,
    assert_same,
    chain,
    expected,
    fused,
    layer,
    random_operands,
)

HASWELL = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})


def check(config, batch=2, target=HASWELL, tiles=None, symbolic=False, packed=True):
    operands = random_operands(config, batch)
    want = expected(config, operands)
    if packed:
        names = [n for n in operands if n.startswith(("w", "half_w"))]
        config, weights = pack_layer_weights(config, [operands[n] for n in names], target)
        operands.update(zip(names, weights))
    got = fused(config, operands, None if symbolic else batch, target, tiles)
    assert_same(got, want, config.dtype)


TT = (POINT, CROSS, POINT)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (5, 7), (3, 33)])
def test_tt_chain(size, dtype):
    check(layer(chain(size, (3, 13, 9, 22), TT), dtype=dtype))


@pytest.mark.parametrize(
    "config",
    [
        layer(chain((7, 9), (5, 6, 6, 20), TT, {1: (2, 2)})),
        layer(chain((6, 5), (4, 6, 3, 5, 8), (POINT, COLUMN, ROW, POINT), {1: (2, 1), 2: (1, 2)})),
        layer(chain((9, 6), (3, 17), (SQUARE,), {0: (2, 2)})),
        layer(chain((5, 5), (1, 10), (SQUARE,)), lif=None),
        layer(chain((6, 6), (7, 10), (POINT,), {0: (2, 2)}), bias=False),
        layer(chain((5, 4), (2, 6), (((-2, 0), (0, -1), (1, 3)),))),
        layer(chain((5, 4), (2, 6), (((1, 1), (0, -1)),))),
    ],
    ids=["strided", "stt", "dense", "stem", "shortcut", "taps", "far taps"],
)
@pytest.mark.parametrize("symbolic", [False, True])
def test_shapes(config, symbolic):
    check(config, batch=3, symbolic=symbolic)


@pytest.mark.parametrize(
    "emit",
    [e for k in (1, 2, 3) for e in itertools.combinations(("v_last", "membrane", "spikes"), k)],
)
def test_emits(emit):
    check(layer(chain((3, 4), (2, 3, 3, 5), TT), emit=emit, v0=len(emit) == 2), batch=1)


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("x_static", [False, True])
@pytest.mark.parametrize("timesteps", [0, 1, 4])
def test_time(T, x_static, timesteps):
    config = layer(
        chain((3, 5), (4, 3, 3, 9), TT),
        T=T,
        half=chain((3, 5), (4, 3, 9), (POINT, POINT)) if timesteps < T else (),
        timesteps=min(timesteps, T),
        x_T=1 if x_static else T,
        residual=True,
        residual_T=1 if timesteps == 1 else T,
        emit=("spikes", "membrane", "v_last"),
        v0=T == 4,
    )
    check(config, symbolic=timesteps == 1)


@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("timing", ["after_fire", "before_decay", "after_decay"])
@pytest.mark.parametrize("form", ["multiply", "euler", "euler_raw_input"])
def test_neurons(reset, timing, form):
    lif = LifConfig(0.7, 1.5, 2.5, 0.4, 0.125, reset, ">=", timing, form)
    config = layer(
        chain((3, 3), (2, 5), (POINT,)), T=4, lif=lif, v0=True, emit=("spikes", "v_last")
    )
    check(config)


@pytest.mark.parametrize(("rows", "block"), [(1, 4), (2, 2), (3, 1), (5, 2), (4, 1)])
@pytest.mark.parametrize("order", [False, True])
def test_tiles(rows, block, order):
    """Strips that overlap, blocks of timesteps, tiles that do not divide the image."""
    stages = chain((9, 7), (3, 20, 6, 30), TT, {1: (2, 1)})
    tile = StageTile(1, 1, 3, 3, order)
    tiles = LayerTiles(rows, block, (tile, tile, replace(tile, width=4)), ())
    config = layer(stages, T=4, v0=True, residual=True, emit=("v_last", "spikes"))
    check(config, tiles=tiles)


@pytest.mark.parametrize(
    "change",
    [{"strip_rows": 6}, {"strip_rows": 1}, {"time_block": 3}, {"stages": ()}],
    ids=["strip", "height", "block", "count"],
)
def test_tiles_that_do_not_fit_are_refused(change):
    config = layer(chain((5, 5), (2, 3), (POINT,)), T=4)
    tiles = replace(LayerTiles(5, 2, (StageTile(1, 2, 2, 1, False),), ()), **change)
    func = reference_layer(config, 1, "layer")
    with pytest.raises(PassError, match=r"block\.conv1.*tile"):
        layer_rule(func, HASWELL, tiles)


def test_tiles_across_time_and_rows():
    tile = StageTile(2, 3, 5, 2, True)
    config = layer(chain((3, 5), (3, 6, 6, 5), TT), T=4, emit=("spikes", "v_last"), lif=LIF)
    check(config, tiles=LayerTiles(3, 4, (tile, tile, tile), ()), symbolic=True)


@pytest.mark.parametrize(
    "target",
    [{"kind": "llvm", "mcpu": "x86-64"}, {"kind": "llvm", "mcpu": "haswell"}],
    ids=["sse2", "avx2"],
)
def test_plain_weights_and_targets(target):
    check(
        layer(chain((4, 5), (3, 11, 11, 13), TT)),
        target=tvm.target.Target(target),
        packed=False,
    )


HOST = tvm.target.Target({"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()})
on_avx512 = pytest.mark.skipif(isa_of(HOST) != AVX512, reason="this machine has no AVX-512")


@on_avx512
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        layer(chain((1, 1), (3, 13, 9, 22), TT)),
        layer(chain((4, 4), (16, 24, 24, 64), TT), T=2, residual=True),
        layer(chain((5, 7), (6, 40, 17, 130), TT), emit=("membrane", "spikes")),
        layer(chain((7, 9), (5, 6, 6, 20), TT, {1: (2, 2)})),
        layer(chain((6, 5), (4, 6, 3, 5, 8), (POINT, COLUMN, ROW, POINT), {1: (2, 1), 2: (1, 2)})),
        layer(chain((9, 6), (3, 33), (SQUARE,), {0: (2, 2)}), lif=None),
        layer(chain((8, 8), (3, 64), (SQUARE,)), T=4, x_T=1, v0=True, emit=("v_last", "spikes")),
        layer(
            chain((3, 33), (4, 3, 3, 19), TT),
            T=4,
            half=chain((3, 33), (4, 3, 19), (POINT, POINT)),
            timesteps=2,
            emit=("spikes", "v_last"),
        ),
    ],
    ids=["one pixel", "block", "wide", "strided", "stt", "dense", "stem", "htt"],
)
def test_avx512(config, dtype, symbolic):
    """512-bit vectors: other tiles, panels and tails than those of the tests above."""
    check(replace(config, dtype=dtype), batch=3, target=HOST, symbolic=symbolic)


@pytest.mark.parametrize("channels", [153, 77, 47])
def test_last_panel_that_is_not_full(channels):
    """Panels of equal width where the last one has filled-up channels: none of them is written."""
    config = layer(chain((2, 2), (3, channels), (POINT,)), lif=None, dtype="float32")
    for target in {HASWELL, HOST}:
        check(config, target=target)


BYTES = {"byte_x": True, "byte_spikes": True}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "config",
    [
        layer(chain((5, 7), (19, 13, 9, 22), TT), **BYTES),
        layer(chain((7, 9), (5, 6, 6, 20), TT, {1: (2, 2)}), T=1, **BYTES),
        layer(chain((5, 5), (3, 10), (SQUARE,)), **BYTES),
        layer(chain((6, 6), (17, 10), (POINT,), {0: (2, 2)}), lif=None, byte_x=True),
        layer(chain((5, 5), (4, 6), (((0, 0), (0, 1)),)), emit=("membrane", "spikes"), **BYTES),
        layer(chain((4, 4), (3, 40), (SQUARE,)), T=4, x_T=1, byte_spikes=True),
        layer(
            chain((3, 5), (33, 3, 3, 9), TT),
            T=4,
            half=chain((3, 5), (33, 3, 9), (POINT, POINT)),
            timesteps=2,
            emit=("spikes", "v_last"),
            **BYTES,
        ),
    ],
    ids=["ptt", "strided", "dense", "shortcut", "taps", "stem", "htt"],
)
def test_bytes(config, dtype):
    """Spikes as uint8 in, or out, or both."""
    for target in {HASWELL, HOST}:
        check(replace(config, dtype=dtype), batch=2, target=target, symbolic=dtype == "float32")


def test_isa_from_target():
    def isa(mcpu):
        return isa_of(tvm.target.Target({"kind": "llvm", "mcpu": mcpu}))

    assert isa("znver4") == isa("skylake-avx512") == AVX512
    assert isa("haswell") == AVX2
    assert isa("x86-64") == GENERIC
    assert AVX512.lanes("float32") == 16
    assert AVX2.lanes("float64") == 4


def test_other_functions_are_left_alone():
    func = reference_layer(layer(chain((2, 2), (1, 2), (POINT,))), 1, "f")
    assert layer_rule(func.without_attr("ttsnn.layer"), HASWELL) is None
