"""Shapes and ranks of tensor-train layers: what is allowed, and what a rank is clipped to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

from ttsnn.errors import PlanError

__all__ = [
    "MODES",
    "Mode",
    "check_conv_ranks",
    "check_conv_shape",
    "check_factors",
    "check_linear_ranks",
    "check_mode",
    "clip_conv_ranks",
    "clip_linear_ranks",
    "conv_core_shapes",
    "factorize_sizes",
    "linear_core_shapes",
]

Mode = Literal["stt", "ptt", "htt"]
MODES: tuple[Mode, ...] = ("stt", "ptt", "htt")


def check_mode(mode: str) -> Mode:
    """The mode itself; PlanError where it is not one of :data:`MODES`."""
    if mode not in MODES:
        raise PlanError(f"unknown mode {mode!r} of a TT convolution: use one of {', '.join(MODES)}")
    return cast(Mode, mode)


def check_conv_shape(shape: Sequence[int], mode: Mode) -> tuple[int, int, int, int]:
    """``(Cout, Cin, Kh, Kw)`` of a weight that ``mode`` can factorise.

    Kernels are odd, since ptt and htt need a centre tap and stt is kept interchangeable with
    them. A 1×1 kernel has no spatial cores to run in parallel: only stt (then a plain low-rank
    product) takes it.

    Raises:
        PlanError: the shape is not that of a convolution that the mode can factorise.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise PlanError(
            f"a convolution's weight has the shape [Cout, Cin, Kh, Kw], got {list(shape)}"
        )
    cout, cin, kh, kw = (int(s) for s in shape)
    if kh % 2 == 0 or kw % 2 == 0:
        raise PlanError(
            f"weight {[cout, cin, kh, kw]}: an even kernel has no centre tap; "
            "leave this layer dense (drop it from the plan)"
        )
    if kh == kw == 1 and mode != "stt":
        raise PlanError(
            f"weight {[cout, cin, kh, kw]}: a 1×1 kernel has no spatial cores for mode {mode!r}; "
            "leave this layer dense, or give it mode 'stt'"
        )
    return cout, cin, kh, kw


def clip_conv_ranks(
    shape: Sequence[int], mode: Mode, ranks: Sequence[int] | int
) -> tuple[int, int, int]:
    """The largest ranks ``(r1, r2, r3)`` not above ``ranks`` that the weight's shape can use.

    A rank above the number of rows or columns of the unfolding that it cuts adds parameters but
    no functions. ptt has r2 = r3 (both branches end in the same space) and htt r1 = r2 = r3
    (its other steps run G4·G1); of unequal ranks the smallest is taken there.

    Args:
        shape: [Cout, Cin, Kh, Kw].
        ranks: one rank for all three, or ``(r1, r2, r3)``; each at least 1.
    """
    cout, cin, kh, kw = check_conv_shape(shape, mode)
    r1, r2, r3 = [ranks] * 3 if isinstance(ranks, int) else [int(r) for r in ranks]
    if min(r1, r2, r3) < 1:
        raise PlanError(f"ranks {(r1, r2, r3)}: a TT-rank is at least 1")
    while True:
        before = (r1, r2, r3)
        if mode == "stt":
            r1 = min(r1, cin, kh * r2)
            r2 = min(r2, kh * r1, kw * r3)
            r3 = min(r3, cout, kw * r2)
        else:
            taps = kh + kw - 1
            r = min(r2, r3)
            r1, r = min(r1, cin, taps * r), min(r, cout, taps * r1)
            if mode == "htt":
                r1 = r = min(r1, r)
            r2 = r3 = r
        if (r1, r2, r3) == before:
            return r1, r2, r3


def check_conv_ranks(
    shape: Sequence[int], mode: Mode, ranks: Sequence[int] | int
) -> tuple[int, int, int]:
    """``(r1, r2, r3)`` as given; PlanError where the shape or the mode does not allow them."""
    given = (ranks,) * 3 if isinstance(ranks, int) else tuple(int(r) for r in ranks)
    if len(given) != 3:
        raise PlanError(f"a TT convolution has three ranks r1, r2, r3, got {list(given)}")
    allowed = clip_conv_ranks(shape, mode, given)
    if allowed != given:
        raise PlanError(
            f"ranks {list(given)} do not fit a {mode} convolution with weight {list(shape)}: "
            f"use {list(allowed)}"
        )
    return allowed


