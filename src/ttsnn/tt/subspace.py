"""Leading singular subspaces by Gram matrices.

SciPy is imported where it is used: bundles have the networks without it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ttsnn.tt.blas import one_blas_thread

__all__ = ["leading_eigenvectors", "leading_left", "singular_values"]


def leading_eigenvectors(gram: NDArray, count: int) -> NDArray:
    """Orthonormal eigenvectors [n, count] of the largest eigenvalues of a symmetric matrix.

    Signs are fixed (largest entry positive), so that the result is a function of the matrix.
    """
    import scipy.linalg

    n = gram.shape[0]
    _, vectors = scipy.linalg.eigh(
        gram, subset_by_index=(n - count, n - 1), check_finite=False, driver="evr"
    )
    vectors = vectors[:, ::-1]
    pivots = vectors[np.abs(vectors).argmax(axis=0), np.arange(count)]
    return vectors * np.where(pivots < 0, -1.0, 1.0)


def leading_left(matrix: NDArray, count: int) -> NDArray:
    """Orthonormal basis [m, count] of the leading left singular subspace of a matrix [m, n].

    The eigenvectors of the m×m Gram matrix cost a fraction of an SVD. Squaring loses nothing
    that matters: with all m directions kept the basis is square and orthogonal, so that
    projecting on it is exact, and a truncated direction is misjudged only where its singular
    value is below 1e-8 of the largest. A tall matrix is reduced by QR first, so that its full
    rank n is exact, too.
    """
    m, n = matrix.shape
    if m > n:
        q, r = np.linalg.qr(matrix)
        return q @ leading_eigenvectors(r @ r.T, count)
    return leading_eigenvectors(matrix @ matrix.T, count)


@one_blas_thread
def singular_values(matrix: NDArray) -> NDArray:
    """Singular values, descending, from the smaller Gram matrix.

    Good to about 1e-8 of the largest, which is ample for choosing ranks.
    """
    import scipy.linalg

    m, n = matrix.shape
    gram = matrix @ matrix.T if m <= n else matrix.T @ matrix
    values = scipy.linalg.eigvalsh(gram, check_finite=False)[::-1]
    return np.sqrt(np.maximum(values, 0.0))
