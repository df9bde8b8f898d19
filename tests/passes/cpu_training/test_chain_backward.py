"""The backward of a chain, image by image, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ttsnn.passes.cpu.kernels.chain_backward import BackwardLink, chain_backward
from ttsnn.passes.cpu.kernels.pack import pack_weight
from ttsnn.passes.cpu.kernels.tiles import whole_image_tiles
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_channels

POINT = ((0, 0),)
CROSS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
SQUARE = tuple((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1))
RANK = 5


def taken(stage: Stage, x: np.ndarray, k: int) -> np.ndarray:
    """What tap k reads for each pixel, zeros outside."""
    (dh, dw), (height, width) = stage.taps[k], stage.in_size
    wide = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)))
    return wide[:, :, 2 + dh : 2 + dh + height, 2 + dw : 2 + dw + width]


def config(isa, dtype: str, stages: list[Stage]) -> LayerConfig:
    return LayerConfig(
        name="",
        T=1,
        x_T=1,
        stages=tuple(stages),
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


def chain(size: tuple[int, int], dense: bool) -> list[Stage]:
    if dense:
        return [Stage(SQUARE, size, size, 7, 21)]
    return [
        Stage(POINT, size, size, 7, RANK),
        Stage(CROSS, size, size, RANK, RANK),
        Stage(POINT, size, size, RANK, 21),
    ]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("dense", "normed", "spikes"),
    [(False, True, True), (False, False, False), (True, True, False), (True, False, True)],
)
def test_chain_backward(tools, dtype, dense, normed, spikes):
    rng, images, size = np.random.default_rng(2), 5, (9, 8)
    links, lanes = chain(size, dense), tools.isa.lanes(dtype)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    # forward: inputs, with channels up to whole half vectors as they are stored
    x = normal(1, images, *size, 7)
    inputs = [(x > 0.5).astype("uint8") if spikes else x]
    weights = [normal(len(s.taps), s.in_channels, s.out_channels) for s in links]
    for i in range(1, len(links)):
        stored = np.zeros((1, images, *size, packed_channels(RANK, lanes)), dtype)
        # the second link's input is computed again, the third's is anything
        result = inputs[0] @ weights[0][0] if i == 1 else normal(1, images, *size, RANK)
        stored[..., :RANK] = result
        inputs.append(stored)
    dy = normal(1, images, *size, 21)
    before: list[np.ndarray] = [dy]
    grad = dy.astype("float64")
    if normed:
        y, gamma, mean, rstd, to_g, to_b = normal(*dy.shape), *(normal(21) for _ in range(5))
        before = [y, gamma, mean, rstd, dy, to_g, to_b]
        n = y.size / 21
        grad = gamma * rstd * (grad - to_b / n - (y - mean) * rstd * to_g / n)

    want = []
    for link, w, read in reversed(list(zip(links, weights, inputs))):
        read = read[..., : link.in_channels].astype("float64")
        dw = [
            np.einsum("tnhwi,tnhwo->io", taken(link, read, k), grad) for k in range(len(link.taps))
        ]
        want.insert(0, np.stack(dw))
        back = replace(link, taps=tuple((-a, -b) for a, b in link.taps))
        grad = sum(taken(back, grad, k) @ w[k].T for k in range(len(link.taps)))
    want.insert(0, grad)

    stored = [inputs[i].shape[-1] for i in range(len(links))] + [21]
    stages, packed = [], []
    for i in range(len(links) - 1, -1, -1):
        link = links[i]
        taps = tuple((-a, -b) for a, b in link.taps)
        stage = Stage(taps, size, size, link.out_channels, stored[i])
        w = np.zeros((len(taps), link.out_channels, stored[i]), dtype)
        w[..., : link.in_channels] = weights[i].transpose(0, 2, 1)
        stages.append(stage)
        packed.append(pack_weight(stage, w, lanes, 4))
    if not dense:
        first = replace(links[0], out_channels=stored[1])
        w = np.zeros((1, 7, stored[1]), dtype)
        w[..., :RANK] = weights[0]
        packed.append(pack_weight(first, w, lanes, 4))
    kinds = [
        BackwardLink(
            replace(s, in_channels=stored[i], out_channels=stored[i + 1]),
            s.in_channels,
            str(inputs[i].dtype),
        )
        for i, s in enumerate(links)
    ]
    cfg = config(tools.isa, dtype, stages)
    got = [np.full(x.shape, np.nan, dtype)]
    got += [
        np.full((len(k.stage.taps), k.rows, k.stage.out_channels), np.nan, dtype) for k in kinds
    ]
    tiles = whole_image_tiles(cfg, tools.isa)
    kernel = chain_backward(kinds, cfg, images, tools.isa, tiles, 2, normed)
    read = [a for i, a in enumerate(inputs) if i != 1]
    tools.run(kernel, *before, *read, *packed, *got)
    tol = 1e-13 if dtype == "float64" else 1e-5
    for name, a, b in zip(("dx", "dw0", "dw1", "dw2"), got, want):
        assert np.abs(a[..., : b.shape[-1]] - b).max() <= tol * np.abs(b).max(), name
        assert not a[..., b.shape[-1] :].any(), name
