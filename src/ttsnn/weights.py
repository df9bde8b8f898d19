"""Weights from a state_dict file: .safetensors, or .pt/.pth without pickled code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.errors import ModelImportError, first_line

if TYPE_CHECKING:
    import torch

__all__ = ["load_weights", "read_state_dict"]

_NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read a state_dict.

    A checkpoint that keeps the state_dict under ``state_dict``, ``model`` … is unwrapped, and
    the prefix ``module.`` of a data-parallel network is dropped.

    Raises:
        ModelImportError: missing, damaged, or holding something that is no tensor.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise ModelImportError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            data: Any = load_file(path)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own text advises to unpickle files that nobody should trust
        reason = type(error).__name__
        if path.suffix == ".safetensors":
            reason += f": {first_line(error)}"
        raise ModelImportError(
            f"{path}: cannot be read as a state_dict ({reason}); save it with torch.save("
            "model.state_dict(), path) or as .safetensors"
        ) from error
    while isinstance(data, dict):
        nested = next((k for k in _NESTED if isinstance(data.get(k), dict)), None)
        if nested is None:
            break
        data = data[nested]
    if not isinstance(data, dict) or not data:
        raise ModelImportError(f"{path}: holds no state_dict (names → tensors)")
    wrong = next((k for k, v in data.items() if not isinstance(v, torch.Tensor)), None)
    if wrong is not None:
        raise ModelImportError(f"{path}: {wrong!r} is {type(data[wrong]).__name__}, not a tensor")
    if all(k.startswith("module.") for k in data):
        data = {k.removeprefix("module."): v for k, v in data.items()}
    return data


def load_weights(module: torch.nn.Module, path: str | os.PathLike) -> None:
    """Load a state_dict file into a network; every name and shape must fit.

    Raises:
        ModelImportError: naming the first names or shapes that do not fit.
    """
    state = read_state_dict(path)
    own = module.state_dict()
    # counters that batch normalisation keeps for training only
    optional = {k for k in own if k.endswith("num_batches_tracked")}
    missing = [k for k in own if k not in state and k not in optional]
    unexpected = [k for k in state if k not in own and not k.endswith("num_batches_tracked")]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({', '.join(missing[:3])} …)")
    if unexpected:
        problems.append(f"{len(unexpected)} unknown ({', '.join(unexpected[:3])} …)")
    if shapes:
        k = shapes[0]
        problems.append(f"{k} is {list(state[k].shape)}, expected {list(own[k].shape)}")
    if problems:
        raise ModelImportError(
            f"{path}: the weights do not fit {type(module).__name__}: {'; '.join(problems)}"
        )
    module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
