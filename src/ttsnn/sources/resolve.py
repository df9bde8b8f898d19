"""From a MODEL argument to the network."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ttsnn.errors import ArtifactError, ModelImportError
from ttsnn.sources.dataset import DEFAULT_DATASET
from ttsnn.sources.factory import from_factory
from ttsnn.sources.inputs import input_of
from ttsnn.sources.source import ModelOptions, ModelSource
from ttsnn.sources.trained import with_weights

_FILE_KINDS = {".pt2": "pt2", ".onnx": "onnx", ".ttsnn": "ttsnn"}


def resolve(model: Any, options: ModelOptions | None = None, *, probe: bool = True) -> ModelSource:
    """Find the network that ``model`` means.

    Args:
        model: a name of the zoo, ``"package.module:factory"`` (the current folder is on the
            path; a factory, a class or a module), a path ending in .pt2, .onnx or .ttsnn, a
            ``torch.nn.Module``, or an already resolved source.
        options: dataset, shapes and weights, where the network does not say them itself.
        probe: find out which input it takes (by running it, if need be); False where the caller
            has an example, and the source then has no ``input``.

    Raises:
        ModelImportError: no such network, or it cannot be built or run.
        DataError: options that are wrong in themselves.
    """
    options = options or ModelOptions()
    if isinstance(model, ModelSource):
        return model
    if isinstance(model, (str, os.PathLike)):
        text = os.fspath(model)
        kind = _FILE_KINDS.get(Path(text).suffix.lower())
        if kind is not None:
            return _from_file(Path(text), kind, options)
        if ":" in text:
            return _finish(*from_factory(text, options), options, trained=False, probe=probe)
        return _from_zoo(text, options, probe)
    import torch

    if isinstance(model, torch.nn.Module):
        return _finish(type(model).__name__, model, options, trained=True, probe=probe)
    raise ModelImportError(
        f"a network must be a torch.nn.Module, a zoo name, package.module:factory or a file, "
        f"got {type(model).__name__}"
    )


def _from_file(path: Path, kind: str, options: ModelOptions) -> ModelSource:
    if not path.is_file():
        error = ArtifactError if kind == "ttsnn" else ModelImportError
        raise error(f"{path}: no such file")
    if options.weights is not None:
        raise ModelImportError(f"{path}: the file has its own weights; leave --weights out")
    return ModelSource(path.stem, kind, path=path, options=options, trained=True)


def _from_zoo(name: str, options: ModelOptions, probe: bool) -> ModelSource:
    from ttsnn import models

    if name not in models.ZOO:
        raise ModelImportError(
            f"unknown model {name!r}: expected one of {', '.join(sorted(models.ZOO))}, "
            "package.module:factory, or a .pt2, .onnx or .ttsnn file"
        )
    module = models.create(
        name,
        options.dataset or DEFAULT_DATASET,
        T=options.timesteps,
        image_size=options.image_size,
        in_channels=options.in_channels,
        num_classes=options.num_classes,
        seed=options.seed,
        calibrated=options.calibrated and options.weights is None,
    )
    if options.dataset is None:
        options = replace(options, dataset=DEFAULT_DATASET)
    return _finish(name, module, options, trained=False, probe=probe)


def _finish(
    name: str, module: Any, options: ModelOptions, *, trained: bool, probe: bool
) -> ModelSource:
    """Load weights, set eval mode, find the input."""
    module, plan = module.eval(), None
    if options.weights is not None:
        module, plan = with_weights(name, module, options)
        trained = True
    shape = input_of(name, module, options) if probe else None
    return ModelSource(name, "module", module, None, shape, options, trained, plan)
