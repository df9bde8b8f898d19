"""One door for every kind of model: :func:`import_model`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import tvm
from torch.export import ExportedProgram

from ttsnn.errors import ModelImportError
from ttsnn.frontend.exported import from_exported
from ttsnn.frontend.pt2 import load_pt2
from ttsnn.frontend.trace import batch_axis, example_of, export_module
from ttsnn.models.time_axis import timesteps_of

__all__ = ["import_model"]


def import_model(
    source: Any,
    *,
    example: Any = None,
    dynamic_batch: bool = False,
    dtype: str | None = None,
    batch_dim: int | None = None,
) -> tvm.IRModule:
    """A model as a program: a Relax module with named parameters.

    Args:
        source: a ``torch.nn.Module`` (exported here in eval mode, from a copy), a
            ``torch.export.ExportedProgram``, or a path to a ``.pt2`` or ``.onnx`` file.
        example: example input of a module, a tensor or a tuple of them; a network of the zoo
            needs none. Its batch size is the program's unless ``dynamic_batch``.
        dynamic_batch: make the batch a symbolic size ``n``.
        dtype: ``"float32"`` or ``"float64"``: convert a module first. Files are taken as they
            are; another dtype than theirs is refused.
        batch_dim: axis of the batch; by default 1 for event frames [T, N, …] (and inputs with 3
            or 5 axes), 0 for static images.

    Returns:
        ``main(inputs…, state…, parameters…)`` in one dataflow block, as described in
        :mod:`ttsnn.program`. The module attribute ``ttsnn.meta`` is JSON with ``inputs`` and
        ``outputs`` (see :class:`ttsnn.specs.TensorSpec`), ``state`` (``input``: its name,
        ``output``: index of its next value, ``initial``: the number that it starts from) and
        ``T``; of a module also ``batch_axis``.

    Raises:
        ModelImportError: with everything that cannot be imported, by layer and source line.
    """
    if isinstance(source, torch.nn.Module):
        if isinstance(source, torch.fx.GraphModule) and "_guards_fn" in dict(
            source.named_children()
        ):
            raise ModelImportError(
                "this is the module() of an ExportedProgram; give the ExportedProgram itself"
            )
        ep = export_module(
            source, example, dynamic_batch=dynamic_batch, batch_dim=batch_dim, dtype=dtype
        )
        if batch_dim is None:
            first = next(a for a in example_of(source, example) if isinstance(a, torch.Tensor))
            batch_dim = batch_axis(source, first)
        return from_exported(ep, type(source).__name__, timesteps_of(source), batch_dim)
    if isinstance(source, ExportedProgram):
        return _from_exported(source, "the exported program", dynamic_batch, dtype)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix == ".pt2":
            return _from_exported(load_pt2(path), path.name, dynamic_batch, dtype)
        if path.suffix == ".onnx":
            from ttsnn.frontend.onnx_import import import_onnx

            return import_onnx(path, dynamic_batch=dynamic_batch, dtype=dtype)
        raise ModelImportError(f"{path}: unknown kind of model file; use .pt2 or .onnx")
    raise ModelImportError(
        f"cannot import a {type(source).__name__}; give a torch.nn.Module, an ExportedProgram, or "
        "the path of a .pt2 or .onnx file"
    )


def _from_exported(
    ep: ExportedProgram, what: str, dynamic_batch: bool, dtype: str | None
) -> tvm.IRModule:
    inputs = [
        n.meta["val"]
        for n in ep.graph.nodes
        if n.op == "placeholder" and n.name in ep.graph_signature.user_inputs
    ]
    tensors = [v for v in inputs if isinstance(v, torch.Tensor)]
    if dynamic_batch and not any(isinstance(s, torch.SymInt) for v in tensors for s in v.shape):
        raise ModelImportError(
            f"{what} was exported with a fixed batch size; export it with dynamic_shapes, or "
            "import it without dynamic_batch"
        )
    floats = {str(v.dtype).removeprefix("torch.") for v in tensors if v.is_floating_point()}
    if dtype is not None and floats and floats != {dtype}:
        raise ModelImportError(
            f"{what} is {', '.join(sorted(floats))}, not {dtype}; convert the model before "
            "exporting it"
        )
    return from_exported(ep, what)
