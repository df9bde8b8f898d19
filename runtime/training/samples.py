"""Whatever a user trains on, as batches by sample index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttsnn.errors import DataError

__all__ = ["Samples", "as_samples", "check_labels"]


class Samples:
    """Samples and labels by index.

    Attributes:
        labels: int64 [n], None where they are known only with their samples.
    """

    def __init__(self, data: Any, batch_axis: int) -> None:
        self._data, self._axis = data, batch_axis
        labels = getattr(data, "labels", None)
        self.labels: np.ndarray | None = None
        if isinstance(data, tuple):
            labels = data[1]
        if isinstance(labels, (Tensor, np.ndarray)):
            self.labels = _int64(labels)

    def __len__(self) -> int:
        if isinstance(self._data, tuple):
            return len(self._data[1])
        return len(self._data)

    def batch(self, indices: np.ndarray, dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
        """Samples [N, C, H, W] or [T, N, C, H, W] in a dtype, and labels int64 [N]."""
        chosen = [int(i) for i in indices]
        if isinstance(self._data, tuple):
            x, y = self._data
            x, y = x.index_select(self._axis, torch.tensor(chosen)), y[chosen]
        elif hasattr(self._data, "batch"):
            x, y = self._data.batch(chosen)
        else:
            pairs = [self._data[i] for i in chosen]
            x = torch.stack([torch.as_tensor(s) for s, _ in pairs], dim=self._axis)
            y = torch.tensor([int(label) for _, label in pairs])
        return x.to(dtype).contiguous(), _int64(y)


def as_samples(data: Any, batch_axis: int) -> Samples:
    """A dataset as :class:`Samples`.

    Args:
        data: a :class:`ttsnn.models.SpikingDataset`, a map-style ``torch.utils.data.Dataset`` of
            (sample, label), or a pair (inputs, labels [n]) of tensors or arrays.
        batch_axis: axis of the samples in a batch: 0 for images, 1 for event frames.

    Raises:
        DataError: something else, or inputs and labels of different number.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, Sequence) and not isinstance(data, str) and len(data) == 2:
        x, y = (torch.as_tensor(v) for v in data)
        if y.dim() != 1 or x.dim() <= batch_axis or x.shape[batch_axis] != len(y):
            raise DataError(
                f"inputs {list(x.shape)} and labels {list(y.shape)} do not belong together: "
                f"labels must be [n], with n the size of axis {batch_axis} of the inputs"
            )
        return Samples((x, y), batch_axis)
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, str):
        raise DataError(
            f"cannot train on a {type(data).__name__}: give a map-style dataset of (sample, "
            "label), or a pair (inputs, labels)"
        )
    return Samples(data, batch_axis)


def check_labels(labels: np.ndarray, classes: int, what: str) -> None:
    """Refuse labels that are no class.

    Raises:
        DataError: naming the first.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"{what}: label {labels[wrong[0]]} of sample {wrong[0]} is out of range; the network "
            f"has {classes} classes, 0 … {classes - 1}"
        )


def _int64(labels: Any) -> np.ndarray:
    values = np.asarray(labels)
    if values.dtype.kind not in "iu":
        raise DataError(f"labels must be whole numbers, got {values.dtype}")
    return np.ascontiguousarray(values.astype(np.int64))
