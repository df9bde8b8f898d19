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
from ttsnn.lif_attrs import LifAttrs
from ttsnn.models.lif_scan import lif_backward, lif_scan

__all__ = ["lif", "lif_with"]


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
