"""Checkpoints: a folder with tensors (safetensors) and a JSON file that commits them.

``checkpoint.json`` names the tensor file, its size and its SHA-256. Saving writes the new tensor
file under a name of its own, then replaces ``checkpoint.json`` in one step, then removes the old
tensor file: whenever the process is killed, ``checkpoint.json`` belongs to a whole checkpoint.
Nothing in it depends on the clock or the machine, so equal runs give equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttsnn.artifact import replacing
from ttsnn.errors import ArtifactError, first_line

__all__ = ["FORMAT", "INDEX", "Checkpoint", "check_model", "read_checkpoint", "write_checkpoint"]

FORMAT = 1
INDEX = "checkpoint.json"
GROUPS = ("model", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """All that a training run needs to go on.

    Attributes:
        step: updates made.
        model: parameters and buffers by ``state_dict`` name, ``num_batches_tracked`` too.
        optimizer: state of the optimizer, ``<parameter>.<kind>``.
        config: what the run was started with; must be the same to resume bit for bit.
        progress: figures that the run carries along (best accuracy …), plain JSON.
    """

    step: int
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    config: dict[str, Any]
    progress: dict[str, Any]


def write_checkpoint(folder: str | os.PathLike, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint in place of the folder's last one; returns its tensor file.

    Raises:
        ArtifactError: a value is not finite, or it cannot be written; the last one stays.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    for name, value in {**checkpoint.model, **checkpoint.optimizer}.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ArtifactError(
                f"{folder}: no checkpoint of step {checkpoint.step}: {name} holds NaN or infinity; "
                "the last good checkpoint stays"
            )
    tensors = {
        f"{group}/{name}": np.asarray(value, order="C")
        for group in GROUPS
        for name, value in getattr(checkpoint, group).items()
    }
    data = save(tensors)
    file = folder / f"step-{checkpoint.step:08d}.safetensors"
    with replacing(file) as temporary:
        temporary.write_bytes(data)
    index = {
        "format": FORMAT,
        "step": checkpoint.step,
        "tensors": file.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "config": checkpoint.config,
        "progress": checkpoint.progress,
    }
    _sync(folder)  # the tensors must be on disk before the file that names them
    with replacing(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1, sort_keys=True))
    _sync(folder)
    _clean(folder, file)
    return file


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: its folder, or the JSON file in it.

    Raises:
        ArtifactError: there is none, it is damaged, or of a newer format.
    """
    from safetensors.numpy import load

    path = Path(path)
    index_file = path / INDEX if path.is_dir() else path
    folder = index_file.parent
    if not index_file.is_file():
        raise ArtifactError(f"{path}: holds no checkpoint ({INDEX}); start a new run there")
    try:
        index = json.loads(index_file.read_text())
        version, name, digest = int(index["format"]), str(index["tensors"]), str(index["sha256"])
        step, config, progress = int(index["step"]), dict(index["config"]), dict(index["progress"])
        size = int(index["bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{index_file}: damaged ({type(error).__name__}: {first_line(error)}); restore it from "
            "a copy, or start a new run"
        ) from None
    if version > FORMAT:
        raise ArtifactError(f"{index_file}: format {version}; this ttsnn reads up to {FORMAT}")
    file = folder / Path(name).name
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{file}: cannot be read ({error.strerror}); {index_file.name} needs it"
        ) from None
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise ArtifactError(
            f"{file}: damaged: its {len(data)} bytes are not the {size} that {index_file.name} "
            "describes; restore it from a copy, or start a new run"
        )
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in GROUPS}
    for key, value in load(data).items():
        group, _, tensor = key.partition("/")
        groups[group][tensor] = value
    return Checkpoint(step, groups["model"], groups["optimizer"], config, progress)


def check_model(
    path: str | os.PathLike, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> None:
    """Refuse the tensors of another model: names, shapes and dtypes must be the same.

    Raises:
        ArtifactError: naming the first that does not fit.
    """
    problems = []
    missing = [k for k in expected if k not in found]
    unknown = [k for k in found if k not in expected]
    if missing:
        problems.append(f"it lacks {len(missing)} of the model's tensors ({_some(missing)})")
    if unknown:
        problems.append(f"it has {len(unknown)} that the model lacks ({_some(unknown)})")
    for k in expected:
        if k not in found:
            continue
        have, want = found[k], expected[k]
        if have.shape != want.shape or have.dtype != want.dtype:
            problems.append(
                f"{k} is {have.dtype} {list(have.shape)}, the model's is {want.dtype} "
                f"{list(want.shape)}"
            )
            break
    if problems:
        raise ArtifactError(
            f"{path}: a checkpoint of another model: {'; '.join(problems)}; give the model, plan "
            "and dtype that it was made with"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _sync(folder: Path) -> None:
    """Make the folder's entries durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _clean(folder: Path, keep: Path) -> None:
    """Remove tensor files of earlier checkpoints, and what killed processes left half-written."""
    for file in [*folder.glob("step-*.safetensors"), *folder.glob(".step-*.safetensors.*")]:
        if file != keep:
            with contextlib.suppress(OSError):
                file.unlink()
    for file in folder.glob(f".{INDEX}.*"):
        with contextlib.suppress(OSError):
            file.unlink()
