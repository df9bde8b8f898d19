"""The spiking neuron over time as a PyTorch function and operator.

:func:`lif` computes with plain PyTorch (any device, ``torch.compile``), with the backward pass
through time written out. While ``torch.export`` traces a model it calls the operator
``ttsnn::lif`` instead, which stays one node, also after ``run_decompositions``. The equations
are those of :mod:`ttsnn.lif_attrs`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ttsnn.errors import ModelImportError
from ttsnn.lif_attrs import LifAttrs, surrogate

__all__ = ["lif", "lif_backward", "lif_scan", "lif_with"]


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


class _Lif(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, v0, decay, threshold, a):
        spikes, v_last, membranes = lif_scan(x, v0, decay, threshold, a)
        ctx.save_for_backward(x, v0, decay, threshold, *membranes)
        ctx.attrs = a
        ctx.set_materialize_grads(False)
        # a reset that changes nothing would return the saved membrane itself
        return spikes, v_last.clone() if v_last is membranes[-1] else v_last

    @staticmethod
    def backward(ctx, g_spikes, g_last):
        x, v0, decay, threshold, *membranes = ctx.saved_tensors
        gx, gv, gd, gt = lif_backward(
            x, v0, decay, threshold, ctx.attrs, g_spikes, g_last, membranes
        )
        return gx, None if v0 is None else gv, gd, gt, None


@torch.library.custom_op("ttsnn::lif", mutates_args=())
def _lif_op(
    x: Tensor,
    v0: Tensor | None,
    decay_tensor: Tensor | None,
    threshold_tensor: Tensor | None,
    *,
    decay: float,
    gain: float,
    tau: float,
    v_threshold: float,
    v_reset: float,
    reset: str,
    fire: str,
    reset_timing: str,
    form: str,
    detach_reset: bool,
    surrogate: str,
    surrogate_width: float,
    decay_operand: bool,
    threshold_operand: bool,
) -> tuple[Tensor, Tensor]:
    given = locals()
    attrs = LifAttrs(**{f.name: given[f.name] for f in fields(LifAttrs)})
    spikes, v_last, _ = lif_scan(x, v0, decay_tensor, threshold_tensor, attrs)
    return spikes.contiguous(), v_last.clone()


@_lif_op.register_fake
def _lif_fake(x, v0, decay_tensor, threshold_tensor, **attrs):
    return x.new_empty(x.shape), x.new_empty(x.shape[1:])


def _op_context(ctx, inputs, keyword_only_inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.attrs = LifAttrs(**keyword_only_inputs)


def _op_backward(ctx, g_spikes, g_last):
    x, v0, decay, threshold = ctx.saved_tensors
    gx, gv, gd, gt = lif_backward(x, v0, decay, threshold, ctx.attrs, g_spikes, g_last)
    return gx, None if v0 is None else gv, gd, gt


_lif_op.register_autograd(_op_backward, setup_context=_op_context)


def _check(x: Tensor, v0: Tensor | None, decay: Tensor | None, threshold: Tensor | None) -> None:
    if not x.is_floating_point():
        raise ModelImportError(f"lif: input must be floating point, got {x.dtype}")
    if x.dim() < 2 or (isinstance(x.shape[0], int) and x.shape[0] < 1):
        raise ModelImportError(
            f"lif: input must be [T, N, …] with T ≥ 1, got {list(x.shape)}; "
            "add the time axis with unsqueeze(0)"
        )
    if v0 is not None and v0.shape != x.shape[1:]:
        raise ModelImportError(
            f"lif: membrane v0 {list(v0.shape)} does not fit input {list(x.shape)}; "
            f"it must be {list(x.shape[1:])}"
        )
    for name, value in (("decay", decay), ("v_threshold", threshold)):
        if value is None:
            continue
        fits = value.dim() <= x.dim() - 1 and all(
            size in (1, wanted)
            for size, wanted in zip(reversed(value.shape), reversed(x.shape), strict=False)
        )
        if not fits:
            raise ModelImportError(
                f"lif: {name} {list(value.shape)} cannot be broadcast to the membrane "
                f"{list(x.shape[1:])}"
            )


def lif_with(
    x: Tensor,
    v0: Tensor | None,
    decay: Tensor | None,
    threshold: Tensor | None,
    attrs: LifAttrs,
) -> tuple[Tensor, Tensor]:
    """:func:`lif` with its settings in one object and its tensor settings as operands."""
    _check(x, v0, decay, threshold)
    if torch.compiler.is_exporting():
        return torch.ops.ttsnn.lif(x, v0, decay, threshold, **attrs.to_dict())
    tensors = [t for t in (x, v0, decay, threshold) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Lif.apply(x, v0, decay, threshold, attrs)
    spikes, v_last, _ = lif_scan(x, v0, decay, threshold, attrs)
    return spikes, v_last


def lif(
    x: Tensor,
    v0: Tensor | None = None,
    *,
    decay: float | Tensor = 0.25,
    v_threshold: float | Tensor = 0.5,
    **attrs: Any,
) -> tuple[Tensor, Tensor]:
    """Spiking neuron over all timesteps; equations in :mod:`ttsnn.lif_attrs`.

    Args:
        x: input current [T, N, …], floating point.
        v0: membrane before the first step [N, …]; zero where None.
        decay: number, or a tensor that broadcasts to [N, …] (may be learnable); in the Euler
            forms a tensor is the rate that stands for 1/tau.
        v_threshold: number or tensor, likewise.
        attrs: the other settings of :class:`ttsnn.lif_attrs.LifAttrs`.

    Returns:
        Spikes [T, N, …], 0 or 1 in x's dtype, and the membrane [N, …] from which the next step
        would start.

    Raises:
        ModelImportError: shapes or dtypes do not fit.
        TTSNNError: a setting is out of its range.
    """
    for name in ("decay_operand", "threshold_operand"):
        attrs.pop(name, None)
    operands: list[Tensor | None] = []
    for name, key, value in (
        ("decay", "decay_operand", decay),
        ("v_threshold", "threshold_operand", v_threshold),
    ):
        if isinstance(value, Tensor):
            operands.append(value)
            attrs[key] = True
        else:
            operands.append(None)
            attrs[name] = value
    return lif_with(x, v0, operands[0], operands[1], LifAttrs.from_dict(attrs))
