"""Tensor trains as chains of convolutions: what each core is on the accelerator.

A core of ``tt.conv2d`` is a convolution already. A core of ``tt.linear`` is one too, of an image of
one row. Before core k [r, m_k, n_k, r'] the features lie in the order

    (n_k, n_{k+1} … n_d, m_1 … m_{k-1}, r),

the last index the fastest. Read as W · n_k pixels of r channels, with W = n_{k+1} … n_d m_1 …
m_{k-1}, the core is a convolution with n_k taps that lie W pixels apart: it makes W pixels of
m_k r' channels, which is the order before core k + 1. So nothing is ever moved. What one core makes
as (W, m_k r') the next reads as (W', r'), the same bytes in another width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ttsnn.accel_target.codegen.builder import Geometry
from ttsnn.accel_target.isa import MAX_OFFSET, Flag
from ttsnn.errors import TargetError
from ttsnn.ops import TTConvAttrs
from ttsnn.passes.contraction import chain_of
from ttsnn.passes.layers.config import Stage

__all__ = ["ConvTrain", "Core", "LinearTrain", "Link", "Train"]


@dataclass(frozen=True)
class Core:
    """One convolution of a chain.

    Attributes:
        geometry: of the convolution; its widths are those in which operand and result are read.
        shape: of its weight, [taps, input channels, output channels].
        rows: which rows of the weight are which rows of which core: (core, its row, rows, at).
        flags: of its instructions.
    """

    geometry: Geometry
    shape: tuple[int, int, int]
    rows: tuple[tuple[int, int, int, int], ...]
    flags: int = 0


Link = dict[str, Core]
"""Convolutions by name whose results are added: one, or the two branches of ptt."""

Shapes = Sequence[tuple[int, ...]]
"""Of the cores, as the network has them."""


@dataclass(frozen=True)
class ConvTrain:
    """``tt.conv2d``.

    Attributes:
        attrs: of the operator.
        merge_cross: both branches of ptt are one convolution.
    """

    attrs: TTConvAttrs
    merge_cross: bool

    def parts(self, steps: int) -> list[tuple[int, int, str]]:
        """(first timestep, timesteps, kind) of what runs alike; the kind is stt, ptt or half."""
        if self.attrs.mode != "htt":
            return [(0, steps, self.attrs.mode)]
        full = steps if self.attrs.timesteps < 0 else self.attrs.timesteps
        parts = [(0, full, "ptt"), (full, steps - full, "half")]
        return [p for p in parts if p[1]]

    def links(self, shapes: Shapes, size: tuple[int, int], kind: str) -> list[Link]:
        """The chain for an image of ``size``."""
        shapes = list(shapes)
        zeros = [np.broadcast_to(np.float32(0), s) for s in shapes]
        chain = chain_of(kind, self.attrs, zeros, size)
        out: list[Link] = []
        for name, (stage, _) in chain.items():
            if name != "cross":
                core = int(name[1]) - 1
                out.append({name: _core(stage, stage.taps, ((core, 0, len(stage.taps), 0),))})
                continue
            rows, columns = _branches(self.attrs, shapes)
            half = int(Flag.HALF)
            if self.merge_cross:
                at = {tap: i for i, tap in enumerate(stage.taps)}
                parts = [(1, 0, len(rows), at[rows[0]])]
                parts += [(2, k, 1, at[c]) for k, c in enumerate(columns)]
                out.append({name: _core(stage, stage.taps, tuple(parts), half)})
            else:
                out.append(
                    {
                        "g2": _core(stage, tuple(rows), ((1, 0, len(rows), 0),), half),
                        "g3": _core(stage, tuple(columns), ((2, 0, len(columns), 0),), half),
                    }
                )
        return out

    def result(self, links: list[Link]) -> tuple[int, int, int]:
        """Height, width, channels of what the chain makes."""
        last = next(iter(links[-1].values()))
        return (*last.geometry[5:7], last.shape[2])


def _branches(attrs: TTConvAttrs, shapes: Shapes) -> tuple[list, list]:
    """Taps of the vertical and of the horizontal branch, as ``chain_of`` has them."""
    kh, kw = shapes[1][2], shapes[2][2]
    (dh, dw), (top, left) = attrs.dilation, attrs.padding[:2]
    rows = [k * dh - top for k in range(kh)]
    columns = [k * dw - left for k in range(kw)]
    return [(r, columns[kw // 2]) for r in rows], [(rows[kh // 2], c) for c in columns]


def _core(stage: Stage, taps, parts, flags: int = 0) -> Core:
    geometry = (*stage.strides, tuple(taps), *stage.in_size, *stage.out_size)
    return Core(geometry, (len(taps), stage.in_channels, stage.out_channels), parts, flags)


@dataclass(frozen=True)
class LinearTrain:
    """``tt.linear`` on features in the network's order.

    Attributes:
        layer: its name, for messages.
    """

    layer: str

    def parts(self, steps: int) -> list[tuple[int, int, str]]:
        """All timesteps run alike."""
        return [(0, steps, "linear")]

    def links(self, shapes: Shapes, size: tuple[int, int], kind: str) -> list[Link]:
        """The chain: g1, g2, …

        Raises:
            TargetError: a core reads more pixels than a tap can reach.
        """
        rest = prod(s[2] for s in shapes)
        out: list[Link] = []
        for k, (r, m, n, after) in enumerate(shapes):
            if rest > MAX_OFFSET:
                raise TargetError(
                    f"target ttsnn-accel: layer {self.layer!r}, tt.linear: core {k} {shapes[k]} "
                    f"reads a row of {rest} pixels, the accelerator reaches {MAX_OFFSET}; leave "
                    "the layer dense in the plan (exclude it), or compile for cpu"
                )
            width, rest = rest, rest // n
            geometry = (1, 1, tuple((0, j * rest) for j in range(n)), 1, width, 1, rest)
            out.append({f"g{k + 1}": Core(geometry, (n, r, m * after), ((k, 0, n, 0),))})
            rest *= m
        return out

    def result(self, links: list[Link]) -> tuple[int, int, int]:
        """One pixel with all features."""
        (last,) = links[-1].values()
        return 1, 1, last.geometry[6] * last.shape[2]


Train = ConvTrain | LinearTrain
