"""Convolutions of a training program as chains of links: geometry, and how weights are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ttsnn.ops import TTConvAttrs
from ttsnn.passes.contraction import chain_of
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.training_kernels.weight_map import WeightMap

__all__ = ["Link", "Phase", "dense_link", "input_phases", "tt_links"]


@dataclass(frozen=True)
class Link:
    """One convolution of a chain.

    Attributes:
        stage: its geometry and channels.
        weight: how its taps are made of parameters.
        sources: which parameters of the layer's call these are.
        stored: channels that its input and its result have in memory. Intermediate results of
            a chain have whole half vectors, those beyond the rank are zero.
    """

    stage: Stage
    weight: WeightMap
    sources: tuple[int, ...]
    stored: tuple[int, int]

    @property
    def forward(self) -> Stage:
        """What computes the result as it is stored."""
        return replace(self.stage, out_channels=self.stored[1])

    @property
    def whole(self) -> Stage:
        """The convolution with all channels that its input and its result have in memory."""
        return replace(self.forward, in_channels=self.stored[0])


@dataclass(frozen=True)
class Phase:
    """Part of the gradient to the input: the pixels (i · sh + p, j · sw + q).

    Attributes:
        place: (p, q).
        stage: convolution of dy that gives them; None where they are zero.
        order: the forward's taps that take part, in the order of ``stage.taps``.
    """

    place: tuple[int, int]
    stage: Stage | None
    order: tuple[int, ...]


def dense_link(
    shape: Sequence[int],
    in_size: tuple[int, int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Link:
    """A dense convolution with a weight [Cout, Cin, Kh, Kw]."""
    cout, cin, kh, kw = shape
    (sh, sw), (top, left, bottom, right), (dh, dw) = strides, padding, dilation
    attrs = TTConvAttrs(strides=(sh, sw), padding=(top, left, bottom, right), dilation=(dh, dw))
    taps = [(y * dh - top, x * dw - left) for y in range(kh) for x in range(kw)]
    size = attrs.out_size(in_size, (kh, kw))
    stage = Stage(tuple(taps), in_size, size, cin, cout, attrs.strides)
    weight = WeightMap((tuple(shape),), tuple(((0, j),) for j in range(kh * kw)))
    return Link(stage, weight, (0,), (cin, cout))


def tt_links(
    kind: str,
    attrs: TTConvAttrs,
    shapes: Sequence[tuple[int, ...]],
    in_size: tuple[int, int],
    pad: int,
) -> list[Link]:
    """The chain of a ``tt.conv2d``: ``kind`` as in :data:`ttsnn.passes.contraction.CHAINS`.

    Args:
        kind: ``stt``, ``ptt`` or ``half``.
        attrs: of the operator.
        shapes: of g1…g4.
        in_size: height and width of the input.
        pad: ranks are rounded up to a multiple of it.
    """
    chain = chain_of(kind, attrs, [np.broadcast_to(np.float32(0), s) for s in shapes], in_size)
    links = [_tt_link(name, stage, attrs, shapes) for name, (stage, _) in chain.items()]
    last = len(links) - 1

    def stored(channels: int, is_rank: bool) -> int:
        return -(-channels // pad) * pad if is_rank else channels

    return [
        replace(
            link,
            stored=(
                stored(link.stage.in_channels, i > 0),
                stored(link.stage.out_channels, i < last),
            ),
        )
        for i, link in enumerate(links)
    ]


def _tt_link(
    name: str, stage: Stage, attrs: TTConvAttrs, shapes: Sequence[tuple[int, ...]]
) -> Link:
    if name != "cross":
        source = int(name[1]) - 1
        single = tuple(((0, j),) for j in range(len(stage.taps)))
        weight = WeightMap((tuple(shapes[source]),), single)
        return Link(stage, weight, (source,), (stage.in_channels, stage.out_channels))
    kh, kw = shapes[1][2], shapes[2][2]
    (dh, dw), (top, left) = attrs.dilation, attrs.padding[:2]
    rows = [k * dh - top for k in range(kh)]
    columns = [k * dw - left for k in range(kw)]
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {tap: [] for tap in stage.taps}
    for k, r in enumerate(rows):
        pairs[r, columns[kw // 2]].append((0, k))
    for k, c in enumerate(columns):
        pairs[rows[kh // 2], c].append((1, k))
    taps = tuple(tuple(pairs[tap]) for tap in stage.taps)
    weight = WeightMap((tuple(shapes[1]), tuple(shapes[2])), taps, 0.5)
    return Link(stage, weight, (1, 2), (stage.in_channels, stage.out_channels))


def input_phases(link: Link) -> list[Phase]:
    """The gradient of a link to its input, as it is stored, as stride-1 convolutions of dy.

    Input row r = i · sh + p is read by output row h under tap offset d where h · sh + d = r, so
    h = i + (p - d) / sh for the taps with p ≡ d (mod sh); likewise the columns. One phase for
    stride 1.
    """
    stage = link.stage
    (sh, sw), (height, width) = stage.strides, stage.in_size
    out = []
    for p in range(min(sh, height)):
        for q in range(min(sw, width)):
            order = tuple(
                k
                for k, (dh, dw) in enumerate(stage.taps)
                if (p - dh) % sh == 0 and (q - dw) % sw == 0
            )
            size = (-(-(height - p) // sh), -(-(width - q) // sw))
            taps = tuple(
                ((p - stage.taps[k][0]) // sh, (q - stage.taps[k][1]) // sw) for k in order
            )
            part = Stage(taps, stage.out_size, size, stage.out_channels, link.stored[0])
            out.append(Phase((p, q), part if order else None, order))
    return out
