"""The kernel of a training chain against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ttsnn.passes.cpu.kernels.pack import pack_weight
from ttsnn.passes.cpu.kernels.tiles import default_tiles
from ttsnn.passes.cpu.kernels.train_chain import kept_shapes, train_chain
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_channels

POINT = ((0, 0),)
CROSS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
SQUARE = tuple((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1))


def config(isa, dtype: str, *stages: Stage) -> LayerConfig:
    return LayerConfig(
        name="",
        T=1,
        x_T=1,
        stages=stages,
        half_stages=(),
        timesteps=1,
        bias=False,
        residual=False,
        residual_T=1,
        lif=None,
        v0=False,
        emit=("membrane",),
        dtype=dtype,
        packing=(isa.lanes(dtype), 4),
    )


def convolved(stage: Stage, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    (height, width), (ho, wo), (sh, sw) = stage.in_size, stage.out_size, stage.strides
    out = np.zeros((*x.shape[:2], ho, wo, stage.out_channels))
    for k, (dh, dw) in enumerate(stage.taps):
        for h in range(ho):
            for v in range(wo):
                r, c = h * sh + dh, v * sw + dw
                if 0 <= r < height and 0 <= c < width:
                    out[:, :, h, v] += x[:, :, r, c, : stage.in_channels] @ w[k]
    return out


def chain(size: tuple[int, int], rank: int, lanes: int, stride: int = 1) -> list[Stage]:
    stored, out = packed_channels(rank, lanes), tuple(-(-s // stride) for s in size)
    return [
        Stage(POINT, size, size, 7, stored),
        Stage(CROSS, size, out, rank, stored, (stride, stride)),
        Stage(POINT, out, out, rank, 21),
    ]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize(("stride", "rows"), [(1, None), (1, 3), (2, None), (2, 2)])
def test_chain(tools, dtype, spikes, stride, rows):
    lanes = tools.isa.lanes(dtype)
    cfg = config(tools.isa, dtype, *chain((7, 6), 5, lanes, stride))
    check(tools, cfg, 7, spikes, rows)


@pytest.mark.parametrize("spikes", [False, True])
def test_padded_first_link_of_some_channels(tools, spikes):
    stage = Stage(SQUARE, (5, 6), (3, 3), 5, 9, (2, 2))
    check(tools, config(tools.isa, "float64", stage), 8, spikes, 2)


def check(tools, cfg: LayerConfig, channels: int, spikes: bool, rows: int | None) -> None:
    """The result and all intermediate ones; channels beyond a rank are zero."""
    rng, images, lanes = np.random.default_rng(1), 3, cfg.packing[0]
    x = rng.standard_normal((1, images, *cfg.stages[0].in_size, channels))
    x = (x > 0.5).astype("uint8") if spikes else x.astype(cfg.dtype)
    tiles = default_tiles(cfg, images, tools.isa, 2)
    if rows is not None:
        small = tuple(replace(t, height=1, width=1) for t in tiles.stages)
        tiles = replace(tiles, strip_rows=rows, stages=small)
    weights = []
    for stage in cfg.stages:
        w = rng.standard_normal((len(stage.taps), stage.in_channels, stage.out_channels))
        if stage is not cfg.stages[-1]:
            w[..., 5:] = 0.0
        weights.append(w.astype(cfg.dtype))
    want, state = [], x.astype("float64")
    for stage, w in zip(cfg.stages, weights):
        state = convolved(stage, state, w.astype("float64"))
        want.append(state)
    packed = [pack_weight(s, w, lanes, 4) for s, w in zip(cfg.stages, weights)]
    got = [np.full(s, np.nan, cfg.dtype) for s in (want[-1].shape, *kept_shapes(cfg, images))]
    kernel = train_chain(cfg, images, tools.isa, tiles, (str(x.dtype), channels))
    tools.run(kernel, x, *packed, *got)
    tol = 1e-13 if cfg.dtype == "float64" else 1e-5
    for a, b in zip(got, (want[-1], *want[:-1])):
        assert np.abs(a - b).max() <= tol * np.abs(b).max()
