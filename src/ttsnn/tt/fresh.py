"""Fresh cores for training from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ttsnn.tt.cores import ConvCores
from ttsnn.tt.shapes import (
    Mode,
    check_conv_ranks,
    check_conv_shape,
    check_factors,
    check_linear_ranks,
    check_mode,
    conv_core_shapes,
    linear_core_shapes,
)

__all__ = ["fresh_conv", "fresh_linear"]


def fresh_conv(
    shape: Sequence[int],
    mode: Mode,
    ranks: Sequence[int] | int,
    *,
    seed: int | Sequence[int] = 0,
    gain: float = 2.0,
) -> ConvCores:
    """Normal cores whose chain maps unit-variance inputs to variance ``gain``.

    A Kaiming-initialised dense layer has Var W = gain / fan_in, so its outputs have ``gain``
    times the inputs' variance. Here each core preserves variance and the last adds the gain:
    Var G1 = 1/Cin, Var G2 = 1/(r1·Kh), Var G3 = 1/(r2·Kw), Var G4 = gain/r3. ptt and htt halve
    the sum of two independent branches, which would halve the variance: G2 and G3 get twice
    the variance there. htt's other steps, G4·G1, have the same output variance.

    Args:
        shape: [Cout, Cin, Kh, Kw] of the dense weight.
        seed: anything that ``numpy.random.default_rng`` takes.

    Returns:
        Cores in float64.
    """
    mode = check_mode(mode)
    _, cin, kh, kw = check_conv_shape(shape, mode)
    r1, r2, r3 = check_conv_ranks(shape, mode, ranks)
    branch = 1.0 if mode == "stt" else 2.0
    before_g3 = r2 if mode == "stt" else r1
    variances = (1 / cin, branch / (r1 * kh), branch / (before_g3 * kw), gain / r3)
    rng = np.random.default_rng(seed)
    shapes = conv_core_shapes(shape, mode, (r1, r2, r3))
    return ConvCores(*(rng.normal(0.0, np.sqrt(v), s) for v, s in zip(variances, shapes)))


def fresh_linear(
    shape: Sequence[int],
    out_factors: Sequence[int],
    in_factors: Sequence[int],
    ranks: Sequence[int] | int,
    *,
    seed: int | Sequence[int] = 0,
    gain: float = 2.0,
) -> list[NDArray]:
    """Normal cores of a TT-matrix whose outputs have ``gain`` times the inputs' variance.

    An entry of the dense weight is a sum over all rank indices of products of d entries, so
    with equal core variances v it has variance ``Πr · v^d``, which is set to gain / Πn.

    Args:
        shape: [out, in] of the dense weight.
    """
    m, n = check_factors(shape, out_factors, in_factors)
    r = check_linear_ranks(m, n, ranks)
    paths = float(np.prod(r)) if r else 1.0
    std = (gain / (shape[1] * paths)) ** (0.5 / len(m))
    rng = np.random.default_rng(seed)
    return [rng.normal(0.0, std, s) for s in linear_core_shapes(m, n, r)]
