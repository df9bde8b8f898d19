"""PyTorch as it is, with time folded into the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ttsnn.models import TimeModule, set_time_execution

__all__ = ["prepare"]


def prepare(
    network: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path
) -> Callable[[], torch.Tensor]:
    """The network in eval mode; threads are PyTorch's own setting."""
    if any(isinstance(m, TimeModule) for m in network.modules()):
        set_time_execution(network, "folded")

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return network(x)

    return call
