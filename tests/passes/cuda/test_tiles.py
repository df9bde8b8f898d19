"""The convolution kernel with tiles of every kind against NumPy, and which ones are chosen."""

from __future__ import annotations

import numpy as np
import pytest

from ttsnn.passes.cuda import layers_to_kernels
from ttsnn.passes.cuda.gpu import gpu_of
from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec, Segment
from ttsnn.passes.cuda.kernels.conv_tile import ConvTile, default_tile
from ttsnn.targets import get_target

from ..cpu_kernels.oracle import (  # noqa: TID252
    CROSS,
    assert_same,
    chain,
    convolve,
    expected,
    layer,
    random_operands,
)
from .emulated import emulated, run_conv, run_layers

# time, pixels, channels, depth, rows, columns, and groups that split the sum
TILES = [
    ConvTile(1, 128, 64, 16, 8, 4),
    ConvTile(1, 32, 128, 8, 16, 4),
    ConvTile(2, 64, 32, 16, 4, 8),
    ConvTile(4, 16, 64, 16, 4, 4),
    ConvTile(4, 8, 16, 32, 1, 4),
    ConvTile(1, 128, 24, 24, 8, 8),
    ConvTile(1, 128, 20, 20, 8, 4),
    ConvTile(4, 16, 32, 8, 4, 4, 3),
    ConvTile(2, 8, 16, 16, 2, 4, 4),
    ConvTile(1, 16, 16, 16, 4, 4, 8),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiles(monkeypatch, dtype):
    """One layer with each tile: more pixels and channels than a tile holds, and fewer."""
    tiles = iter([tile for tile in TILES for _ in range(2)])
    monkeypatch.setattr(layers_to_kernels, "default_tile", lambda *_: next(tiles))
    cases = []
    for i in range(len(TILES)):
        # another name for each, so that none is shared
        for size, channels in (((5, 6), (20 + 4 * i, 40)), ((9, 9), (6 + i, 72))):
            config = layer(
                chain(size, channels, (CROSS,), {0: (2, 1)}), T=4, residual=True, dtype=dtype
            )
            cases.append((config, random_operands(config, 2, i)))
    for (config, operands), got in zip(cases, run_layers(cases), strict=True):
        assert_same(got, expected(config, operands), dtype)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "float64"])
def test_spikes(precision):
    """Bytes, fetched 4, 8 and 16 at once, and one by one; a weight that no format rounds."""
    rng = np.random.default_rng(0)
    dtype = precision if precision == "float64" else "float32"
    for channels, depth in ((20, 16), (24, 32), (48, 16), (32, 32), (7, 16), (64, 64)):
        (stage,) = chain((6, 7), (channels, 24), (CROSS,))
        part = Segment(stage, 0, 2, 2, 0, "uint8")
        kind = "fp32" if dtype == "float64" else precision
        spec = ConvSpec((part,), 2, False, 0, dtype, None, False, ("membrane",), dtype, dtype, kind)
        x = rng.integers(0, 2, (2, 2, 6, 7, channels), np.uint8)
        w = rng.integers(-8, 9, (5, channels, 24)).astype(dtype)
        tile = ConvTile(1, 32, 32, depth, 4, 4)
        found = run_conv(spec, x, w, tile)
        want = [convolve(steps.astype(dtype), w, stage) for steps in x]
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_tiles_of_fragments(monkeypatch, precision):
    """Several warps and fragments of a warp in both directions give what one gives."""
    config = layer(chain((9, 9), (20, 72), (CROSS,)), T=4, dtype="float32", emit=("membrane",))
    operands = random_operands(config, 1)
    results = []
    for tile in (
        ConvTile(4, 16, 16, 16, 2, 2),
        ConvTile(2, 64, 32, 16, 4, 4),
        ConvTile(1, 32, 64, 16, 2, 8),
        ConvTile(2, 16, 32, 32, 2, 4, 3),
    ):
        monkeypatch.setattr(layers_to_kernels, "default_tile", lambda *_, tile=tile: tile)
        (got,) = run_layers([(config, operands)], target=emulated({"precision": precision}))
        results.append(got["membrane"])
    want = expected(config, operands)["membrane"]
    assert abs(results[0] - want).max() < 0.1
    for other in results[1:]:
        assert abs(other - results[0]).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 128])
def test_default_tiles_fit(dtype, batch):
    """At most 48 KiB and 512 threads, 256 and whole sums where there are many pixels."""
    gpu = gpu_of(get_target("cuda:arch=sm_90").tvm_target)
    (stage,) = chain((16, 16), (96, 128), (CROSS,))
    part = Segment(stage, 0, 4, 4, 0, dtype)
    spec = ConvSpec((part,), 4, False, 0, dtype, None, False, ("membrane",), dtype, dtype)
    tile = default_tile(spec, batch, gpu)
    assert tile.threads % 32 == 0
    assert tile.threads <= (512 if batch == 1 else 256)
    assert (tile.split > 1) == (batch == 1)
    assert tile.shared_bytes(4 if dtype == "float32" else 8) <= 48 * 1024
    assert (tile.pixels * tile.channels >= 2048) == (batch == 128)


@pytest.mark.parametrize("rank", [12, 20, 24, 48, 72])
def test_ranks_fill_their_tiles(rank):
    """No step and no column of zeros, and blocks enough for the schedulers."""
    gpu = gpu_of(get_target("cuda:arch=sm_90").tvm_target)
    (stage,) = chain((48, 48), (rank, rank), (CROSS,))
    part = Segment(stage, 0, 1, 1, 0, "float32")
    spec = ConvSpec(
        (part,), 1, False, 0, "float32", None, False, ("membrane",), "float32", "float32"
    )
    tile = default_tile(spec, 768, gpu)
    assert rank % tile.depth == 0
    assert rank % tile.channels == 0


def test_unknown_gpu():
    """Counts as the next older one."""
    known, newer = (gpu_of(get_target(f"cuda:arch={a}").tvm_target) for a in ("sm_100", "sm_103"))
    assert newer.multiprocessors == known.multiprocessors == 148
