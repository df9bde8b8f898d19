"""Gradients to weights on the emulated GPU against NumPy, with tiles of every kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax

from ttsnn.cuda import emulator
from ttsnn.passes.cuda.gpu import gpu_of
from ttsnn.passes.cuda.kernels.grad_tile import GradTile, default_grad_tile
from ttsnn.passes.cuda.kernels.weight_grad import weight_grad
from ttsnn.passes.layers.config import Stage
from ttsnn.targets import get_target

from ..cpu_training.conftest import check as against_autograd  # noqa: TID252
from ..cpu_training.test_programs import Time  # noqa: TID252
from ..cpu_training.test_weight_grad import (  # noqa: TID252
    CROSS,
    FAR,
    POINT,
    SQUARE,
    oracle,
)
from .emulated import emulated, run
from .test_tensor_cores import BITS, rounded

STAGES = {
    "cross": (Stage(CROSS, (7, 5), (7, 5), 3, 5), 3),
    "cross of vectors": (Stage(CROSS, (9, 8), (9, 8), 12, 20), 5),
    "square strided, odd channels": (Stage(SQUARE, (7, 6), (4, 3), 7, 21, (2, 2)), 5),
    "point": (Stage(POINT, (4, 4), (4, 4), 24, 37), 9),
    "point strided": (Stage(POINT, (5, 5), (3, 3), 13, 70, (2, 2)), 1),
    "one pixel": (Stage(SQUARE, (1, 1), (1, 1), 24, 36), 3),
    "one image of one pixel": (Stage(POINT, (1, 1), (1, 1), 2, 3), 1),
    "taps far outside": (Stage(FAR, (4, 6), (5, 4), 2, 9, (1, 2)), 4),
    "more channels than a tile": (Stage(POINT, (2, 3), (2, 3), 260, 300), 40),
    "an image a step": (Stage(SQUARE, (4, 4), (4, 4), 16, 16), 12),
}

TILES = [
    # taps, rows, columns, a thread's rows and columns, depth, split, parts
    GradTile(5, 20, 36, 12, 4, 4, 3, 7),
    GradTile(5, 32, 16, 20, 8, 8, 7, 2),
    GradTile(1, 32, 36, 4, 12, 16, 2, 3),
    GradTile(1, 64, 64, 8, 8, 8, 1, 1),
    GradTile(5, 12, 24, 4, 4, 4, 5, 40),
]

FRAGMENTS = [
    # fragments of a thread have 2 rows and 2 columns each; pixels of a word
    GradTile(5, 20, 36, 2, 4, 16, 1, 2),
    GradTile(1, 32, 36, 4, 8, 32, 2, 3),
    GradTile(5, 32, 16, 8, 4, 16, 3, 1),
]


def operands(stage, images, dtype="float64", spikes=False):
    rng = np.random.default_rng(images)
    x = rng.standard_normal((1, images, *stage.in_size, stage.in_channels))
    dy = rng.standard_normal((1, images, *stage.out_size, stage.out_channels))
    return (x > 0.5).astype("uint8") if spikes else x.astype(dtype), dy.astype(dtype)


def gradients(cases, dtype="float64", precision="fp32", target=None):
    """The kernel's result for each of (stage, x, dy, tile)."""
    target = target or emulated({"precision": precision})
    gpu = gpu_of(target.tvm_target)
    builder = relax.BlockBuilder()
    arrays = [a for _, x, dy, _ in cases for a in (x, dy)]
    args = [
        relax.Var(f"a{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(arrays)
    ]
    outs = []
    with builder.function("main", args, {"num_input": len(args)}):
        for i, (stage, x, _, tile) in enumerate(cases):
            kernel = weight_grad(stage, x.shape[1], dtype, gpu, str(x.dtype), precision, tile)
            shape = (len(stage.taps), stage.in_channels, stage.out_channels)
            call = relax.call_tir(
                builder.add_func(kernel, f"weight_grad{i}"),
                args[2 * i : 2 * i + 2],
                out_ty=relax.TensorType(shape, dtype),
            )
            outs.append(builder.emit(call))
        builder.emit_func_output(relax.Tuple(outs))
    return run(target, builder.get(), arrays)


def check(cases, found, tolerance):
    for (stage, x, dy, tile), got in zip(cases, found, strict=True):
        want = oracle(stage, x.astype("float64"), dy.astype("float64"))
        assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), (stage, tile)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spikes", [False, True])
