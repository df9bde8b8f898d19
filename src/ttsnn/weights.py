"""Weights from a state_dict file (.safetensors, or .pt/.pth without pickled code) or a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.errors import ModelImportError, first_line

if TYPE_CHECKING:
    import torch

__all__ = ["PLAN_KEY", "Weights", "load_state", "load_weights", "read_state_dict", "read_weights"]

PLAN_KEY = "ttsnn.plan"
"""Entry of a .safetensors file's metadata: the plan whose cores it holds, as JSON."""

_INDEX, _BEST = "checkpoint.json", "best.safetensors"
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


@dataclass(frozen=True)
class Weights:
    """Weights, and the plan that they were trained with.

    Attributes:
        path: where they are from.
        state: name → tensor.
        plan: JSON of a :class:`ttsnn.plans.TTPlan`; None where the file says none.
    """

    path: Path
    state: dict[str, torch.Tensor]
    plan: dict[str, Any] | None

    @property
    def cores(self) -> list[str]:
        """Names of first cores: ``….g1`` of a convolution, ``….cores.0`` of a linear layer."""
        return [k for k in self.state if k.endswith((".g1", ".cores.0")) or k == "g1"]


def read_weights(path: str | os.PathLike) -> Weights:
    """Read a state_dict file or a run of ``ttsnn train``.

    Args:
        path: a file as in :func:`read_state_dict`; a run's folder, which means its
            ``best.safetensors``, or the last checkpoint where no accuracy was measured; or its
            ``checkpoint.json``, which means the last checkpoint.

    Raises:
        ModelImportError: as :func:`read_state_dict`.
        ArtifactError: a damaged checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / _INDEX).is_file():
            raise ModelImportError(f"{path}: a folder without {_INDEX} is no run of ttsnn train")
        path = path / (_BEST if (path / _BEST).is_file() else _INDEX)
    if path.name == _INDEX:
        return _of_checkpoint(path)
    state = read_state_dict(path)
    plan = None
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(PLAN_KEY)
        plan = None if text is None else json.loads(text)
    return Weights(path, state, plan)


def _of_checkpoint(path: Path) -> Weights:
    import torch

    from ttsnn.runtime.training.checkpoint import read_checkpoint

    found = read_checkpoint(path)
    state = {k: torch.from_numpy(v.copy()) for k, v in found.model.items()}
    return Weights(path, state, found.config.get("plan"))


def load_weights(module: torch.nn.Module, path: str | os.PathLike) -> None:
    """Load a state_dict file into a network; every name and shape must fit.

    Raises:
        ModelImportError: naming the first names or shapes that do not fit.
    """
    load_state(module, read_state_dict(path), path)


def load_state(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str | os.PathLike
) -> None:
    """Load a state_dict, read from ``path``; every name and shape must fit.

    Raises:
        ModelImportError: naming the first names or shapes that do not fit.
    """
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
