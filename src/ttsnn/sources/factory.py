"""``package.module:factory``: import it and call it with what it takes."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from ttsnn.errors import ModelImportError
from ttsnn.sources.dataset import DEFAULT_DATASET, dataset_of
from ttsnn.sources.source import ModelOptions


def from_factory(text: str, options: ModelOptions) -> tuple[str, Any]:
    """Name and network of ``package.module:factory``."""
    module_name, _, attribute = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelImportError(f"{text}: cannot import {module_name!r}: {error}") from error
    except Exception as error:
        raise ModelImportError(
            f"{text}: importing {module_name!r} raised {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelImportError(f"{text}: {module_name} has no {attribute!r}")
        found = getattr(found, part)

    import torch

    if not isinstance(found, torch.nn.Module):
        if not callable(found):
            raise ModelImportError(f"{text}: neither a torch.nn.Module nor callable")
        kwargs = _arguments(found, options)
        torch.manual_seed(options.seed)
        try:
            found = found(**kwargs)
        except Exception as error:
            shown = ", ".join(f"{k}={v!r}" for k, v in kwargs.items())
            raise ModelImportError(
                f"{text}({shown}) raised {type(error).__name__}: {error}"
            ) from error
    if not isinstance(found, torch.nn.Module):
        raise ModelImportError(
            f"{text} returned {type(found).__name__}; it must return a torch.nn.Module"
        )
    return attribute.rpartition(".")[2], found


def _arguments(factory: Any, options: ModelOptions) -> dict[str, Any]:
    """What to call a factory with: what the user said, and what it requires."""
    from ttsnn.models.time_axis import TIME_NAMES

    spec = dataset_of(options)
    said = {
        "T": options.timesteps,
        "image_size": options.image_size,
        "in_channels": options.in_channels,
        "num_classes": options.num_classes,
    }
    default = {
        "T": spec.T,
        "image_size": spec.image_size,
        "in_channels": spec.channels,
        "num_classes": spec.classes,
    }
    aliases = {
        **dict.fromkeys(TIME_NAMES, "T"),
        **dict.fromkeys(("image_size", "img_size", "input_size", "resolution"), "image_size"),
        **dict.fromkeys(("in_channels", "in_chans", "input_channels", "channels"), "in_channels"),
        **dict.fromkeys(("num_classes", "n_classes", "num_class", "classes"), "num_classes"),
    }
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    out: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        key = aliases.get(name)
        value: Any = None
        if key is not None:
            value = said[key]
            if value is None and (required or options.dataset is not None):
                value = default[key]
        elif name == "dataset":
            value = options.dataset or (DEFAULT_DATASET if required else None)
        elif name == "seed":
            value = options.seed
        if value is not None:
            out[name] = value
    return out
