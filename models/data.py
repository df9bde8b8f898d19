"""Datasets by name, all with one interface."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ttsnn.errors import DataError
from ttsnn.models.cifar import read_cifar
from ttsnn.models.events import (
    EventFiles,
    event_frames_from_images,
    find_event_files,
    read_event_frames,
)
from ttsnn.models.zoo import DatasetSpec, dataset_spec

__all__ = ["EventDataset", "FrameDataset", "ImageDataset", "SpikingDataset", "load_dataset"]

SPLITS = ("train", "test")

# Mean and standard deviation of each channel over the training images, pixels in 0…1.
NORMALS = {
    "digits": ((0.3051,), (0.3762,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class SpikingDataset(Dataset):
    """Labelled samples of one split.

    ``dataset[i]`` is ``(sample, label)`` with the sample [C, H, W], or [T, C, H, W] where the
    data are events. In a ``DataLoader`` use ``collate_fn=dataset.collate``, which puts time
    first.

    Attributes:
        spec: what the samples look like.
        split: "train" or "test".
        labels: [n], int64.
    """

    spec: DatasetSpec
    split: str
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise NotImplementedError

    @property
    def images(self) -> Tensor:
        """All samples in the networks' layout: [n, C, H, W] or [T, n, C, H, W]."""
        return self.batch(range(len(self)))[0]

    def collate(self, samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Samples as one batch in the networks' layout, and their labels [N]."""
        x = torch.stack([s for s, _ in samples], dim=0 if self.spec.static else 1)
        return x, torch.tensor([label for _, label in samples])

    def batch(self, indices: Sequence[int] | range) -> tuple[Tensor, Tensor]:
        """The samples with these indices as one batch."""
        return self.collate([self[i] for i in indices])

    def batches(
        self, batch_size: int, *, limit: int | None = None, shuffle: bool = False, seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order (or in a seeded random order); the last may be smaller."""
        count = len(self) if limit is None else min(limit, len(self))
        order = np.random.default_rng(seed).permutation(len(self)) if shuffle else range(len(self))
        for start in range(0, count, batch_size):
            yield self.batch([int(i) for i in order[start : min(start + batch_size, count)]])


class ImageDataset(SpikingDataset):
    """Static images held in memory."""

    def __init__(self, spec: DatasetSpec, split: str, images: Tensor, labels: Tensor) -> None:
        self.spec, self.split, self.labels = spec, split, labels
        self._images = images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index], int(self.labels[index])

    def batch(self, indices: Sequence[int] | range) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(list(indices), dtype=torch.int64)
        return self._images[chosen], self.labels[chosen]


class FrameDataset(SpikingDataset):
    """Event frames [T, n, C, H, W] held in memory."""

    def __init__(self, spec: DatasetSpec, split: str, frames: Tensor, labels: Tensor) -> None:
        self.spec, self.split, self.labels = spec, split, labels
        self._frames = frames

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._frames[:, index], int(self.labels[index])

    def batch(self, indices: Sequence[int] | range) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(list(indices), dtype=torch.int64)
        return self._frames[:, chosen], self.labels[chosen]


class EventDataset(SpikingDataset):
    """Event files, read and binned into frames when a sample is asked for."""

    def __init__(self, spec: DatasetSpec, split: str, files: EventFiles, split_by: str) -> None:
        self.spec, self.split, self.files, self.split_by = spec, split, files, split_by
        self.labels = torch.tensor(files.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        frames = read_event_frames(
            self.files.paths[index], self.spec.T, self.spec.image_size, split_by=self.split_by
        )
        return torch.from_numpy(frames), int(self.labels[index])


def load_dataset(
    name: str,
    root: str | os.PathLike | None = None,
    split: str = "train",
    *,
    T: int | None = None,
    image_size: int | None = None,
    normalize: bool = True,
    partial: bool = False,
    split_by: str = "time",
) -> SpikingDataset:
    """One split of a dataset.

    ``digits`` comes with scikit-learn and needs no files. ``moving_digits`` is made from it: what
    an ideal event camera would see of each image, resized, moved once around a circle of one
    pixel from a random place on it (the same in every call); no recording, see
    :func:`ttsnn.models.event_frames_from_images`. ``cifar10`` and ``cifar100`` want the
    *binary version* of their files below ``root``, ``ncaltech101`` the folders of event files.
    Every fifth image of a class of digits is for testing, every tenth file (by name) of a class
    of ncaltech101; CIFAR says it itself.

    Args:
        name: key of :data:`ttsnn.models.DATASETS`.
        root: folder with the files.
        split: "train" or "test".
        T: frames per sample, for events.
        image_size: height and width to resize to; by default the dataset's own.
        normalize: images with mean 0 and variance 1 over the training set; otherwise 0…1.
            Event frames are counts of events either way.
        partial: accept files that hold only a part of the dataset.
        split_by: events: frames of equal duration ("time") or of equally many events ("count").

    Raises:
        DataError: unknown name or split, or a file is missing or damaged.
    """
    spec = dataset_spec(name)
    if split not in SPLITS:
        raise DataError(f"{name}: unknown split {split!r}; use one of {', '.join(SPLITS)}")
    spec = replace(
        spec,
        T=spec.T if T is None else T,
        image_size=spec.image_size if image_size is None else image_size,
    )
    if spec.T < 1 or spec.image_size < 1:
        raise DataError(f"{name}: T={spec.T} and image size {spec.image_size} must be at least 1")
    if name == "digits":
        pixels, labels = _digits(split)
        return _images(spec, split, pixels, labels, normalize)
    if name == "moving_digits":
        pixels, labels = _digits(split)
        return _moving(spec, split, pixels, labels)
    if root is None:
        raise DataError(f"{name}: give the folder that holds its files (root=…, --data DIR)")
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{name}: {folder} is no folder")
    if spec.static:
        pixels, labels = read_cifar(name, folder, split, partial=partial)
        return _images(spec, split, pixels, labels, normalize)
    files = find_event_files(name, folder, split, spec.classes, partial=partial)
    return EventDataset(spec, split, files, split_by)


def _images(
    spec: DatasetSpec, split: str, pixels: np.ndarray, labels: np.ndarray, normalize: bool
) -> ImageDataset:
    """Pixels in 0…1 [n, C, H, W] as a dataset, resized and normalised."""
    images = _resized(pixels, spec.image_size)
    if normalize:
        mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in NORMALS[spec.name])
        images = (images - mean) / std
    return ImageDataset(spec, split, images, torch.from_numpy(labels))


def _moving(spec: DatasetSpec, split: str, pixels: np.ndarray, labels: np.ndarray) -> FrameDataset:
    """Images in 0…1 as event frames of a moved view."""
    images = _resized(pixels, spec.image_size).clamp(0.0, 1.0)
    generator = torch.Generator().manual_seed(SPLITS.index(split))
    phases = 2 * np.pi * torch.rand(len(labels), generator=generator)
    frames = event_frames_from_images(images, spec.T, phases=phases)
    return FrameDataset(spec, split, frames, torch.from_numpy(labels))


def _resized(pixels: np.ndarray, size: int) -> Tensor:
    """Images [n, C, H, W] with another height and width."""
    images = torch.from_numpy(pixels)
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    labels = data.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[4::5]] = True
    chosen = test if split == "test" else ~test
    pixels = (data.images[chosen] / 16.0).astype(np.float32)[:, None]
    return np.ascontiguousarray(pixels), labels[chosen]
