"""Tensor-train layers as modules: drop-in for ``nn.Conv2d`` and ``nn.Linear``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ttsnn import tt
from ttsnn.errors import ModelImportError
from ttsnn.models.tt_conv_op import tt_conv2d
from ttsnn.models.tt_linear_op import tt_linear

__all__ = ["TTConv2d", "TTLinear", "conv_padding"]


def conv_padding(
    padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """Padding as (top, left, bottom, right) from what ``nn.Conv2d`` takes, or from four numbers.

    Raises:
        ModelImportError: not an int, a pair, four ints, ``"same"`` or ``"valid"``.
    """
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        top, left = (s // 2 for s in total)
        return top, left, total[0] - top, total[1] - left
    if isinstance(padding, str):
        raise ModelImportError(f"TTConv2d: unknown padding {padding!r}; use 'same' or 'valid'")
    pads = (padding,) if isinstance(padding, int) else tuple(int(p) for p in padding)
    if len(pads) not in (1, 2, 4):
        raise ModelImportError(
            f"TTConv2d: padding must be one number, (vertical, horizontal) or "
            f"(top, left, bottom, right), got {padding!r}"
        )
    return cast(tuple[int, int, int, int], pads * (4 // len(pads)))


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(pair) != 2 or min(pair) < 1:
        raise ModelImportError(f"TTConv2d: {name} must be one or two numbers ≥ 1, got {value!r}")
    return cast(tuple[int, int], pair)


class TTConv2d(nn.Module):
    """Convolution by four tensor-train cores; see :func:`ttsnn.models.tt_conv2d`.

    Input [T, N, Cin, H, W], or [T·N, Cin, H, W] with time folded into the batch; the output has
    the same axes. Parameters ``g1`` … ``g4`` (and ``bias``), shapes in
    :class:`ttsnn.tt.ConvCores`; fresh cores are drawn from PyTorch's generator.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as in
            ``nn.Conv2d``; padding may also be (top, left, bottom, right). Kernels are odd.
        ranks: one TT-rank, or (r1, r2, r3).
        mode: "stt", "ptt" or "htt".
        timesteps: htt: how many leading steps run in full; None: half of them, rounded up.
        T: htt on folded input: number of timesteps.

    Raises:
        PlanError: ranks or kernel do not fit the mode.
        ModelImportError: other arguments are wrong, or the input does not fit.
    """

    g1: Tensor
    g2: Tensor
    g3: Tensor
    g4: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        ranks: int | Sequence[int],
        mode: str = "stt",
        *,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        timesteps: int | None = None,
        T: int | None = None,
    ) -> None:
        super().__init__()
        self.mode = tt.check_mode(mode)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair(kernel_size, "kernel_size")
        self.stride = _pair(stride, "stride")
        self.dilation = _pair(dilation, "dilation")
        self.padding = conv_padding(padding, self.kernel_size, self.dilation)
        self.timesteps, self.T = timesteps, T
        # where the network calls the layer once a timestep: which one comes next
        self.next_step: int | None = None
        shape = (out_channels, in_channels, *self.kernel_size)
        self.ranks = tt.check_conv_ranks(shape, self.mode, ranks)
        seed = int(torch.randint(2**31, ()))
        for name, core in zip(
            ("g1", "g2", "g3", "g4"), tt.fresh_conv(shape, self.mode, self.ranks, seed=seed)
        ):
            value = torch.from_numpy(core).to(torch.get_default_dtype())
            self.register_parameter(name, nn.Parameter(value))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @property
    def cores(self) -> tt.ConvCores:
        """The cores as NumPy arrays (copies)."""
        return tt.ConvCores(
            *(g.detach().cpu().numpy().copy() for g in (self.g1, self.g2, self.g3, self.g4))
        )

    @property
    def takes_time(self) -> bool:
        """Whether the layer treats timesteps differently, and so must see the time axis."""
        return self.mode == "htt"

    def full_steps(self, steps: int) -> int:
        """How many of ``steps`` timesteps run in full."""
        if self.mode != "htt":
            return steps
        return (steps + 1) // 2 if self.timesteps is None else min(self.timesteps, steps)

    def forward(self, x: Tensor) -> Tensor:
        if self.takes_time and x.dim() == 4:
            if self.next_step is not None and self.T is not None:
                self.next_step += 1
                return self.step(x, self.next_step - 1, self.T)
            if self.T is None or x.shape[0] % self.T:
                raise ModelImportError(
                    f"TTConv2d (htt): input {list(x.shape)} has time folded into its batch and "
                    f"the layer's T is {self.T}; set T, or give [T, N, C, H, W]"
                )
            return self(x.reshape(self.T, -1, *x.shape[1:])).flatten(0, 1)
        return self._run(x, self.full_steps(x.shape[0]) if self.takes_time else -1)

    def step(self, x: Tensor, t: int, steps: int) -> Tensor:
        """Timestep ``t`` of ``steps`` alone: [N, Cin, H, W] → [N, Cout, Ho, Wo]."""
        if not self.takes_time:
            return self(x)
        return self._run(x.unsqueeze(0), -1 if t < self.full_steps(steps) else 0).squeeze(0)

    def _run(self, x: Tensor, timesteps: int) -> Tensor:
        y = tt_conv2d(
            x,
            self.g1,
            self.g2,
            self.g3,
            self.g4,
            mode=self.mode,
            timesteps=timesteps,
            strides=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"ranks={self.ranks}, mode={self.mode!r}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
            + (f", timesteps={self.timesteps}" if self.mode == "htt" else "")
        )


class TTLinear(nn.Module):
    """Linear layer whose weight is a TT-matrix; see :func:`ttsnn.models.tt_linear`.

    Input [..., in_features] → [..., out_features]. Parameters ``cores.0`` … with shapes
    [r, m_k, n_k, r'] (and ``bias``); fresh cores are drawn from PyTorch's generator.

    Args:
        in_factors: n1…nd, whose product is the number of input features.
        out_factors: m1…md, likewise for the output.
        ranks: one TT-rank, or the d − 1 ranks between the cores.
        bias: whether to add a bias.

    Raises:
        PlanError: factors and ranks do not fit.
    """

    def __init__(
        self,
        in_factors: Sequence[int],
        out_factors: Sequence[int],
        ranks: int | Sequence[int],
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = int(np.prod(in_factors)), int(np.prod(out_factors))
        shape = (self.out_features, self.in_features)
        self.out_factors, self.in_factors = tt.check_factors(shape, out_factors, in_factors)
        self.ranks = tt.check_linear_ranks(self.out_factors, self.in_factors, ranks)
        seed = int(torch.randint(2**31, ()))
        cores = tt.fresh_linear(shape, self.out_factors, self.in_factors, self.ranks, seed=seed)
        self.cores = nn.ParameterList(
            nn.Parameter(torch.from_numpy(c).to(torch.get_default_dtype())) for c in cores
        )
        self.bias = nn.Parameter(torch.zeros(self.out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = tt_linear(x, list(self.cores))
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return (
            f"in_factors={self.in_factors}, out_factors={self.out_factors}, ranks={self.ranks}, "
            f"bias={self.bias is not None}"
        )
