"""CIFAR-10 and CIFAR-100 from the files of their binary version.

A record of CIFAR-10 is one label byte and 3072 pixel bytes, of CIFAR-100 a coarse and a fine
label and the pixels; pixels are the red, green and blue planes of 32×32, row by row
(https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ttsnn.errors import DataError

__all__ = ["read_cifar"]

_PIXELS = 3 * 32 * 32
# name → (folder in the archive, label bytes, classes, split → files, records in a file)
_LAYOUT = {
    "cifar10": (
        "cifar-10-batches-bin",
        1,
        10,
        {
            "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test": ["test_batch.bin"],
        },
        {"train": 10000, "test": 10000},
    ),
    "cifar100": (
        "cifar-100-binary",
        2,
        100,
        {"train": ["train.bin"], "test": ["test.bin"]},
        {"train": 50000, "test": 10000},
    ),
}
_PICKLED = {
    "cifar10": ("cifar-10-batches-py", "data_batch_1", "test_batch"),
    "cifar100": ("cifar-100-python", "train", "test"),
}
_ARCHIVES = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}


def read_cifar(
    name: str, root: Path, split: str, *, partial: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, 32, 32] in 0…1 (float32) and (fine) labels [n] (int64).

    Args:
        name: "cifar10" or "cifar100".
        root: the folder of the archive, or the one above it.
        split: "train" or "test".
        partial: accept fewer files or records than the whole split has.

    Raises:
        DataError: a file is missing, truncated, pickled, or holds an impossible label.
    """
    subfolder, label_bytes, classes, files, counts = _LAYOUT[name]
    folder = root / subfolder if (root / subfolder).is_dir() else root
    paths = [folder / f for f in files[split]]
    missing = [p for p in paths if not p.is_file()]
    if missing and not (partial and len(missing) < len(paths)):
        if any((root / p).exists() for p in _PICKLED[name]):
            raise DataError(
                f"{name}: {root} holds the Python version, whose files are pickles and can run "
                f"code when read; unpack the binary version ({_ARCHIVES[name]}) there instead"
            )
        raise DataError(
            f"{name}: {missing[0]} is missing; unpack the binary version ({_ARCHIVES[name]}) "
            f"in {root}"
        )
    pixels, labels = [], []
    record = label_bytes + _PIXELS
    for path in paths:
        if path in missing:
            continue
        raw = np.fromfile(path, dtype=np.uint8)
        wanted = counts[split] * record
        if raw.size != wanted and (not partial or raw.size == 0 or raw.size % record):
            raise DataError(
                f"{path}: {raw.size} bytes, expected {wanted} ({counts[split]} records of "
                f"{record}); the file is truncated or another one, fetch it again"
            )
        table = raw.reshape(-1, record)
        label = table[:, label_bytes - 1].astype(np.int64)
        if label.max() >= classes:
            at = int(np.argmax(label >= classes))
            raise DataError(
                f"{path}: record {at} has label {label[at]}, expected 0…{classes - 1}; "
                "the file is damaged or another one, fetch it again"
            )
        pixels.append(table[:, label_bytes:].reshape(-1, 3, 32, 32))
        labels.append(label)
    images = np.concatenate(pixels).astype(np.float32) / np.float32(255)
    return images, np.concatenate(labels)
