"""Rank of a noisy matrix by analytic empirical variational Bayesian matrix factorisation."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ttsnn.tt.subspace import singular_values

__all__ = ["evbmf_rank"]


@functools.lru_cache(maxsize=256)
def _tau_threshold(alpha: float) -> float:
    """Zero of ``Φ(τ) + Φ(τ/α)`` with ``Φ(z) = log(1+z)/z − ½`` (near 2.5129·√α)."""
    from scipy.optimize import brentq

    def phi(z: float) -> float:
        return np.log1p(z) / z - 0.5

    guess = 2.5129 * np.sqrt(alpha)
    return float(brentq(lambda t: phi(t) + phi(t / alpha), guess * 1e-3, guess * 1e3))


def _free_energy(x: NDArray, alpha: float, x_threshold: float) -> NDArray:
    """``ψ(x) = x − log x + [x > x̲]·(log(τ+1) + α·log(τ/α+1) − τ)`` with
    ``τ(x) = ½(x − (1+α) + √((x − (1+α))² − 4α))``."""
    shifted = x - (1.0 + alpha)
    tau = 0.5 * (shifted + np.sqrt(np.maximum(shifted**2 - 4.0 * alpha, 0.0)))
    tau = np.maximum(tau, 0.0)
    signal = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    return x - np.log(x) + np.where(x > x_threshold, signal, 0.0)


def evbmf_rank(matrix: ArrayLike, *, noise_variance: float | None = None) -> int:
    """How many singular values of a matrix stand out of its noise.

    The global analytic solution of empirical VBMF (Nakajima, Sugiyama, Babacan and Tomioka,
    "Global analytic solution of fully-observed variational Bayesian matrix factorization",
    JMLR 14, 2013). With L ≤ M rows and columns and α = L/M, a singular value γ is kept where
    ``γ² > M·σ²·x̲``, ``x̲ = (1 + τ̲)(1 + α/τ̲)``. An unknown noise variance σ² is the minimiser of
    ``Σ_h ψ(γ_h² / (M·σ²))`` (:func:`_free_energy`) within the paper's bounds; the function may
    have several minima, so it is sampled before it is refined.

    Args:
        matrix: [L, M] of any orientation.
        noise_variance: σ² where it is known.

    Returns:
        The rank; 0 where nothing stands out, as with freshly initialised weights.
    """
    a = np.asarray(matrix, dtype=np.float64)
    rows, cols = sorted(a.shape)
    if rows == 0 or not a.any():
        return 0
    gamma2 = singular_values(a) ** 2
    alpha = rows / cols
    tau = _tau_threshold(alpha)
    x_threshold = (1.0 + tau) * (1.0 + alpha / tau)
    if noise_variance is None:
        noise_variance = _estimate_noise(gamma2, rows, cols, alpha, x_threshold)
    return int(np.count_nonzero(gamma2 > cols * noise_variance * x_threshold))


def _estimate_noise(
    gamma2: NDArray, rows: int, cols: int, alpha: float, x_threshold: float
) -> float:
    """σ² that minimises the free energy within the bounds of the paper's theorem 5."""
    upper = float(gamma2.sum()) / (rows * cols)
    most = min(int(np.ceil(rows / (1.0 + alpha))) - 1, rows - 1)
    lower = max(
        gamma2[most] / (cols * x_threshold),
        gamma2[most:].sum() / (cols * (rows - most)),
    )
    # An exactly low-rank matrix has no noise at all: stay above rounding.
    lower = max(float(lower), upper * 1e-14)
    if lower >= upper:
        return upper
    from scipy.optimize import minimize_scalar

    positive = np.maximum(gamma2, gamma2[0] * 1e-30)

    def energy(log_variance: float | NDArray) -> NDArray:
        x = positive / (cols * np.exp(np.atleast_1d(log_variance))[:, None])
        return _free_energy(x, alpha, x_threshold).sum(axis=1)

    grid = np.linspace(np.log(lower), np.log(upper), 257)
    best = int(energy(grid).argmin())
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(lambda v: float(energy(v)[0]), bounds=bounds, method="bounded")
    return float(np.exp(found.x))
