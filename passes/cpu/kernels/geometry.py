"""Which rows and columns of each intermediate result a strip of the output needs.

A strip is ``rows`` consecutive rows of a layer's output. Going backwards, each stage needs a
few more rows of its input (the halo), at a start that is affine in the strip's. Rows are counted
*relative* to that start, so that everything but the clipping at the image's edge is static.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.sym import Analyzer

from ttsnn.passes.layers.config import LayerConfig, Stage

__all__ = ["Region", "chain_regions", "clip", "copies_input", "leaves_image"]


@dataclass(frozen=True)
class Region:
    """Part of one [H, W, C] array that a strip touches.

    Attributes:
        height, width: size of the whole array.
        scale, shift: the first row is ``scale · h0 + shift`` for a strip that starts at row
            ``h0`` of the output; it may lie outside the image.
        rows: how many rows.
        left, right: columns of zeros beside the array.
    """

    height: int
    width: int
    scale: int
    shift: int
    rows: int
    left: int
    right: int

    @property
    def padded_width(self) -> int:
        """Columns with the zeros beside them."""
        return self.left + self.width + self.right

    def start(self, h0: Expr | int) -> Expr | int:
        """First row for a strip that starts at ``h0``."""
        return h0 * self.scale + self.shift


def chain_regions(stages: Sequence[Stage], rows: int) -> list[Region]:
    """Regions of the chain's input, of each intermediate result, and of the output's strip."""
    last = stages[-1]
    out = [Region(*last.out_size, 1, 0, rows, 0, 0)]
    for stage in reversed(stages):
        after = out[0]
        (sh, sw), (height, width) = stage.strides, stage.in_size
        dh = [tap[0] for tap in stage.taps]
        dw = [tap[1] for tap in stage.taps]
        reach = (stage.out_size[1] - 1) * sw + max(dw) - (width - 1)
        out.insert(
            0,
            Region(
                height,
                width,
                scale=after.scale * sh,
                shift=after.shift * sh + min(dh),
                rows=(after.rows - 1) * sh + max(dh) - min(dh) + 1,
                left=max(0, -min(dw)),
                right=max(0, reach),
            ),
        )
    return out


def leaves_image(stage: Stage) -> bool:
    """Whether some tap of the stage reads outside its input."""
    for axis in (0, 1):
        offsets = [tap[axis] for tap in stage.taps]
        far = (stage.out_size[axis] - 1) * stage.strides[axis] + max(offsets)
        if min(offsets) < 0 or far > stage.in_size[axis] - 1:
            return True
    return False


def copies_input(config: LayerConfig, stage: Stage) -> bool:
    """Whether a chain that begins with ``stage`` reads a bordered copy of its input.

    It does where a tap leaves the image. Bytes that several taps read are made numbers once.
    """
    return leaves_image(stage) or (config.byte_x and len(stage.taps) > 1)


def clip(region: Region, h0: Expr) -> tuple[Expr, Expr]:
    """Relative rows [low, high) of a region that lie inside the image."""
    start = region.start(h0)
    simplify = Analyzer().simplify
    low = simplify(tirx.max(tirx.IntImm("int64", 0), 0 - start))
    high = simplify(tirx.min(tirx.IntImm("int64", region.rows), region.height - start))
    return low, high
