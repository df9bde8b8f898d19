"""Tensor-train convolution as a PyTorch function and operator.

:func:`tt_conv2d` computes with plain PyTorch, so autograd, channels-last memory and
``torch.compile`` work as for any other layer. While ``torch.export`` traces a model it calls the
operator ``ttsnn::tt_conv2d`` instead, which stays one node, also after ``run_decompositions``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttsnn.errors import ModelImportError

__all__ = ["centre_padding", "conv2d_padded", "tt_conv2d"]

MODES = ("stt", "ptt", "htt")


def conv2d_padded(
    x: Tensor,
    weight: Tensor,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolution with padding (top, left, bottom, right); negative padding crops."""
    top, left, bottom, right = padding
    if top == bottom and left == right and top >= 0 and left >= 0:
        return F.conv2d(x, weight, None, tuple(strides), (top, left), tuple(dilation))
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, None, tuple(strides), 0, tuple(dilation))


def centre_padding(
    kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """Padding of a 1×1 kernel that samples where the centre tap of ``kernel`` samples."""
    top, left, bottom, right = padding
    ch, cw = (k // 2 * d for k, d in zip(kernel, dilation, strict=True))
    return top - ch, left - cw, bottom - ch, right - cw


def _chain(
    x: Tensor,
    cores: Sequence[Tensor],
    mode: str,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """All four cores of an stt or ptt layer on ``x`` [M, C, H, W]."""
    g1, g2, g3, g4 = cores
    top, left, bottom, right = padding
    h = F.conv2d(x, g1[:, :, None, None])
    vertical, horizontal = g2[:, :, :, None], g3[:, :, None, :]
    if mode == "stt":
        h = conv2d_padded(h, vertical, (strides[0], 1), (top, 0, bottom, 0), (dilation[0], 1))
        h = conv2d_padded(h, horizontal, (1, strides[1]), (0, left, 0, right), (1, dilation[1]))
    else:
        c_top, c_left, c_bottom, c_right = centre_padding(
            (g2.shape[2], g3.shape[2]), padding, dilation
        )
        column = conv2d_padded(h, vertical, strides, (top, c_left, bottom, c_right), dilation)
        row = conv2d_padded(h, horizontal, strides, (c_top, left, c_bottom, right), dilation)
        h = (column + row) * 0.5
    return F.conv2d(h, g4[:, :, None, None])


def _conv2d_impl(
    x: Tensor,
    cores: Sequence[Tensor],
    mode: str,
    timesteps: int,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    if x.dim() == 4:
        return _chain(x, cores, mode, strides, padding, dilation)
    steps = x.shape[0]
    full = steps if mode != "htt" or timesteps < 0 else min(timesteps, steps)
    parts = []
    if full:
        parts.append(_chain(x[:full].flatten(0, 1), cores, mode, strides, padding, dilation))
    if full < steps:
        g1, g2, g3, g4 = cores
        pads = centre_padding((g2.shape[2], g3.shape[2]), padding, dilation)
        h = conv2d_padded(x[full:].flatten(0, 1), g1[:, :, None, None], strides, pads, (1, 1))
        parts.append(F.conv2d(h, g4[:, :, None, None]))
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y.reshape(x.shape[:2] + y.shape[1:])


def check_conv2d(
    x: Tensor,
    cores: Sequence[Tensor],
    mode: str,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Raise :class:`ModelImportError` unless operands and attributes fit together."""
    g1, g2, g3, g4 = cores
    shapes = ", ".join(str(list(g.shape)) for g in cores)
    if mode not in MODES:
        raise ModelImportError(f"tt_conv2d: mode {mode!r} is unknown; use one of {MODES}")
    if [g.dim() for g in cores] != [2, 3, 3, 2]:
        raise ModelImportError(f"tt_conv2d: cores need 2, 3, 3 and 2 axes, got shapes {shapes}")
    if mode == "stt":
        fits = g2.shape[1] == g1.shape[0] and g3.shape[1] == g2.shape[0]
    else:
        fits = g2.shape[:2] == g3.shape[:2] and g2.shape[1] == g1.shape[0]
    if not fits or g4.shape[1] != g3.shape[0]:
        raise ModelImportError(f"tt_conv2d: ranks of the {mode} cores {shapes} do not chain")
    if mode != "stt" and (g2.shape[2] % 2 == 0 or g3.shape[2] % 2 == 0):
        raise ModelImportError(
            f"tt_conv2d: {mode} needs odd kernels, got {g2.shape[2]}×{g3.shape[2]}; use stt"
        )
    if x.dim() != 5 and (x.dim() != 4 or mode == "htt"):
        wanted = "[T, N, C, H, W]" + ("" if mode == "htt" else " or [N, C, H, W]")
        raise ModelImportError(f"tt_conv2d ({mode}): input must be {wanted}, got {list(x.shape)}")
    if x.shape[-3] != g1.shape[1]:
        raise ModelImportError(
            f"tt_conv2d: input {list(x.shape)} has {x.shape[-3]} channels, "
            f"core g1 {list(g1.shape)} wants {g1.shape[1]}"
        )
    if len(strides) != 2 or len(padding) != 4 or len(dilation) != 2:
        raise ModelImportError("tt_conv2d: wants 2 strides, 4 paddings and 2 dilations")


@torch.library.custom_op("ttsnn::tt_conv2d", mutates_args=())
def _tt_conv2d_op(
    x: Tensor,
    g1: Tensor,
    g2: Tensor,
    g3: Tensor,
    g4: Tensor,
    *,
    mode: str,
    timesteps: int,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    y = _conv2d_impl(x, (g1, g2, g3, g4), mode, timesteps, strides, padding, dilation)
    return y.contiguous()


@_tt_conv2d_op.register_fake
def _tt_conv2d_fake(x, g1, g2, g3, g4, *, mode, timesteps, strides, padding, dilation):
    check_conv2d(x, (g1, g2, g3, g4), mode, strides, padding, dilation)
    top, left, bottom, right = padding
    height = x.shape[-2] + top + bottom - dilation[0] * (g2.shape[2] - 1) - 1
    width = x.shape[-1] + left + right - dilation[1] * (g3.shape[2] - 1) - 1
    sizes = (height // strides[0] + 1, width // strides[1] + 1)
    return x.new_empty((*x.shape[:-3], g4.shape[0], *sizes))


def _conv2d_context(ctx, inputs, keyword_only_inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.attrs = keyword_only_inputs


def _conv2d_backward(ctx, grad):
    a = ctx.attrs
    with torch.enable_grad():
        x, *cores = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        y = _conv2d_impl(
            x, cores, a["mode"], a["timesteps"], a["strides"], a["padding"], a["dilation"]
        )
        return torch.autograd.grad(y, [x, *cores], grad, allow_unused=True)


_tt_conv2d_op.register_autograd(_conv2d_backward, setup_context=_conv2d_context)


def tt_conv2d(
    x: Tensor,
    g1: Tensor,
    g2: Tensor,
    g3: Tensor,
    g4: Tensor,
    *,
    mode: str = "stt",
    timesteps: int = -1,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Convolution by a chain of four tensor-train cores, without bias.

    stt: ``G4(G3(G2(G1 x)))``; ptt: ``G4(½ (G2(h) + G3(h)))`` with ``h = G1 x``, G2 on the centre
    column and G3 on the centre row of the kernel; htt: ptt on the first ``timesteps`` steps,
    ``G4(G1 x)`` at the centre tap on the others.

    Args:
        x: [T, N, Cin, H, W], or [N, Cin, H, W] with T folded into N or absent (not for htt).
        g1: [r1, Cin].
        g2: [r2, r1, Kh] (ptt, htt: [r, r1, Kh]).
        g3: [r3, r2, Kw] (ptt, htt: [r, r1, Kw]).
        g4: [Cout, r3].
        mode: "stt", "ptt" or "htt".
        timesteps: leading steps that run in full (htt); -1 means all.
        strides, dilation: of the whole convolution, (vertical, horizontal).
        padding: (top, left, bottom, right).

    Returns:
        [T, N, Cout, Ho, Wo] or [N, Cout, Ho, Wo].

    Raises:
        ModelImportError: operands and attributes do not fit together.
    """
    if torch.compiler.is_exporting():
        return torch.ops.ttsnn.tt_conv2d(
            x,
            g1,
            g2,
            g3,
            g4,
            mode=mode,
            timesteps=timesteps,
            strides=list(strides),
            padding=list(padding),
            dilation=list(dilation),
        )
    cores = (g1, g2, g3, g4)
    check_conv2d(x, cores, mode, strides, padding, dilation)
    return _conv2d_impl(x, cores, mode, timesteps, strides, padding, dilation)
