"""Event-camera data: files of ATIS events as frames, and made events from moving images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttsnn.errors import DataError

__all__ = [
    "EventFiles",
    "event_frames_from_images",
    "find_event_files",
    "read_event_frames",
    "read_events",
]

SENSOR = (180, 240)  # rows and columns of N-Caltech101's recordings
_OVERFLOW_ROW = 240  # an "event" in this row says that the clock wrapped by 2¹³ µs
_OVERFLOW_STEP = 1 << 13


@dataclass(frozen=True)
class EventFiles:
    """Files of one split, with their labels."""

    paths: list[Path]
    labels: list[int]
    classes: list[str]


def find_event_files(
    name: str, root: Path, split: str, classes: int, *, partial: bool = False
) -> EventFiles:
    """List ``<root>/[Caltech101/]<class>/*.bin``; labels are the classes' alphabetic ranks.

    Every tenth file of a class, by name, belongs to the split "test".

    Raises:
        DataError: no files, a wrong number of classes (unless ``partial``), or a file whose
            size is no whole number of events.
    """
    for folder in (root, root / "Caltech101", root / "N-Caltech101" / "Caltech101"):
        found = sorted(
            p for p in folder.glob("*") if p.is_dir() and next(p.glob("*.bin"), None) is not None
        )
        if found:
            break
    else:
        raise DataError(
            f"{name}: {root} holds no event files; expected {root}/Caltech101/<class>/*.bin "
            "(unpack Caltech101.zip of N-Caltech101 there)"
        )
    if len(found) > classes or (len(found) < classes and not partial):
        raise DataError(
            f"{name}: {folder} has {len(found)} classes with event files, expected {classes}; "
            "labels follow the folders' names, so all must be there (partial=True takes fewer)"
        )
    paths, labels = [], []
    for label, directory in enumerate(found):
        for i, path in enumerate(sorted(directory.glob("*.bin"))):
            if (i % 10 == 9) == (split == "test"):
                paths.append(path)
                labels.append(label)
    for path in paths:
        size = path.stat().st_size
        if size == 0 or size % 5:
            raise DataError(
                f"{path}: {size} bytes, expected a whole number of 5-byte events; "
                "the file is truncated, fetch it again"
            )
    if not paths:
        raise DataError(f"{name}: {folder} has no file for the split {split!r}")
    return EventFiles(paths, labels, [p.name for p in found])


def read_events(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Columns x, rows y, polarities (0 off, 1 on) and times in µs of a file of ATIS events.

    An event is 40 bits, most significant first: 8 bits x, 8 bits y, 1 bit polarity, 23 bits
    time (https://www.garrickorchard.com/datasets/n-caltech101).

    Raises:
        DataError: the file is missing, truncated or empty, or an event lies off the sensor.
    """
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if raw.size == 0 or raw.size % 5:
        raise DataError(
            f"{path}: {raw.size} bytes, expected a whole number of 5-byte events; "
            "the file is truncated, fetch it again"
        )
    b = raw.reshape(-1, 5).astype(np.int64)
    x, y, p = b[:, 0], b[:, 1], b[:, 2] >> 7
    t = ((b[:, 2] & 0x7F) << 16) | (b[:, 3] << 8) | b[:, 4]
    wrap = y == _OVERFLOW_ROW
    t = t + np.cumsum(wrap) * _OVERFLOW_STEP
    x, y, p, t = (v[~wrap] for v in (x, y, p, t))
    if x.size == 0:
        raise DataError(f"{path}: holds no events")
    off = (x >= SENSOR[1]) | (y >= SENSOR[0])
    if off.any():
        i = int(np.argmax(off))
        raise DataError(
            f"{path}: event {i} at column {x[i]}, row {y[i]} lies off the sensor of "
            f"{SENSOR[1]}×{SENSOR[0]}; the file is damaged or of another camera"
        )
    return x, y, p, t


def read_event_frames(path: Path, T: int, image_size: int, *, split_by: str = "time") -> np.ndarray:
    """Events of a file counted in T frames [T, 2, H, W], float32; channel 0 is "off".

    The sensor's pixels are mapped to the H×W cells that they fall into.

    Args:
        split_by: frames of equal duration ("time") or of equally many events ("count").
    """
    x, y, p, t = read_events(path)
    if split_by == "time":
        start, duration = t.min(), t.max() - t.min() + 1
        frame = (t - start) * T // duration
    elif split_by == "count":
        order = np.argsort(t, kind="stable")
        frame = np.empty_like(t)
        frame[order] = np.arange(t.size) * T // t.size
    else:
        raise DataError(f"split_by must be 'time' or 'count', got {split_by!r}")
    row, column = y * image_size // SENSOR[0], x * image_size // SENSOR[1]
    cell = ((frame * 2 + p) * image_size + row) * image_size + column
    counts = np.bincount(cell, minlength=T * 2 * image_size * image_size)
    return counts.astype(np.float32).reshape(T, 2, image_size, image_size)


def event_frames_from_images(
    images: Tensor,
    T: int,
    *,
    amplitude: float = 1.0,
    contrast: float = 0.2,
    phases: Tensor | None = None,
) -> Tensor:
    """Made event frames: what an ideal event camera would see of images moved on a circle.

    This is synthetic data for trying event networks without a download, no recording. Position
    t of T + 1 on the circle of ``amplitude`` pixels gives the log intensity
    ``log(0.1 + image)``; frame t counts by how many steps of ``contrast`` it rose ("on",
    channel 1) or fell ("off", channel 0) from position t to t + 1.

    Args:
        images: [N, C, H, W] in 0…1; colours are averaged.
        T: number of frames.
        amplitude: radius of the movement in pixels.
        contrast: change of log intensity that makes one event.
        phases: [N], where on the circle each image begins, in radians; 0 by default.

    Returns:
        [T, N, 2, H, W] in the images' dtype.

    Raises:
        DataError: wrong shape, or values outside 0…1.
    """
    if images.dim() != 4:
        raise DataError(f"images must be [N, C, H, W], got {list(images.shape)}")
    if images.numel() and (images.min() < 0 or images.max() > 1):
        raise DataError(
            "images must lie in 0…1 to have a log intensity; load them with normalize=False"
        )
    gray = images.mean(1, keepdim=True)
    n, _, height, width = gray.shape
    start = torch.zeros(n) if phases is None else phases
    theta = torch.zeros(n, 2, 3, dtype=gray.dtype)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0
    seen = []
    for k in range(T + 1):
        # one frame alone must see a movement too
        angle = start.to(gray.dtype) + 2 * math.pi * k / max(T, 2)
        # affine_grid's unit is half an image
        theta[:, 0, 2] = 2 * amplitude / width * angle.cos()
        theta[:, 1, 2] = 2 * amplitude / height * angle.sin()
        grid = F.affine_grid(theta, list(gray.shape), align_corners=False)
        moved = F.grid_sample(gray, grid, align_corners=False, padding_mode="border")
        seen.append(torch.log(0.1 + moved[:, 0]))
    change = torch.stack(seen).diff(dim=0) / contrast
    return torch.stack([(-change).clamp(min=0).floor(), change.clamp(min=0).floor()], dim=2)