def conv_core_shapes(
    shape: Sequence[int], mode: Mode, ranks: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of G1 [r1, Cin], G2 [r2, r1, Kh], G3 [r3, r2 (stt) or r1, Kw], G4 [Cout, r3]."""
    cout, cin, kh, kw = (int(s) for s in shape)
    r1, r2, r3 = ranks
    return (r1, cin), (r2, r1, kh), (r3, r2 if mode == "stt" else r1, kw), (cout, r3)


def factorize_sizes(size: int, count: int) -> tuple[int, ...]:
    """``count`` factors of ``size``, ascending and as equal as the prime factors allow.

    512 in 3 gives (8, 8, 8), 101 in 2 gives (1, 101). The factors minimise their sum, which is
    what the cores of a TT-matrix of equal ranks pay for.
    """
    if size < 1 or count < 1:
        raise PlanError(f"cannot factorise {size} into {count} factors: both are at least 1")
    best: tuple[int, ...] = (1,) * (count - 1) + (size,)

    def search(rest: int, left: int, low: int, chosen: tuple[int, ...]) -> None:
        nonlocal best
        if left == 1:
            if rest >= low and sum(chosen) + rest < sum(best):
                best = (*chosen, rest)
            return
        for f in range(low, round(rest ** (1 / left)) + 1):
            if rest % f == 0:
                search(rest // f, left - 1, f, (*chosen, f))

    search(size, count, 1, ())
    return best


def check_factors(
    shape: Sequence[int], out_factors: Sequence[int], in_factors: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The factors as tuples; PlanError where they do not multiply to the weight's [out, in]."""
    if len(shape) != 2 or min(shape) < 1:
        raise PlanError(f"a linear layer's weight has the shape [out, in], got {list(shape)}")
    m, n = tuple(int(f) for f in out_factors), tuple(int(f) for f in in_factors)
    if len(m) != len(n) or not m:
        raise PlanError(
            f"factors {list(m)} (out) and {list(n)} (in): give equally many of both, at least one"
        )
    if min(m) < 1 or min(n) < 1 or math.prod(m) != shape[0] or math.prod(n) != shape[1]:
        raise PlanError(
            f"factors {list(m)} (out) × {list(n)} (in) do not multiply to the weight's "
            f"{list(shape)}"
        )
    return m, n


def clip_linear_ranks(
    out_factors: Sequence[int], in_factors: Sequence[int], ranks: Sequence[int] | int
) -> tuple[int, ...]:
    """The largest ranks between the cores, not above ``ranks``, that the factors can use."""
    dims = [m * n for m, n in zip(out_factors, in_factors, strict=True)]
    r = [ranks] * (len(dims) - 1) if isinstance(ranks, int) else [int(v) for v in ranks]
    if len(r) != len(dims) - 1:
        raise PlanError(f"{len(dims)} cores have {len(dims) - 1} ranks between them, got {r}")
    if r and min(r) < 1:
        raise PlanError(f"ranks {r}: a TT-rank is at least 1")
    full = [1, *r, 1]
    for k in range(1, len(dims)):
        full[k] = min(full[k], full[k - 1] * dims[k - 1])
    for k in range(len(dims) - 1, 0, -1):
        full[k] = min(full[k], full[k + 1] * dims[k])
    return tuple(full[1:-1])


def check_linear_ranks(
    out_factors: Sequence[int], in_factors: Sequence[int], ranks: Sequence[int] | int
) -> tuple[int, ...]:
    """The ranks as given; PlanError where the factors do not allow them."""
    allowed = clip_linear_ranks(out_factors, in_factors, ranks)
    given = (ranks,) * len(allowed) if isinstance(ranks, int) else tuple(int(r) for r in ranks)
    if allowed != given:
        raise PlanError(
            f"ranks {list(given)} do not fit a TT-matrix with factors {list(out_factors)} × "
            f"{list(in_factors)}: use {list(allowed)}"
        )
    return allowed


def linear_core_shapes(
    out_factors: Sequence[int], in_factors: Sequence[int], ranks: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """Shapes [r, m_k, n_k, r'] of a TT-matrix's cores; the outer ranks are 1."""
    full = [1, *ranks, 1]
    return [
        (full[k], m, n, full[k + 1])
        for k, (m, n) in enumerate(zip(out_factors, in_factors, strict=True))
    ]
