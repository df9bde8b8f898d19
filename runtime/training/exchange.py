"""Several processes training one network: ``torch.distributed`` over gloo, under torchrun."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from ttsnn.errors import DataError, first_line

__all__ = ["Exchange", "join"]


class Exchange:
    """This process's place among all, and what they do together.

    Attributes:
        rank: number of this process; 0 writes files.
        world: number of processes.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def mean(self, values: Mapping[Any, torch.Tensor]) -> None:
        """Replace tensors by their mean over all processes, in place; one message a dtype."""
        if self.world == 1:
            return
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for value in values.values():
            by_dtype.setdefault(value.dtype, []).append(value)
        for tensors in by_dtype.values():
            flat = torch.cat([t.reshape(-1) for t in tensors])
            dist.all_reduce(flat, op=dist.ReduceOp.SUM)
            flat /= self.world
            parts = flat.split([t.numel() for t in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.reshape(tensor.shape))

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join() -> Exchange:
    """Join the group that torchrun's environment describes; alone without one.

    Raises:
        DataError: the group cannot be reached.
    """
    if dist.is_available() and dist.is_initialized():
        return Exchange(dist.get_rank(), dist.get_world_size())
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        return Exchange()
    try:
        dist.init_process_group("gloo")
    except Exception as error:
        raise DataError(
            f"cannot join the group of {world} processes ({first_line(error)}); start them with "
            "torchrun"
        ) from error
    return Exchange(dist.get_rank(), dist.get_world_size())
