"""Values of the neuron's instructions, [frames, …]; equations: :mod:`ttsnn.lif_attrs`."""

from __future__ import annotations

import numpy as np

from ttsnn.accel_target.isa import LIF_FORMS, LIF_RESETS, LIF_TIMINGS
from ttsnn.lif_attrs import FIRES, SURROGATES, LifAttrs, surrogate

__all__ = ["decode_lif", "encode_lif", "lif", "lif_back"]

_SURROGATES = tuple(SURROGATES)


def encode_lif(a: LifAttrs) -> tuple[int, tuple[float, ...]]:
    """Kind (low byte of the flags) and scalars of a neuron."""
    kind = (
        LIF_RESETS.index(a.reset)
        | LIF_TIMINGS.index(a.reset_timing) << 2
        | LIF_FORMS.index(a.form) << 4
        | FIRES.index(a.fire) << 6
    )
    number = float(_SURROGATES.index(a.surrogate))
    return kind, (a.decay, a.gain, a.tau, a.v_threshold, a.v_reset, a.surrogate_width, number)


def decode_lif(kind: int, scalars: np.ndarray) -> LifAttrs:
    """Inverse of :func:`encode_lif`; IndexError or TTSNNError for what is no neuron."""
    decay, gain, tau, threshold, reset, width, number, _ = scalars.tolist()
    return LifAttrs(
        decay=decay,
        gain=gain,
        tau=tau,
        v_threshold=threshold,
        v_reset=reset,
        surrogate_width=width,
        surrogate=_SURROGATES[int(number)],
        reset=LIF_RESETS[kind & 3],
        reset_timing=LIF_TIMINGS[kind >> 2 & 3],
        form=LIF_FORMS[kind >> 4 & 3],
        fire=FIRES[kind >> 6 & 1],
    )


def _reset(a: LifAttrs, v: np.ndarray, s: np.ndarray) -> np.ndarray:
    if a.reset == "hard":
        return np.where(s, v.dtype.type(a.v_reset), v)
    return v - s * v.dtype.type(a.v_threshold) if a.reset == "soft" else v


def _fires(a: LifAttrs, v: np.ndarray) -> np.ndarray:
    return v > a.v_threshold if a.fire == ">" else v >= a.v_threshold


def lif(a: LifAttrs, x: np.ndarray, v: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Spikes and surrogate derivatives like x (a rectangle's as 0 or 1), and the last membrane."""
    t = x.dtype.type
    spikes, slopes = np.zeros_like(x), np.zeros_like(x)
    v = np.zeros_like(x[0]) if v is None else v.astype(x.dtype)
    for k in range(x.shape[0]):
        before = _fires(a, v)
        if a.reset_timing == "before_decay":
            v = _reset(a, v, before)
        if a.form == "multiply":
            h = t(a.decay) * v + (x[k] if a.gain == 1.0 else t(a.gain) * x[k])
        elif a.form == "euler":
            h = v + (x[k] - (v - t(a.rest))) / t(a.tau)
        else:
            h = v - (v - t(a.rest)) / t(a.tau) + x[k]
        if a.reset_timing == "after_decay":
            h = _reset(a, h, before)
        s = _fires(a, h)
        spikes[k] = s
        slope = surrogate(a.surrogate, h - t(a.v_threshold), a.surrogate_width, np)
        slopes[k] = slope != 0 if a.surrogate == "rectangle" else slope
        v = _reset(a, h, s) if a.reset_timing == "after_fire" else h
    return spikes, slopes, v


def lif_back(a: LifAttrs, ds: np.ndarray, s: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Gradient to x, the spike that resets detached, reset after firing."""
    t = ds.dtype.type
    dx = np.zeros_like(ds)
    leak = a.decay if a.form == "multiply" else 1.0 - 1.0 / a.tau
    gain = {"multiply": a.gain, "euler": 1.0 / a.tau, "euler_raw_input": 1.0}[a.form]
    height = t(0.5 / a.surrogate_width) if a.surrogate == "rectangle" else t(1)
    dv = np.zeros_like(ds[0])
    for k in range(ds.shape[0] - 1, -1, -1):
        kept = dv * (1 - s[k]) if a.reset == "hard" else dv
        dh = ds[k] * slope[k] * height + kept
        dx[k] = dh * t(gain) if gain != 1.0 else dh
        dv = dh * t(leak)
    return dx
