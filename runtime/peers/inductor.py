"""``torch.compile`` with frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ttsnn.models import TimeModule, set_time_execution

__all__ = ["prepare"]


def prepare(
    network: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path
) -> Callable[[], torch.Tensor]:
    """Compile now (the first call does it), so that errors show here."""
    import torch._inductor.config as config

    if any(isinstance(m, TimeModule) for m in network.modules()):
        set_time_execution(network, "folded")
    torch._dynamo.reset()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    compiled = torch.compile(network)

    def call() -> torch.Tensor:
        with torch.no_grad():  # freezing wants no_grad rather than inference mode
            return compiled(x)

    with config.patch(freezing=True):
        call()
    return call
