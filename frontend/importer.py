"""One door for every kind of model: :func:`import_model`."""

from __future__ import annotations

from typing import Any

import torch
import tvm

from ttsnn.errors import ModelImportError
from ttsnn.frontend.exported import from_exported
from ttsnn.frontend.trace import export_module

__all__ = ["import_model"]


def import_model(
    source: Any,
    *,
    example: Any = None,
    dynamic_batch: bool = False,
    dtype: str | None = None,
    batch_dim: int | None = None,
) -> tvm.IRModule:
    if isinstance(source, torch.nn.Module):
        ep = export_module(
            source, example, dynamic_batch=dynamic_batch, batch_dim=batch_dim, dtype=dtype
        )
        steps = getattr(source, "T", None)
        return from_exported(ep, type(source).__name__, steps if isinstance(steps, int) else None)
    raise ModelImportError("TODO")
