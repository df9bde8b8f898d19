"""The spiking neuron's forward and backward pass over time, in plain PyTorch without autograd.

Equations and their order are those of :mod:`ttsnn.lif_attrs`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ttsnn.lif_attrs import LifAttrs, surrogate

__all__ = ["lif_backward", "lif_scan"]


def _fires(v: Tensor, threshold: float | Tensor, a: LifAttrs) -> Tensor:
    return v > threshold if a.fire == ">" else v >= threshold


def _reset(v: Tensor, fired: Tensor, threshold: float | Tensor, a: LifAttrs) -> Tensor:
    if a.reset == "hard":
        return v.masked_fill(fired, a.v_reset)
    if a.reset == "soft":
        return v - fired.to(v.dtype) * threshold
    return v


def _update(v: Tensor, x: Tensor, decay: Tensor | None, a: LifAttrs) -> Tensor:
    if a.form == "multiply":
        h = (a.decay if decay is None else decay) * v
        return h + x if a.gain == 1 else h + a.gain * x
    leak = v - a.rest
    if a.form == "euler":
        return v + ((x - leak) / a.tau if decay is None else (x - leak) * decay)
    return v - (leak / a.tau if decay is None else leak * decay) + x


def lif_scan(
    x: Tensor, v0: Tensor | None, decay: Tensor | None, threshold: Tensor | None, a: LifAttrs
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run the neuron over time, without autograd.

    Returns:
        Spikes [T, N, …], the last membrane [N, …], and the membrane of every step as it was
        compared with the threshold.
    """
    th = a.v_threshold if threshold is None else threshold
    v = torch.zeros_like(x[0]) if v0 is None else v0
    spikes = torch.empty_like(x)
    membranes = []
    for t in range(x.shape[0]):
        if a.reset_timing == "after_fire":
            h = _update(v, x[t], decay, a)
        elif a.reset_timing == "before_decay":
            h = _update(_reset(v, _fires(v, th, a), th, a), x[t], decay, a)
        else:
            h = _reset(_update(v, x[t], decay, a), _fires(v, th, a), th, a)
        fired = _fires(h, th, a)
        spikes[t] = fired
        v = _reset(h, fired, th, a) if a.reset_timing == "after_fire" else h
        membranes.append(h)
    return spikes, v, membranes


class _Gradients:
    """Sums of the gradients of one backward pass, and the derivatives of a step's parts."""

    def __init__(
        self, x: Tensor, decay: Tensor | None, threshold: Tensor | None, a: LifAttrs
    ) -> None:
        self.a, self.decay, self.threshold = a, decay, threshold
        self.th: float | Tensor = a.v_threshold if threshold is None else threshold
        self.g_decay = None if decay is None else torch.zeros_like(x[0])
        self.g_threshold = None if threshold is None else torch.zeros_like(x[0])

    def spike(self, v: Tensor, g: Tensor) -> Tensor:
        """Backward of ``fires(v)``."""
        g = g * surrogate(self.a.surrogate, v - self.th, self.a.surrogate_width, torch)
        if self.g_threshold is not None:
            self.g_threshold -= g
        return g

    def reset(self, v: Tensor, fired: Tensor, g: Tensor) -> tuple[Tensor, Tensor | None]:
        """Backward of ``reset(v, fired)``: gradients of v and (unless detached) of fired."""
        a = self.a
        if a.reset == "none":
            return g, None
        if a.reset == "hard":
            return g.masked_fill(fired, 0.0), None if a.detach_reset else g * (a.v_reset - v)
        if self.g_threshold is not None:
            self.g_threshold -= g * fired.to(g.dtype)
        return g, None if a.detach_reset else -(g * self.th)

    def update(self, v: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Backward of the membrane update: gradients of v and x."""
        a, decay = self.a, self.decay
        if a.form == "multiply":
            if self.g_decay is not None:
                self.g_decay += g * v
            return g * (a.decay if decay is None else decay), g if a.gain == 1 else g * a.gain
        part = g / a.tau if decay is None else g * decay
        if self.g_decay is not None:
            leak = v - a.rest
            self.g_decay += g * (x - leak if a.form == "euler" else -leak)
        return g - part, part if a.form == "euler" else g


def lif_backward(
    x: Tensor,
    v0: Tensor | None,
    decay: Tensor | None,
    threshold: Tensor | None,
    a: LifAttrs,
    g_spikes: Tensor | None,
    g_last: Tensor | None,
    membranes: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Surrogate gradient through time.

    Args:
        x, v0, decay, threshold, a: operands of the forward pass.
        g_spikes: gradient of the spikes [T, N, …], or None for zero.
        g_last: gradient of the last membrane [N, …], or None for zero.
        membranes: from :func:`lif_scan`; computed again where None.

    Returns:
        Gradients of x, v0, decay and threshold (None where there is no such operand).
    """
    if membranes is None:
        membranes = lif_scan(x, v0, decay, threshold, a)[2]
    first = torch.zeros_like(x[0]) if v0 is None else v0
    sums = _Gradients(x, decay, threshold, a)
    th = sums.th
    gx = torch.empty_like(x)
    gv = torch.zeros_like(x[0]) if g_last is None else g_last
    after_fire = a.reset_timing == "after_fire"
    for t in reversed(range(x.shape[0])):
        h = membranes[t]
        before = first if t == 0 else membranes[t - 1]  # membrane before its after-fire reset
        g_s = None if g_spikes is None else g_spikes[t]
        if after_fire:
            gv, g_reset = sums.reset(h, _fires(h, th, a), gv)
            if g_reset is not None:
                g_s = g_reset if g_s is None else g_s + g_reset
        gh = gv if g_s is None else gv + sums.spike(h, g_s)
        if after_fire:
            v = before if t == 0 else _reset(before, _fires(before, th, a), th, a)
            gv, gx[t] = sums.update(v, x[t], gh)
            continue
        fired = _fires(before, th, a)
        if a.reset_timing == "before_decay":
            g, gx[t] = sums.update(_reset(before, fired, th, a), x[t], gh)
            gv, g_reset = sums.reset(before, fired, g)
        else:
            g, g_reset = sums.reset(_update(before, x[t], decay, a), fired, gh)
            gv, gx[t] = sums.update(before, x[t], g)
        if g_reset is not None:
            gv = gv + sums.spike(before, g_reset)
    g_decay = None if decay is None else sums.g_decay.sum_to_size(decay.shape)  # type: ignore[union-attr]
    g_th = None if threshold is None else sums.g_threshold.sum_to_size(threshold.shape)  # type: ignore[union-attr]
    return gx, gv, g_decay, g_th
