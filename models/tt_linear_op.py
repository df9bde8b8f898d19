"""Linear layer by a TT-matrix as a PyTorch function and operator, as in ``tt_conv_op``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttsnn.errors import ModelImportError

__all__ = ["tt_linear"]


def _linear_impl(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    lead = x.shape[:-1]
    # z keeps the axes [batch, rank · n_k, later n's and earlier m's], so that every core is
    # one matrix product.
    z = x.reshape(-1, cores[0].shape[0] * cores[0].shape[2], _numel(cores[1:], 2))
    for k, core in enumerate(cores):
        r, m, n, r_next = core.shape
        matrix = core.permute(0, 2, 3, 1).reshape(r * n, r_next * m)
        z = z.transpose(1, 2) @ matrix  # [batch, rest, r'·m]
        rest = z.shape[1]
        z = z.reshape(-1, rest, r_next, m).transpose(1, 2)  # [batch, r', rest, m]
        if k + 1 < len(cores):
            n_next = cores[k + 1].shape[2]
            z = z.reshape(-1, r_next * n_next, rest // n_next * m)
    return z.reshape((*lead, _numel(cores, 1)))


def _numel(cores: Sequence[Tensor], axis: int) -> int:
    """Product of one axis over the cores."""
    total = 1
    for core in cores:
        total *= core.shape[axis]
    return total


def check_linear(x: Tensor, cores: Sequence[Tensor]) -> None:
    """Raise :class:`ModelImportError` unless the cores chain and fit ``x``."""
    shapes = ", ".join(str(list(g.shape)) for g in cores)
    if not cores or any(g.dim() != 4 for g in cores):
        raise ModelImportError(f"tt_linear: cores must be [r, m, n, r'], got {shapes or 'none'}")
    ranks = [1, *(g.shape[3] for g in cores)]
    if ranks[-1] != 1 or any(g.shape[0] != r for g, r in zip(cores, ranks[:-1], strict=True)):
        raise ModelImportError(f"tt_linear: ranks of the cores {shapes} do not chain from 1 to 1")
    if x.shape[-1] != _numel(cores, 2):
        raise ModelImportError(
            f"tt_linear: input {list(x.shape)} has {x.shape[-1]} features, "
            f"cores {shapes} want {_numel(cores, 2)}"
        )


@torch.library.custom_op("ttsnn::tt_linear", mutates_args=())
def _tt_linear_op(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    return _linear_impl(x, cores).contiguous()


@_tt_linear_op.register_fake
def _tt_linear_fake(x, cores):
    check_linear(x, cores)
    return x.new_empty((*x.shape[:-1], _numel(cores, 1)))


def _linear_context(ctx, inputs, output):
    x, cores = inputs
    ctx.save_for_backward(x, *cores)


def _linear_backward(ctx, grad):
    with torch.enable_grad():
        x, *cores = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        gx, *gcores = torch.autograd.grad(_linear_impl(x, cores), [x, *cores], grad)
    return gx, list(gcores)


_tt_linear_op.register_autograd(_linear_backward, setup_context=_linear_context)


def tt_linear(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Product with a TT-matrix, ``y = x Wᵀ`` with ``W[(m1…md), (n1…nd)] = Π_k G_k[m_k, n_k]``.

    Args:
        x: [..., n1·…·nd].
        cores: d tensors [r, m_k, n_k, r']; the first r and the last r' are 1.

    Returns:
        [..., m1·…·md].

    Raises:
        ModelImportError: the cores do not chain, or do not fit ``x``.
    """
    if torch.compiler.is_exporting():
        return torch.ops.ttsnn.tt_linear(x, list(cores))
    check_linear(x, cores)
    return _linear_impl(x, cores)
