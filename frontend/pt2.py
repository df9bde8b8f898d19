"""Exported PyTorch programs as ``.pt2`` files."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ttsnn.errors import ModelImportError, TTSNNError
from ttsnn.frontend.describe import quiet
from ttsnn.frontend.files import write_atomically
from ttsnn.frontend.trace import export_module

__all__ = ["export_pt2", "load_pt2"]


def export_pt2(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    example: Any = None,
    dynamic_batch: bool = False,
    *,
    dtype: str | None = None,
    batch_dim: int | None = None,
) -> None:
    """Write a module as a ``.pt2`` file, exported in eval mode; arguments as `import_model`'s.

    Neurons and tensor-train layers stay operators of ``torch.ops.ttsnn``, so plain PyTorch runs
    the file after ``import ttsnn.models``. The file appears whole or not at all.

    Raises:
        ModelImportError: the model cannot be exported, or the file not be written.
    """
    ep = export_module(
        model, example, dynamic_batch=dynamic_batch, batch_dim=batch_dim, dtype=dtype
    )
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(ep, buffer)
    write_atomically(path, buffer.getvalue())


def load_pt2(path: str | os.PathLike[str]) -> ExportedProgram:
    """Read a ``.pt2`` file that ``torch.export.save`` wrote.

    Raises:
        ModelImportError: for a missing, truncated or foreign file.
    """
    import ttsnn.models  # noqa: F401  registers the operators that the file may use

    path = Path(path)
    if not path.is_file():
        raise ModelImportError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ModelImportError(
            f"{path}: damaged, or not a file that torch.export.save wrote; export the model again"
        )
    try:
        with quiet():
            return torch.export.load(path)
    except TTSNNError:
        raise
    except Exception as err:
        raise ModelImportError(
            f"{path}: cannot be read by torch.export.load ({type(err).__name__}: "
            f"{str(err).strip()[:300]}); export the model again with this PyTorch"
        ) from None
