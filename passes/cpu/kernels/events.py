"""Event-driven first stage: add the weights of the channels that spike.

The dense form multiplies every weight by a zero or a one. Here a pixel's spikes are bits
(:mod:`~ttsnn.passes.cpu.kernels.masks`); the row of weights of each bit that is one is added to
sums in registers, tap by tap, in the order of channels. So the sums are those of the dense form
to the bit, but for the sign of a zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx import Var

from ttsnn.passes.cpu.kernels.masks import WORD, active, mask_words
from ttsnn.passes.cpu.kernels.register_tile import Pixels, RegisterTile, pick
from ttsnn.passes.cpu.kernels.tiles import StageTile
from ttsnn.passes.tir.body import i64, load, vector

__all__ = ["ONE_PIXEL", "add_events", "wide_panels"]

ONE_PIXEL = StageTile(1, 1, 1, 1, False)
"""Each pixel has its own channels that spike."""


def wide_panels(panels: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Neighbouring panels (first channel, width) put together, up to ``most`` channels: a bit is
    found once for all of them."""
    out: list[tuple[int, int]] = []
    for start, width in panels:
        if out and out[-1][1] + width <= most:
            out[-1] = (out[-1][0], out[-1][1] + width)
        else:
            out.append((start, width))
    return out


def add_events(
    acc: RegisterTile,
    masks: Pixels,
    tap_offsets: Sequence[int],
    channels: int,
    weight: Var,
    places: Sequence[tuple[int, int]],
) -> None:
    """Add the weights of a pixel's spikes to a tile of one pixel.

    Args:
        acc: the sums.
        masks: words of spikes; those of tap ``j`` are ``tap_offsets[j]`` behind the pixel's own.
        channels: number of input channels.
        weight: flat weights.
        places: for each vector of the tile (its place in row 0 of the weights, distance of rows).
    """
    b, pixel = acc.body, (i64(0), i64(0), i64(0))
    with b.loop(len(tap_offsets), "tap") as tap, b.loop(mask_words(channels), "word") as word:
        at = masks.base + pick(tap, tap_offsets) + word
        first = b.bind(tap * channels + word * WORD, "first")
        with active(b, load(masks.buffer, at)) as bit:
            row = b.bind(first + bit, "row")
            for (c, n), (place, stride) in zip(acc.vectors, places, strict=True):
                value = load(weight, vector(row * stride + place, n))
                acc.set(acc.get(pixel, c, n) + value, pixel, c, n)
