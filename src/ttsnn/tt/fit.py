"""Cores that fit a trained dense weight: TT-SVD, and least squares of the cross-shaped form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ttsnn.errors import PlanError
from ttsnn.tt.blas import one_blas_thread
from ttsnn.tt.cores import ConvCores
from ttsnn.tt.shapes import (
    Mode,
    check_conv_ranks,
    check_conv_shape,
    check_factors,
    check_linear_ranks,
    check_mode,
)
from ttsnn.tt.subspace import leading_eigenvectors, leading_left

__all__ = ["CrossFit", "cross_slices", "fit_conv", "fit_cross", "fit_linear", "tt_svd"]

# Singular values of htt's G4·G1 below this share of the largest are raised to it, since the
# spatial cores are divided by them.
_HALF_FLOOR = 1e-6


@one_blas_thread
def tt_svd(tensor: ArrayLike, ranks: Sequence[int]) -> list[NDArray]:
    """TT-SVD (Oseledets 2011, algorithm 1) with given ranks.

    Returns:
        Cores [r_{k−1}, n_k, r_k] in float64; all but the last have orthonormal columns. The
        squared error is at most the sum of the unfoldings' discarded squared singular values.
    """
    rest = np.asarray(tensor, dtype=np.float64)
    sizes = rest.shape
    cores, rank = [], 1
    for size, next_rank in zip(sizes[:-1], ranks, strict=True):
        matrix = rest.reshape(rank * size, -1)
        basis = leading_left(matrix, next_rank)
        cores.append(basis.reshape(rank, size, next_rank))
        rest, rank = basis.T @ matrix, next_rank
    cores.append(rest.reshape(rank, sizes[-1], 1))
    return cores


@dataclass(frozen=True)
class CrossFit:
    """``X_p ≈ left · core_p · rightᵀ`` for all taps p of a cross, with orthonormal columns.

    Attributes:
        left: [Cout, r3].
        core: [taps, r3, r1], the projections ``leftᵀ · X_p · right``.
        right: [Cin, r1].
        history: relative error of the weighted objective after the start and each iteration.
    """

    left: NDArray
    core: NDArray
    right: NDArray
    history: tuple[float, ...]


def cross_slices(weight: ArrayLike) -> NDArray:
    """The taps of the cross as matrices [taps, Cout, Cin]: the centre column from top to bottom,
    then the centre row without the centre from left to right; the centre is tap Kh // 2."""
    w = np.asarray(weight, dtype=np.float64)
    kh, kw = w.shape[2:]
    column = w[:, :, :, kw // 2]
    row = np.delete(w[:, :, kh // 2, :], kw // 2, axis=2)
    return np.ascontiguousarray(np.concatenate([column, row], axis=2).transpose(2, 0, 1))


@one_blas_thread
def fit_cross(
    slices: NDArray,
    r1: int,
    r3: int,
    *,
    weights: ArrayLike | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 30,
) -> CrossFit:
    """Minimise ``Σ_p weights_p · ‖X_p − L·A_p·Rᵀ‖²`` over L, A and R (a Tucker-2 form).

    Starts from the sequentially truncated HOSVD and refines by alternating least squares: L for
    fixed A and R, then A, then R, then A. After an A step, A_p = Lᵀ·X_p·R, and the least-squares
    L spans ``Σ_p X_p R Rᵀ X_pᵀ L``; so each step is two products and a QR, and as every step
    solves its block exactly, the error never rises.

    Args:
        slices: X [taps, Cout, Cin], float64.
        weights: one non-negative weight a tap; 1 by default.
        tolerance: stop when an iteration lowers the error by less than this share of it.
    """
    scale = np.ones(len(slices)) if weights is None else np.asarray(weights, dtype=np.float64)
    x = slices * np.sqrt(scale)[:, None, None]
    taps, cout, cin = x.shape
    total = float(np.sum(x * x))
    columns = np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(cout, taps * cin)

    def times_right(right: NDArray) -> NDArray:  # X_p·R as [Cout, taps·r1]
        return (columns.reshape(cout * taps, cin) @ right).reshape(cout, taps * r1)

    def times_left(left: NDArray) -> NDArray:  # Lᵀ·X_p as [r3·taps, Cin]
        return (left.T @ columns).reshape(r3 * taps, cin)

    def error_of(core: NDArray) -> float:
        kept = float(np.sum(core * core))
        return float(np.sqrt(max(total - kept, 0.0) / total)) if total > 0 else 0.0

    right = _leading_right(x.reshape(taps * cout, cin), r1)
    left = leading_left(times_right(right), r3)
    projected = times_left(left)
    history = [error_of(projected @ right)]
    # Below 1e-7 the difference of squares in the error is rounding.
    while len(history) <= max_iterations and history[-1] > 1e-7:
        next_right, _ = np.linalg.qr(projected.T @ (projected @ right))
        image = times_right(next_right)
        next_left, _ = np.linalg.qr(image @ (image.T @ left))
        next_projected = times_left(next_left)
        error = error_of(next_projected @ next_right)
        if error > history[-1]:
            break
        left, right, projected = next_left, next_right, next_projected
        history.append(error)
        if history[-2] - error <= tolerance * error:
            break
    core = np.matmul(left.T, np.matmul(slices, right))
    return CrossFit(left, core, right, tuple(history))


def _leading_right(matrix: NDArray, count: int) -> NDArray:
    """Basis [n, count] of the leading right singular subspace of a matrix [m, n]."""
    if matrix.shape[0] < matrix.shape[1]:
        return leading_left(np.ascontiguousarray(matrix.T), count)
    return leading_eigenvectors(matrix.T @ matrix, count)


@one_blas_thread
def fit_conv(
    weight: ArrayLike,
    mode: Mode,
    ranks: Sequence[int] | int,
    *,
    timesteps: int | None = None,
    T: int | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 30,
) -> ConvCores:
    """Cores that fit a dense convolution's weight.

    stt: TT-SVD of the weight as [Cin, Kh, Kw, Cout]. ptt: the least-squares fit to the cross of
    the weight (:func:`fit_cross`); the other taps cannot be represented. Its centre tap is the
    mean of the two branches' and its split is free: both get the whole of it.

    htt minimises the sum over timesteps ``Σ_t ‖W − W_t‖²``, where W_t is the ptt weight on the
    first ``timesteps`` of ``T`` steps and G4·G1 on the centre tap on the others. With the
    spatial cores free this is the same problem with weight ``T`` on the centre tap and
    ``timesteps`` on the others: at the optimum G4·G1 *is* the fitted centre tap, and G1 and G4
    share its singular values evenly. (Those below 1e-6 of the largest are raised to that, which
    the other steps see as an error of that size.)

    Args:
        weight: [Cout, Cin, Kh, Kw], odd kernel; computed in float64.
        ranks: ``(r1, r2, r3)`` or one rank for all.
        timesteps, T: htt only: how many of the T steps run in full; half of them by default.
        tolerance, max_iterations: see :func:`fit_cross`.

    Returns:
        Cores in float64. The same arguments give the same cores, bit for bit.

    Raises:
        PlanError: kernel, ranks or timesteps do not fit.
    """
    w = np.asarray(weight, dtype=np.float64)
    mode = check_mode(mode)
    _, _, kh, kw = check_conv_shape(w.shape, mode)
    r1, r2, r3 = check_conv_ranks(w.shape, mode, ranks)
    if not np.isfinite(w).all():
        raise PlanError(f"weight {list(w.shape)} has values that are not finite: cannot fit cores")
    if mode == "stt":
        c1, c2, c3, c4 = tt_svd(w.transpose(1, 2, 3, 0), (r1, r2, r3))
        return ConvCores(
            np.ascontiguousarray(c1[0].T),
            np.ascontiguousarray(c2.transpose(2, 0, 1)),
            np.ascontiguousarray(c3.transpose(2, 0, 1)),
            np.ascontiguousarray(c4[:, :, 0].T),
        )
    slices, centre = cross_slices(w), kh // 2
    importance = np.ones(len(slices))
    if mode == "htt":
        steps, full = _htt_steps(timesteps, T)
        importance[:] = full
        importance[centre] = steps
    fit = fit_cross(
        slices, r1, r3, weights=importance, tolerance=tolerance, max_iterations=max_iterations
    )
    g1, core, g4 = fit.right.T, fit.core, fit.left
    if mode == "htt":
        g1, core, g4 = _split_centre(fit, centre)
    column = 2.0 * core[:kh]
    row = np.insert(2.0 * core[kh:], kw // 2, core[centre], axis=0)
    column[centre] = core[centre]
    return ConvCores(
        np.ascontiguousarray(g1),
        np.ascontiguousarray(column.transpose(1, 2, 0)),
        np.ascontiguousarray(row.transpose(1, 2, 0)),
        np.ascontiguousarray(g4),
    )


def _htt_steps(timesteps: int | None, T: int | None) -> tuple[int, int]:
    """``(T, timesteps)``; where unknown, half of the steps run in full."""
    steps = 2 if T is None else int(T)
    full = (steps + 1) // 2 if timesteps is None else int(timesteps)
    if T is None and timesteps is not None:
        steps = max(2 * full, 1)
    if steps < 1 or not 0 <= full <= steps:
        raise PlanError(f"htt: {full} of {steps} timesteps in full: give 0 ≤ timesteps ≤ T")
    return steps, full


def _split_centre(fit: CrossFit, centre: int) -> tuple[NDArray, NDArray, NDArray]:
    """G1, the taps' cores and G4 in the basis in which the centre tap's core is the identity.

    Only diagonal scalings divide by singular values, so no entry loses relative precision.
    """
    u, s, vt = np.linalg.svd(fit.core[centre])
    largest = s[0] if s.size and s[0] > 0 else 1.0
    root = np.sqrt(np.maximum(s, _HALF_FLOOR * largest))
    core = np.matmul(u.T, np.matmul(fit.core, vt.T)) / root[:, None] / root
    return root[:, None] * (vt @ fit.right.T), core, (fit.left @ u) * root


@one_blas_thread
def fit_linear(
    weight: ArrayLike,
    out_factors: Sequence[int],
    in_factors: Sequence[int],
    ranks: Sequence[int] | int,
) -> list[NDArray]:
    """Cores [r, m_k, n_k, r'] of a TT-matrix (Oseledets 2011) that fit a weight [out, in].

    TT-SVD of the weight reshaped to [m1·n1, m2·n2, …]; float64.

    Raises:
        PlanError: factors or ranks do not fit the weight.
    """
    w = np.asarray(weight, dtype=np.float64)
    m, n = check_factors(w.shape, out_factors, in_factors)
    r = check_linear_ranks(m, n, ranks)
    if not np.isfinite(w).all():
        raise PlanError(f"weight {list(w.shape)} has values that are not finite: cannot fit cores")
    count = len(m)
    order = [axis for k in range(count) for axis in (k, count + k)]
    tensor = w.reshape(*m, *n).transpose(order).reshape([a * b for a, b in zip(m, n)])
    return [
        np.ascontiguousarray(core.reshape(core.shape[0], m[k], n[k], core.shape[2]))
        for k, core in enumerate(tt_svd(tensor, r))
    ]
