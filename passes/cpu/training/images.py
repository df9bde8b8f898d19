"""Values of a training program that are held channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tvm import relax

from ttsnn.passes.shapes import known_dims

__all__ = ["Image", "Normalised"]


@dataclass(frozen=True)
class Image:
    """A tensor [*lead, C, H, W] of the program.

    Attributes:
        expr: the same values as [1, R, H, W, C], R being the product of ``lead``.
        lead: leading sizes, (T · N,) or (T, N).
    """

    expr: relax.Var
    lead: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """R, H, W, C."""
        _, r, h, w, c = known_dims(self.expr)
        return r, h, w, c

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the program's tensor."""
        _, h, w, c = self.sizes
        return (*self.lead, c, h, w)

    def reshaped(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """``lead`` of a reshape that leaves C, H, W alone; None for any other."""
        if len(shape) < 4 or tuple(shape[-3:]) != self.shape[-3:]:
            return None
        lead = tuple(shape[:-3])
        return lead if prod(lead) == prod(self.lead) else None


@dataclass(frozen=True)
class Normalised:
    """A batch norm's result that its readers compute themselves.

    Attributes:
        x: what is normalised.
        channel: (gamma, beta, mean, 1/σ).
    """

    x: Image
    channel: tuple[relax.Expr, ...]
