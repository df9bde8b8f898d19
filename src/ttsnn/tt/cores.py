"""Cores of tensor-train layers, the dense weights that they stand for, and errors of a fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ttsnn.tt.shapes import Mode, check_mode

__all__ = [
    "ConvCores",
    "FitErrors",
    "conv_errors",
    "cross_part",
    "reconstruct_conv",
    "reconstruct_linear",
    "relative_error",
]


@dataclass(frozen=True)
class ConvCores:
    """The four cores of a TT convolution.

    Attributes:
        g1: [r1, Cin], the first 1×1 convolution.
        g2: [r2, r1, Kh], the vertical convolution.
        g3: [r3, r2, Kw], the horizontal convolution; [r3, r1, Kw] in ptt and htt, where it runs
            beside g2 and not after it.
        g4: [Cout, r3], the last 1×1 convolution.
    """

    g1: NDArray
    g2: NDArray
    g3: NDArray
    g4: NDArray

    def __iter__(self) -> Iterator[NDArray]:
        return iter((self.g1, self.g2, self.g3, self.g4))

    def astype(self, dtype: str) -> ConvCores:
        """The cores rounded to another dtype."""
        return ConvCores(*(np.ascontiguousarray(g, dtype=dtype) for g in self))

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(g.size for g in self)


def reconstruct_conv(cores: ConvCores, mode: Mode, *, full: bool = True) -> NDArray:
    """The dense weight [Cout, Cin, Kh, Kw] that a chain of cores computes.

    stt: ``W[o,i,y,x] = Σ G4[o,c] G3[c,b,x] G2[b,a,y] G1[a,i]``.
    ptt and htt: ``½·G4·G2[:,:,y]·G1`` on the centre column plus ``½·G4·G3[:,:,x]·G1`` on the
    centre row, zero elsewhere.

    Args:
        full: False gives the weight of htt's other timesteps, ``G4·G1`` on the centre tap.
    """
    mode = check_mode(mode)
    g1, g2, g3, g4 = (np.asarray(g) for g in cores)
    if mode == "stt":
        return np.einsum("oc,cbx,bay,ai->oiyx", g4, g3, g2, g1, optimize=True)
    kh, kw = g2.shape[2], g3.shape[2]
    weight = np.zeros((g4.shape[0], g1.shape[1], kh, kw), dtype=g1.dtype)
    if mode == "htt" and not full:
        weight[:, :, kh // 2, kw // 2] = g4 @ g1
        return weight
    weight[:, :, :, kw // 2] += 0.5 * np.einsum("ob,bay,ai->oiy", g4, g2, g1, optimize=True)
    weight[:, :, kh // 2, :] += 0.5 * np.einsum("ob,bax,ai->oix", g4, g3, g1, optimize=True)
    return weight


def reconstruct_linear(cores: Sequence[ArrayLike]) -> NDArray:
    """The dense weight [Πm, Πn] of a TT-matrix with cores [r, m_k, n_k, r'].

    ``W[(m1…md), (n1…nd)] = Π_k G_k[:, m_k, n_k, :]``.
    """
    out = np.asarray(cores[0])[0]
    for core in cores[1:]:
        out = np.einsum("mnr,rpqs->mpnqs", out, np.asarray(core), optimize=True)
        m, p, n, q, s = out.shape
        out = out.reshape(m * p, n * q, s)
    return out[..., 0]


def cross_part(weight: ArrayLike) -> NDArray:
    """The weight [Cout, Cin, Kh, Kw] with all taps outside its centre row and column zeroed."""
    weight = np.asarray(weight)
    kh, kw = weight.shape[2:]
    out = np.zeros_like(weight)
    out[:, :, kh // 2, :] = weight[:, :, kh // 2, :]
    out[:, :, :, kw // 2] = weight[:, :, :, kw // 2]
    return out


def relative_error(reference: ArrayLike, approximation: ArrayLike) -> float:
    """``‖reference − approximation‖ / ‖reference‖`` (Frobenius); 0 where both are zero."""
    a = np.asarray(reference, dtype=np.float64)
    difference = float(np.linalg.norm(a - np.asarray(approximation, dtype=np.float64)))
    norm = float(np.linalg.norm(a))
    if norm == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / norm


@dataclass(frozen=True)
class FitErrors:
    """Relative errors of a fit, each in the Frobenius norm.

    Attributes:
        weight: against the whole dense weight; for ptt and htt it cannot fall below the share
            of the weight that lies outside the cross.
        cross: ptt and htt: against the cross-shaped part of the dense weight.
        half: htt: the weight of the other timesteps, a centre tap, against the whole weight.
    """

    weight: float
    cross: float | None = None
    half: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain dict for reports."""
        return {"weight": self.weight, "cross": self.cross, "half": self.half}


def conv_errors(weight: ArrayLike, cores: ConvCores, mode: Mode) -> FitErrors:
    """Errors of a convolution's cores against the dense weight [Cout, Cin, Kh, Kw]."""
    w = np.asarray(weight, dtype=np.float64)
    full = reconstruct_conv(cores, mode)
    if mode == "stt":
        return FitErrors(relative_error(w, full))
    half = None
    if mode == "htt":
        half = relative_error(w, reconstruct_conv(cores, mode, full=False))
    return FitErrors(relative_error(w, full), relative_error(cross_part(w), full), half)
