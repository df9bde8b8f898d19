"""Arrays from and to files, random inputs, samples of datasets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttsnn.artifact import replacing
from ttsnn.errors import DataError
from ttsnn.specs import TensorSpec

__all__ = [
    "add_dataset",
    "check_output",
    "dataset_of",
    "random_inputs",
    "read_arrays",
    "read_inputs",
    "write_outputs",
]

_READABLE = (".npy", ".npz", ".safetensors")


def add_dataset(parser: argparse._ActionsContainer) -> None:
    """``--data`` and ``--split``; ``--dataset`` comes with the model's options."""
    parser.add_argument("--data", metavar="DIR", help="folder with the dataset's files")
    parser.add_argument(
        "--split", choices=("train", "test"), default="test", help="(default: test)"
    )


def dataset_of(
    args: argparse.Namespace, T: int | None = None, image_size: int | None = None
) -> Any:
    """The dataset that a command line names, framed for a network's T and image size."""
    from ttsnn.models.data import load_dataset

    return load_dataset(args.dataset, args.data, args.split, T=T, image_size=image_size)


def random_inputs(specs: Sequence[TensorSpec], batch: int, seed: int) -> list[np.ndarray]:
    """Seeded random arrays: standard normal; 0/1 with density 0.2 where there is a time axis."""
    rng = np.random.default_rng(seed)
    out = []
    for spec in specs:
        shape = [batch if isinstance(d, str) else d for d in spec.shape]
        if not spec.dtype.startswith("float"):
            value: np.ndarray = rng.integers(0, 2, shape)
        elif len(shape) == 5:
            value = rng.random(shape) < 0.2
        else:
            value = rng.standard_normal(shape)
        out.append(value.astype(spec.dtype))
    return out


def read_arrays(path: str) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file; those of a .npz or .safetensors file by name.

    Raises:
        DataError: missing, damaged, or holding pickles.
    """
    file = Path(path)
    if file.suffix not in _READABLE:
        raise DataError(f"{path}: inputs are read from {', '.join(_READABLE)} files")
    if not file.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if file.suffix == ".npy":
            arrays: Any = np.load(file, allow_pickle=False)
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
        else:
            from safetensors.numpy import load_file

            arrays = load_file(file)
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); it may be truncated"
        ) from error
    return arrays


def read_inputs(path: str, specs: Sequence[TensorSpec]) -> list[np.ndarray]:
    """Arrays for a network's inputs from .npy (one input), .npz or .safetensors (by name).

    Raises:
        DataError: missing, damaged, holding pickles, or without one of the names.
    """
    arrays = read_arrays(path)
    if isinstance(arrays, np.ndarray):
        return [arrays]
    if len(arrays) == len(specs) == 1:
        return list(arrays.values())
    missing = [s.name for s in specs if s.name not in arrays]
    if missing:
        raise DataError(f"{path}: has no {missing[0]!r}; it holds {', '.join(arrays) or 'nothing'}")
    return [arrays[s.name] for s in specs]


def check_output(path: str | None) -> None:
    """Refuse a result file that cannot be written, before the work is done."""
    if path is None:
        return
    file = Path(path)
    if file.suffix not in _READABLE:
        raise DataError(f"{path}: results are written as {', '.join(_READABLE)}")
    if not file.parent.is_dir():
        raise DataError(f"{path}: folder {file.parent} does not exist")


def write_outputs(path: str, outputs: Mapping[str, np.ndarray]) -> None:
    """Write a network's outputs; .npy takes the first one alone.

    Raises:
        ArtifactError: the disk is full, or the folder not writable; nothing half-written stays.
    """
    with replacing(path) as temporary:
        suffix = Path(path).suffix
        if suffix == ".safetensors":
            from safetensors.numpy import save

            temporary.write_bytes(save({k: np.ascontiguousarray(v) for k, v in outputs.items()}))
            return
        with open(temporary, "wb") as file:
            if suffix == ".npy":
                np.save(file, next(iter(outputs.values())), allow_pickle=False)
            else:
                np.savez(file, **dict(outputs))  # type: ignore[arg-type]
