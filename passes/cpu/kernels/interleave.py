"""Joins the phases of a strided convolution's input gradient into one image."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.stream import for_channels
from ttsnn.passes.tir.body import Body, i64, load, splat, vector
from ttsnn.passes.tir.finished import finished

__all__ = ["interleave"]


def interleave(
    shape: Sequence[int],
    strides: tuple[int, int],
    present: Sequence[tuple[int, int]],
    dtype: str,
    isa: Isa,
) -> PrimFunc:
    """The function (phases…, out): ``out[…, i·sh + p, j·sw + q, :] = phase[p, q][…, i, j, :]``.

    Args:
        shape: of the result [1, R, H, W, C].
        strides: (sh, sw).
        present: the (p, q) of the phases that are given; the others are zero.
        dtype: of all.
        isa: vector width.
    """
    _, images, height, width, channels = shape
    sh, sw = strides
    lanes = isa.lanes(dtype)
    b = Body()
    params, flat, sizes = [], {}, {}
    for p, q in present:
        size = (-(-(height - p) // sh), -(-(width - q) // sw))
        full = [i64(s) for s in (1, images, *size, channels)]
        params.append(tirx.decl_buffer(full, dtype, f"phase{p}{q}"))
        total = images * size[0] * size[1] * channels
        flat[p, q], sizes[p, q] = b.view(params[-1], total, dtype, f"flat{p}{q}"), size
    params.append(tirx.decl_buffer([i64(s) for s in shape], dtype, "out"))
    out = b.view(params[-1], images * height * width * channels, dtype, "out_flat")
    rows = -(-height // sh)
    with b.loop(images * rows, "row", "parallel") as r:
        image, i = b.bind(r // rows, "image"), b.bind(r % rows, "i")

        def pixel(p: int, q: int, j: Expr) -> None:
            to = b.bind(((image * height + i * sh + p) * width + j * sw + q) * channels, "to")

            def copy(c: Expr, n: int) -> None:
                value = splat(0.0, dtype, n)
                if (p, q) in flat:
                    h, w = sizes[p, q]
                    at = ((image * h + i) * w + j) * channels + c
                    value = load(flat[p, q], vector(at, n))
                b.store(out, value, vector(to + c, n))

            for_channels(b, channels, lanes, copy)

        for p in range(sh):
            with b.when(i * sh + p < height):
                for q in range(sw):
                    with b.loop(-(-(width - q) // sw), "j") as j:
                        pixel(p, q, j)
    return finished(b, params, "interleave")