def test_chosen_tiles(dtype, spikes):
    cases = [
        (stage, *operands(stage, images, dtype, spikes), None) for stage, images in STAGES.values()
    ]
    check(cases, gradients(cases, dtype), 1e-13 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("spikes", [False, True])
def test_tiles(spikes):
    """Pixels, taps and channels that fill no tile; groups, parts, and taps of several blocks."""
    stage = Stage(CROSS, (9, 6), (5, 6), 32, 36, (2, 1))
    cases = [(stage, *operands(stage, 5, "float32", spikes), tile) for tile in TILES]
    check(cases, gradients(cases, "float32"), 1e-5)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_tensor_cores(precision):
    """Products of rounded operands, exactly but for the sums' rounding."""
    pack = 1 if precision == "tf32" else 2
    stage = Stage(CROSS, (9, 6), (5, 6), 32, 36, (2, 1))
    cases = [
        (stage, *operands(stage, 5, "float32"), replace(tile, pack=pack)) for tile in FRAGMENTS
    ]
    for name, spikes in (
        ("cross", False),
        ("square strided, odd channels", False),
        ("point", True),
    ):
        s, images = STAGES[name]
        cases.append((s, *operands(s, images, "float32", spikes), None))
    found = gradients(cases, "float32", precision)
    small = [
        (s, x if x.dtype == "uint8" else rounded(x, precision), rounded(dy, precision), tile)
        for s, x, dy, tile in cases
    ]
    check(small, found, 1e-5)
    for (stage, x, dy, _), got in zip(cases[: len(FRAGMENTS)], found, strict=False):
        exact = oracle(stage, x.astype("float64"), dy.astype("float64"))
        error = np.abs(got - exact).max() / np.abs(exact).max()
        assert 1e-5 < error < 2.0 ** -BITS[precision]


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "fp32"), ("float64", "fp32"), ("float32", "bf16")]
)
def test_default_tiles(dtype, precision):
    """They fit, and have many threads; where there are few channels, all taps are one block's."""
    gpu = gpu_of(get_target("cuda:arch=sm_90").tvm_target)
    for taps, channels, size, x_dtype in (
        (CROSS, (24, 24), 48, dtype),
        (SQUARE, (2, 64), 48, dtype),
        (POINT, (512, 164), 6, "uint8"),
        (SQUARE, (512, 512), 4, "uint8"),
        (POINT, (4096, 1024), 1, dtype),
    ):
        stage = Stage(taps, (size, size), (size, size), *channels)
        tile = default_grad_tile(stage, 768, dtype, x_dtype, precision, gpu)
        assert 64 <= tile.threads <= 256
        assert tile.shared_elements() * (8 if dtype == "float64" else 4) <= gpu.shared
        assert (tile.taps == len(taps)) == (max(channels) < 100 or taps == POINT)


def test_training_step():
    """A network's gradients with ``precision=``: those to weights are rounded too."""
    torch.manual_seed(0)
    model = Time(nn.Conv2d(3, 8, 3, 2, 1))
    target = emulated({"precision": "bf16"})
    emulator.enable(order="both")
    x = torch.randn(2, 1, 3, 6, 5)
    program = against_autograd(model, x, 2e-2, target, tvm.cuda(0))
    emulator.check()
    script = program.lowered.script()
    assert "ttsnn_mma_bf16_words" in script
    assert "ttsnn_word_bf16" in script


def test_taps_are_chosen_without_branches():
    """Of a chain of selects nvcc makes a copy of every fetch for each tap, for minutes."""
    gpu = gpu_of(get_target("cuda:arch=sm_90").tvm_target)
    stage = Stage(SQUARE, (32, 32), (32, 32), 3, 64)
    kernel = weight_grad(stage, 4, "float32", gpu, tile=GradTile(1, 3, 16, 4, 4, 8, 64, 2))
    assert "Select" not in kernel.script()
