"""PyTorch as published code runs: stateless layers step by step in a loop over time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ttsnn.models import TimeModule, set_time_execution
from ttsnn.runtime.peers.base import PeerUnavailable

__all__ = ["prepare"]


def prepare(
    network: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path
) -> Callable[[], torch.Tensor]:
    """The network with its time loop unfolded."""
    if not any(isinstance(m, TimeModule) for m in network.modules()):
        raise PeerUnavailable("the network is not built of ttsnn.models' layers over time")
    set_time_execution(network, "loop")

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return network(x)

    return call
