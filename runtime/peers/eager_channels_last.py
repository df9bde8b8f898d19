"""PyTorch with time folded and all tensors channels last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ttsnn.runtime.peers import eager

__all__ = ["prepare"]


def prepare(
    network: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path
) -> Callable[[], torch.Tensor]:
    """The network with channels-last weights; a 4-D input is made channels last too."""
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return eager.prepare(network, x, threads, folder)
