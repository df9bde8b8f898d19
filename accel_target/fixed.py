"""Fixed-point numbers: what the accelerator's words do to values."""

from __future__ import annotations

import numpy as np

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.isa import Format
from ttsnn.accel_target.sim.memory import Rounding

__all__ = ["fixed_point", "rounded"]


def rounded(value: np.ndarray, bits: int, fraction: int) -> np.ndarray:
    """The nearest numbers of two's complement with ``fraction`` of ``bits`` behind the point.

    ``min(max(round(x · 2^f), −2^(b−1)), 2^(b−1) − 1) / 2^f``: halves go to the even neighbour, what
    is too large becomes the largest. Exact in float64 up to 53 bits; NaN becomes 0.
    """
    scale = np.ldexp(1.0, fraction)
    whole = np.rint(np.nan_to_num(value, posinf=np.inf, neginf=-np.inf) * scale)
    limit = np.ldexp(1.0, bits - 1)
    return np.clip(whole, -limit, limit - 1) / scale


def fixed_point(arch: Architecture) -> Rounding | None:
    """What writing to a buffer does to values; None where the architecture computes in floats.

    Spikes are 0 or 1 and stay. Statistics (sums of batch norms, the loss) have 32 bits with a
    point that moves, and stay as well.
    """
    words = arch.words
    if words.number_format == "float":
        return None
    widths = {
        Format.WEIGHT: (words.weight, words.fraction.weight),
        Format.ACTIVATION: (words.activation, words.fraction.activation),
        Format.ACCUMULATOR: (words.accumulator, words.fraction.accumulator),
        Format.GRADIENT: (words.gradient, words.fraction.gradient),
    }

    def rounding(value: np.ndarray, number_format: int) -> np.ndarray:
        width = widths.get(Format(number_format))
        return value if width is None else rounded(value, *width)

    return rounding
