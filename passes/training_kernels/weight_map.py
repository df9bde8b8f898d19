"""How the taps of a convolution are made of the elements of one or several parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.tir.body import i64, load, splat

__all__ = ["WeightMap"]


@dataclass(frozen=True)
class WeightMap:
    """``w[k, ci, co] = scale · Σ source[co, ci, j]`` over the (source, j) of tap k.

    Attributes:
        shapes: shape of each source, [Cout, Cin] or [Cout, Cin, kernel…]; j counts through the
            kernel's axes.
        taps: the (source, j) pairs of each tap.
        scale: factor of all.
    """

    shapes: tuple[tuple[int, ...], ...]
    taps: tuple[tuple[tuple[int, int], ...], ...]
    scale: float = 1.0

    @property
    def channels(self) -> tuple[int, int]:
        """(Cin, Cout) without padding."""
        return self.shapes[0][1], self.shapes[0][0]

    def element(self, sources: Sequence[Var], tap: int, ci: Expr, co: Expr, dtype: str) -> Expr:
        """Element of the weight; ``sources`` are flat."""
        total: Expr | None = None
        for index, j in self.taps[tap]:
            shape = self.shapes[index]
            kernel = prod(shape[2:])
            value = load(sources[index], (co * shape[1] + ci) * kernel + j)
            total = value if total is None else total + value
        assert total is not None
        return total if self.scale == 1.0 else splat(self.scale, dtype, 1) * total

    def declare(self, dtype: str) -> list[Var]:
        """Arguments for the sources."""
        return [
            tirx.decl_buffer([i64(s) for s in shape], dtype, f"g{i}")
            for i, shape in enumerate(self.shapes)
        ]
